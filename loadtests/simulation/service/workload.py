"""What a simulated fleet is asked: who asks when, how long prompt and answer are, and how predictable the text is.

Three kinds of load: a regime's open-loop arrivals, its closed-loop users, and a recorded trace. All numbers depend on the
scenario's seed alone, never on planner, fleet or router: arrival n has the same lengths in every run, and so has request m
of user u, whenever that user comes to ask it (common random numbers).
Fails closed: shares, traces and scales that make no load raise ValueError with what is allowed; so does an answer for which no user
waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightjar.loadtests.load.regimes import Regime, arrival_times
from nightjar.loadtests.load.traces import read_trace
from nightjar.loadtests.simulation.service.lengths import SHAREGPT, Traffic

USER_BLOCK: Final = 64
OPEN_BLOCK: Final = 4096
"""Requests drawn at once: of a closed-loop user and of all open-loop arrivals."""


class Demand(NamedTuple):
    """One request as it is asked, whatever system answers it. `user` is None in open loop."""

    number: int
    due_s: float
    prompt_tokens: int
    output_tokens: int
    acceptance_class: int
    cached_tokens: int
    user: int | None


class Shape(NamedTuple):
    """What a request is, whenever it is asked."""

    prompt_tokens: int
    output_tokens: int
    acceptance_class: int
    cached_tokens: int = 0
    """The leading ones of the prompt that the prefix cache holds."""


class UserCount(NamedTuple):
    """From `from_s` on there are `users` closed-loop users."""

    from_s: float
    users: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A CSV file of requests (traces.py).

    `time_scale` stretches its times (0.5: twice as fast); `rate_scale` keeps that share of its requests, or repeats them where
    it is above 1 (each copy somewhere within the mean distance of two requests after its original). `first`: only so many of the
    file's requests, from its beginning.
    """

    path: Path
    time_scale: float = 1.0
    rate_scale: float = 1.0
    first: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("time_scale", self.time_scale), ("rate_scale", self.rate_scale)):
            if not 0 < value <= 1000:
                raise ValueError(f"trace {self.path}: {name} {value:g}, allowed are more than 0 up to 1000")


@dataclass(frozen=True, slots=True)
class Workload:
    """All requests of a scenario. `class_shares[i]` is the share of requests in the profile's acceptance class i; None: as the
    profile says.

    Prompt and answer together never exceed `max_model_len`, as the server would cut them. A trace brings its own lengths.
    """

    load: Regime | Trace
    dataset: Traffic = SHAREGPT
    class_shares: tuple[float, ...] | None = None
    max_model_len: int = 2048

    def __post_init__(self) -> None:
        shares = self.class_shares
        if shares is not None and (not shares or min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-6):
            raise ValueError(f"class_shares {shares}: one share from 0 per acceptance class, together 1")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len {self.max_model_len}: a prompt and an answer of one token each need at least 2")

    def open_demands(self, seed: int) -> Iterator[Demand]:
        """Every open-loop request in time order."""
        if isinstance(self.load, Trace):
            yield from self._traced(self.load, seed)
            return
        shapes = self._shapes(np.random.default_rng((seed, _OPEN)), OPEN_BLOCK)
        for arrival in arrival_times(self.load, seed):
            yield Demand(arrival.number, arrival.time_s, *next(shapes), user=None)

    def user_counts(self) -> tuple[UserCount, ...]:
        """Every change of the number of closed-loop users, 0 before the first; none of a trace."""
        if isinstance(self.load, Trace):
            return ()
        counts = [UserCount(scheduled.start_s, scheduled.phase.users or 0) for scheduled in self.load.schedule()]
        counts.append(UserCount(self.load.duration_s, 0))
        return tuple(count for place, count in enumerate(counts) if count.users != (counts[place - 1].users if place else 0))

    def user_shapes(self, seed: int, user: int) -> Iterator[Shape]:
        """What closed-loop user number `user` asks, request after request, for ever."""
        return self._shapes(np.random.default_rng((seed, _USER, user)), USER_BLOCK)

    def _shapes(self, rng: np.random.Generator, block: int) -> Iterator[Shape]:
        while True:
            prompts, outputs, cached = self.dataset.draw(block, rng)
            classes = _classes(self.class_shares, block, rng)
            prompts, outputs = _fitted(prompts, outputs, self.max_model_len)
            cached = np.minimum(cached, prompts - 1)
            yield from map(Shape, prompts.tolist(), outputs.tolist(), classes.tolist(), cached.tolist())

    def _traced(self, trace: Trace, seed: int) -> Iterator[Demand]:
        rows = read_trace(trace.path)[: trace.first]
        rng = np.random.default_rng((seed, _TRACE))
        due_s = np.array([row.due_s for row in rows]) * trace.time_scale
        copies = math.floor(trace.rate_scale) + (rng.random(len(rows)) < trace.rate_scale % 1.0)
        places = np.repeat(np.arange(len(rows)), copies)
        is_copy = np.concatenate(([False], places[1:] == places[:-1])) if len(places) else np.zeros(0, dtype=bool)
        due_s = due_s[places] + is_copy * rng.random(len(places)) * (due_s[-1] / len(rows))
        classes = _classes(self.class_shares, len(places), rng)
        prompts, outputs = _fitted(
            np.array([row.prompt_tokens for row in rows])[places],
            np.array([row.output_tokens for row in rows])[places],
            self.max_model_len,
        )
        order = np.argsort(due_s, kind="stable")
        columns = (due_s[order].tolist(), prompts[order].tolist(), outputs[order].tolist(), classes[order].tolist())
        for number, (due, prompt, output, acceptance_class) in enumerate(zip(*columns, strict=True)):
            yield Demand(number, due, prompt, output, acceptance_class, 0, None)


NUMBERS: Final = 1 << 32
"""A closed-loop request's number is (user + 1) times this plus its place in the user's own row; open-loop numbers lie below."""


def user_of(number: int) -> int | None:
    """Whose request has this number; None for one of the open loop.

    >>> user_of(3 * NUMBERS + 17), user_of(17)
    (2, None)
    """
    return number // NUMBERS - 1 if number >= NUMBERS else None


class Users:
    """All closed-loop users of a scenario: each asks, waits for the answer and asks again at once.

    They are numbered from 0, and the regime's phases say how many there are. One who is above the present number stops after the
    answer in flight, so that load falls as answers end, not by requests cut off; one who stays goes on with its own row of
    requests.
    """

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


def _classes(shares: tuple[float, ...] | None, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if shares is None:
        return np.zeros(count, dtype=np.int64)
    return np.minimum(np.searchsorted(np.cumsum(shares), rng.random(count), side="right"), len(shares) - 1)


def _fitted(
    prompts: NDArray[np.int64], outputs: NDArray[np.int64], max_model_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompts cut so that one token can be answered, answers cut where the context ends."""
    prompts = np.minimum(prompts, max_model_len - 1)
    return prompts, np.minimum(outputs, max_model_len - prompts)


_OPEN: Final = 1
_USER: Final = 2
_TRACE: Final = 3
"""Streams of the scenario's seed, so that none of them shares random numbers with another."""
