"""Which replica gets the next request, as the proxies of a service choose.

A router knows how many requests of its own each replica has in flight, as Ray Serve's handles do, and nothing of engines.
Replicas are known by their place in the fleet; one that drains gets nothing new.
Fails closed: without any replica in service there is nowhere to send a request, and `pick` raises ValueError.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from typing import Literal

RouterKind = Literal["round_robin", "least_loaded", "two_choices", "sticky"]
"""round_robin: one after the other. least_loaded: fewest requests in flight, in turn where several are equal. two_choices: the
less loaded of two drawn at random (Ray Serve's own). sticky: a closed-loop user stays with the replica that its number
names while the fleet is the same, which holds every replica's concurrency; open-loop requests go round robin."""


class Router:
    """One router for the whole service. `rng` matters to two_choices only."""

    def __init__(self, kind: RouterKind, rng: random.Random) -> None:
        self._kind = kind
        self._rng = rng
        self._serving: list[int] = []
        self._in_flight: dict[int, int] = {}
        self._turn = 0

    @property
    def serving(self) -> tuple[int, ...]:
        """Replicas that get new requests, ascending."""
        return tuple(self._serving)

    def in_flight(self, replica: int) -> int:
        """Requests that were sent to a replica and are not answered yet."""
        return self._in_flight.get(replica, 0)

    def join(self, replica: int) -> None:
        """From now on `replica` gets requests."""
        insort(self._serving, replica)
        self._in_flight.setdefault(replica, 0)

    def drain(self, replica: int) -> None:
        """From now on `replica` gets no new requests; those in flight are still counted."""
        place = bisect_left(self._serving, replica)
        if self._serving[place : place + 1] == [replica]:
            del self._serving[place]

    def pick(self, user: int | None) -> int:
        """The replica for the next request, counted as in flight from now on. Raises ValueError without a replica in service."""
        if not self._serving:
            raise ValueError("no replica is in service: at least one must stay")
        replica = self._choose(user)
        self._in_flight[replica] += 1
        return replica

    def answered(self, replica: int) -> None:
        """One request of `replica` is answered."""
        self._in_flight[replica] -= 1

    def _choose(self, user: int | None) -> int:
        serving = self._serving
        if self._kind == "sticky" and user is not None:
            return serving[user % len(serving)]
        if self._kind == "two_choices":
            return min(self._rng.choices(serving, k=2), key=self._in_flight.__getitem__)
        self._turn = (self._turn + 1) % len(serving)
        if self._kind == "least_loaded":
            in_turn = serving[self._turn :] + serving[: self._turn]
            return min(in_turn, key=self._in_flight.__getitem__)
        return serving[self._turn - 1]
