"""How long speculation will stay on once it is, and what that is worth: a chain over the places where the load was seen to stand.

A restart is an investment: paid now, earned back while the load stays where speculation pays. How long that is depends on
where the load stands (deep in the quiet, or at the crossover) and whether it falls, so the chain tells it by place;
docs/restarts.md compares it with the mean length of past ON times. Fails towards a short ON time: what was never seen is taken to
end in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.load_moves import HALF_LIFE_S, NOT_SEEN, SAMPLE_PERIOD_S, Believed, Move, Place

Floats = npt.NDArray[np.float64]

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
    """Decayed counts of moves, of all replicas of a group."""

    counts: Mapping[Move, Believed] = field(default_factory=dict)
    at_s: float = 0.0

    def plus(self, seen: Mapping[Move, Believed], now_s: float) -> Moves:
        """These moves aged until `now_s`, and those seen since."""
        share_left = 0.5 ** (max(now_s - self.at_s, 0.0) / HALF_LIFE_S)
        aged = {move: count.times(share_left) for move, count in self.counts.items()}
        counts = {move: count for move, count in aged.items() if max(count) > LEAST_BELIEVED}
        for move, count in seen.items():
            counts[move] = counts.get(move, NOT_SEEN).plus(count)
        return Moves(counts, now_s)

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
        kept = is_on
        while True:
            values = np.zeros(len(places))
            values[kept] = np.linalg.solve(np.eye(int(kept.sum())) - discounted[np.ix_(kept, kept)], per_sample[kept])
            borne = kept | (per_sample + discounted @ values > 0.0)
            if (borne == kept).all():
                return {place: float(value) for place, value, on in zip(places, values, is_on, strict=True) if on}
            kept = borne

    def _chances(self, places: Sequence[Place]) -> Floats:
        """(places, places): that a replica is there a sample later; a row's rest goes where none of these is.

        The two places of a bucket stand side by side, the one that is not falling first.
        """
        first = {place.bucket: position for position, place in enumerate(places) if not place.is_falling}
        own, of_bucket = np.zeros((2, len(places), len(places)))
        seen, seen_of_bucket = np.zeros(len(places)), np.full(len(places), PRIOR_SAMPLES)
        np.fill_diagonal(of_bucket, PRIOR_SAMPLES * PRIOR_STAY)
        for (origin, target), count in self.counts.items():
            at, to = first.get(origin.bucket), first.get(target.bucket)
            if at is None:
                continue
            seen[at + origin.is_falling] += count.of_place
            seen_of_bucket[at : at + 2] += count.of_bucket
            if to is None:
                continue
            own[at + origin.is_falling, to + target.is_falling] += count.of_place
            for is_falling in (False, True):
                of_bucket[at + is_falling, to + (is_falling if to == at else target.is_falling)] += count.of_bucket
        chances: Floats = (own + PRIOR_SAMPLES * of_bucket / seen_of_bucket[:, None]) / (seen + PRIOR_SAMPLES)[:, None]
        return chances
