"""How long speculation will stay on once it is, and what that is worth: a chain over the places where the load was seen to stand.

A restart is an investment: paid now, earned back while the load stays where speculation pays. How long that is depends on
where the load stands (deep in the quiet, or at the crossover) and whether it falls, so the chain tells it by place;
docs/restarts.md compares it with the mean length of past ON times. Fails towards a short ON time: what was never seen is taken to
end in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.restarts.load_transitions import HALF_LIFE_S, NOT_SEEN, SAMPLE_PERIOD_S, Believed, Move, Place

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HORIZON_SAMPLES: Final = 120.0
"""Value is counted over so many samples at most: nobody knows the load of the next hour."""
PRIOR_SAMPLES: Final = 5.0
PRIOR_STAY: Final = 0.9
"""Before evidence a bucket is left after ten samples, and speculation then ends; this weighs as much as five seen moves."""
LEAST_BELIEVED: Final = 1e-3
"""A move that has decayed to less is forgotten."""

Values = Mapping[Place, float]
"""Tokens that speculation earns from now until the load leaves for good, by present place."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Decayed counts of moves, of all replicas of a group. Old counts do not shrink, new ones grow: so a look costs what it brings.

    `weighed` are the counts as they were worth at `since_s`, and one made later counts that much more.
    """

    weighed: Mapping[Move, Believed] = field(default_factory=dict)
    since_s: float = 0.0
    at_s: float = 0.0

    @property
    def counts(self) -> dict[Move, Believed]:
        """What each move counts at `at_s`, without what has decayed to nothing."""
        aged = {move: count.times(self._share_left) for move, count in self.weighed.items()}
        return {move: count for move, count in aged.items() if max(count) > LEAST_BELIEVED}

    @property
    def _share_left(self) -> float:
        share_left: float = 0.5 ** (max(self.at_s - self.since_s, 0.0) / HALF_LIFE_S)
        return share_left

    def plus(self, seen: Mapping[Move, Believed], now_s: float) -> Moves:
        """These moves aged until `now_s`, and those seen since."""
        aged = Moves(self.weighed, self.since_s, max(now_s, self.at_s))
        if aged._share_left < LEAST_BELIEVED:  # before a new count is worth so much that floats lose the old ones
            aged = Moves(aged.counts, aged.at_s, aged.at_s)
        weighed, weight = dict(aged.weighed), 1.0 / aged._share_left
        for move, count in seen.items():
            weighed[move] = weighed.get(move, NOT_SEEN).plus(count.times(weight))
        return Moves(weighed, aged.since_s, aged.at_s)

    def value_tokens(self, gains_tokens_per_s: Mapping[int, float], lag_costs_tokens_per_s: Mapping[int, float]) -> Values:
        """The values where speculation adds `gains_tokens_per_s`, in each bucket where it is on.

        In another bucket it is off and the drafter falls behind, which costs so many tokens a second to recompute; one that
        `lag_costs_tokens_per_s` does not name ends the ON time. An excursion is borne where that is worth more than giving up:
        V = max(0, D + g P V) there, V = D + g P V where it is on, with g = 1 - 1/HORIZON_SAMPLES and D what one sample gives.
        A place that was seldom seen moves as its bucket does, whatever came before, and a bucket that was seldom seen as the prior
        says.
        """
        if not gains_tokens_per_s:
            return {}
        per_second = {bucket: -cost for bucket, cost in lag_costs_tokens_per_s.items()} | dict(gains_tokens_per_s)
        places = [Place(bucket, is_falling) for bucket in sorted(per_second) for is_falling in (False, True)]
        per_sample = np.array([per_second[place.bucket] for place in places]) * SAMPLE_PERIOD_S
        is_on = np.array([place.bucket in gains_tokens_per_s for place in places])
        discounted = (1.0 - 1.0 / HORIZON_SAMPLES) * self._chances(places)
        kept, identity = is_on, np.eye(len(places))
        while True:
            values = np.linalg.solve(identity - kept[:, None] * discounted, kept * per_sample)
            borne = kept | (per_sample + discounted @ values > 0.0)
            if (borne == kept).all():
                return {place: float(value) for place, value, on in zip(places, values, is_on, strict=True) if on}
            kept = borne

    def _chances(self, places: Sequence[Place]) -> Floats:
        """(places, places): that a replica is there a sample later; a row's rest goes where none of these is."""
        count = len(places)
        at = _positions(tuple(self.weighed), tuple(places))
        believed = np.array(list(self.weighed.values()), dtype=float).reshape(-1, 2)[at.known] * self._share_left
        size = count * (count + 1)
        own = np.bincount(at.of_place, believed[:, 1], size).reshape(count, -1)
        counted = np.bincount(at.of_bucket, np.tile(believed[:, 0], 2), size).reshape(count, -1)
        of_bucket = counted + PRIOR_SAMPLES * np.eye(count, count + 1) * PRIOR_STAY
        of_bucket[:, -1] += PRIOR_SAMPLES * (1.0 - PRIOR_STAY)
        of_bucket /= of_bucket.sum(axis=1, keepdims=True)
        chances: Floats = (own + PRIOR_SAMPLES * of_bucket) / (own.sum(axis=1, keepdims=True) + PRIOR_SAMPLES)
        return chances[:, :-1]


class _Positions(NamedTuple):
    """Where moves count in a flat (places, places and elsewhere)."""

    known: Integers
    """Which of the moves begin in one of the places."""
    of_place: Integers
    of_bucket: Integers
    """Twice as many: what a move tells of its bucket holds for both places of it."""


@lru_cache(maxsize=256)
def _positions(moves: tuple[Move, ...], places: tuple[Place, ...]) -> _Positions:
    """Of two places of a bucket the one that does not fall comes first."""
    first = {place.bucket: position for position, place in enumerate(places) if not place.is_falling}
    elsewhere, columns = len(places), len(places) + 1
    known: list[int] = []
    of_place: list[int] = []
    rising: list[int] = []
    falling: list[int] = []
    for number, (origin, target) in enumerate(moves):
        at, to = first.get(origin.bucket), first.get(target.bucket)
        if at is None:
            continue
        known.append(number)
        of_place.append((at + origin.is_falling) * columns + (elsewhere if to is None else to + target.is_falling))
        for is_falling, of_bucket in ((False, rising), (True, falling)):
            towards = is_falling if to == at else target.is_falling
            of_bucket.append((at + is_falling) * columns + (elsewhere if to is None else to + towards))
    return _Positions(*(np.array(numbers, dtype=np.int64) for numbers in (known, of_place, rising + falling)))
