"""Closed-loop users: each asks, waits for the answer and asks again at once.

They are numbered from 0, and the regime's phases say how many there are. One who is above the present number stops after
the answer in flight, so that load falls as answers end, not by requests cut off; one who stays goes on with its own row of
requests. Fails closed: an answer that nobody waits for raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nightjar.loadtests.simulation.service.workload import Demand, Shape, Workload

NUMBERS: Final = 1 << 32
"""A closed-loop request's number is (user + 1) times this plus its place in the user's own row; open-loop numbers lie below."""


def user_of(number: int) -> int | None:
    """Whose request has this number; None for one of the open loop.

    >>> user_of(3 * NUMBERS + 17), user_of(17)
    (2, None)
    """
    return number // NUMBERS - 1 if number >= NUMBERS else None


class Users:
    """All closed-loop users of a scenario."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._seed = seed
        self._shapes: list[Iterator[Shape]] = []
        self._asked: list[int] = []
        self._waiting: set[int] = set()
        self._count = 0

    @property
    def waiting(self) -> int:
        """Users whose answer is in flight."""
        return len(self._waiting)

    def set_count(self, count: int, now_s: float) -> list[Demand]:
        """There are `count` users from now on: what those ask at once who do not wait for an answer already."""
        self._count = count
        for user in range(len(self._shapes), count):
            self._shapes.append(self._workload.user_shapes(self._seed, user))
            self._asked.append(0)
        return [self._ask(user, now_s) for user in range(count) if user not in self._waiting]

    def answered(self, user: int, now_s: float) -> Demand | None:
        """The next request of a user who got an answer; None if it stops. Raises ValueError if it did not wait."""
        if user not in self._waiting:
            raise ValueError(f"user {user} waits for no answer")
        self._waiting.discard(user)
        return self._ask(user, now_s) if user < self._count else None

    def _ask(self, user: int, now_s: float) -> Demand:
        number = (user + 1) * NUMBERS + self._asked[user]
        self._asked[user] += 1
        self._waiting.add(user)
        return Demand(number, now_s, *next(self._shapes[user]), user=user)
