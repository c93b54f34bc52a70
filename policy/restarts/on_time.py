"""How long speculation will stay on once it is, and what that is worth: a chain over the states where the load was seen to stand.

A restart is an investment: paid now, earned back while the load stays where speculation pays. How long that is depends on
where the load stands (deep in the quiet, or at the crossover) and whether it falls, so the chain tells it by state;
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

from nightjar.policy.restarts.load_transitions import (
    HALF_LIFE_S,
    NO_WEIGHT,
    SAMPLE_PERIOD_S,
    LoadState,
    Transition,
    TransitionWeight,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HORIZON_SAMPLES: Final = 120.0
"""Value is counted over so many samples at most: nobody knows the load of the next hour."""
PRIOR_SAMPLES: Final = 5.0
PRIOR_STAY: Final = 0.9
"""Before evidence a bucket is left after ten samples, and speculation then ends; this weighs as much as five seen transitions."""
LEAST_WEIGHT: Final = 1e-3
"""A move that has decayed to less is forgotten."""

Values = Mapping[LoadState, float]
"""Tokens that speculation earns from now until the load leaves for good, by present state."""


@dataclass(frozen=True, slots=True)
class TransitionCounts:
    """Decayed counts of transitions, of all replicas of a group. Old counts do not shrink, new ones grow: so a look costs what it
    brings.

    `weighed` are the counts as they were worth at `since_s`, and one made later counts that much more.
    """

    weighed: Mapping[Transition, TransitionWeight] = field(default_factory=dict)
    since_s: float = 0.0
    at_s: float = 0.0

    @property
    def counts(self) -> dict[Transition, TransitionWeight]:
        """What each move counts at `at_s`, without what has decayed to nothing."""
        aged = {transition: count.times(self._share_left) for transition, count in self.weighed.items()}
        return {transition: count for transition, count in aged.items() if max(count) > LEAST_WEIGHT}

    @property
    def _share_left(self) -> float:
        share_left: float = 0.5 ** (max(self.at_s - self.since_s, 0.0) / HALF_LIFE_S)
        return share_left

    def plus(self, seen: Mapping[Transition, TransitionWeight], now_s: float) -> TransitionCounts:
        """These moves aged until `now_s`, and those seen since."""
        aged = TransitionCounts(self.weighed, self.since_s, max(now_s, self.at_s))
        if aged._share_left < LEAST_WEIGHT:  # before a new count is worth so much that floats lose the old ones
            aged = TransitionCounts(aged.counts, aged.at_s, aged.at_s)
        weighed, weight = dict(aged.weighed), 1.0 / aged._share_left
        for transition, count in seen.items():
            weighed[transition] = weighed.get(transition, NO_WEIGHT).plus(count.times(weight))
        return TransitionCounts(weighed, aged.since_s, aged.at_s)

    def value_tokens(self, gains_tokens_per_s: Mapping[int, float], lag_costs_tokens_per_s: Mapping[int, float]) -> Values:
        """The values where speculation adds `gains_tokens_per_s`, in each bucket where it is on.

        In another bucket it is off and the drafter falls behind, which costs so many tokens a second to recompute; one that
        `lag_costs_tokens_per_s` does not name ends the ON time. An excursion is borne where that is worth more than giving up:
        V = max(0, D + g P V) there, V = D + g P V where it is on, with g = 1 - 1/HORIZON_SAMPLES and D what one sample gives.
        A state that was seldom seen moves as its bucket does, whatever came before, and a bucket that was seldom seen as the
        prior says.
        """
        if not gains_tokens_per_s:
            return {}
        per_second = {bucket: -cost for bucket, cost in lag_costs_tokens_per_s.items()} | dict(gains_tokens_per_s)
        states = [LoadState(bucket, is_falling) for bucket in sorted(per_second) for is_falling in (False, True)]
        per_sample = np.array([per_second[state.bucket] for state in states]) * SAMPLE_PERIOD_S
        is_on = np.array([state.bucket in gains_tokens_per_s for state in states])
        discounted = (1.0 - 1.0 / HORIZON_SAMPLES) * self._chances(states)
        kept, identity = is_on, np.eye(len(states))
        while True:
            values = np.linalg.solve(identity - kept[:, None] * discounted, kept * per_sample)
            borne = kept | (per_sample + discounted @ values > 0.0)
            if (borne == kept).all():
                return {state: float(value) for state, value, on in zip(states, values, is_on, strict=True) if on}
            kept = borne

    def _chances(self, states: Sequence[LoadState]) -> Floats:
        """(states, states): that a replica is there a sample later; a row's rest goes where none of these is."""
        count = len(states)
        at = _positions(tuple(self.weighed), tuple(states))
        weights = np.array(list(self.weighed.values()), dtype=float).reshape(-1, 2)[at.known] * self._share_left
        size = count * (count + 1)
        own = np.bincount(at.of_state, weights[:, 1], size).reshape(count, -1)
        counted = np.bincount(at.of_bucket, np.tile(weights[:, 0], 2), size).reshape(count, -1)
        of_bucket = counted + PRIOR_SAMPLES * np.eye(count, count + 1) * PRIOR_STAY
        of_bucket[:, -1] += PRIOR_SAMPLES * (1.0 - PRIOR_STAY)
        of_bucket /= of_bucket.sum(axis=1, keepdims=True)
        chances: Floats = (own + PRIOR_SAMPLES * of_bucket) / (own.sum(axis=1, keepdims=True) + PRIOR_SAMPLES)
        return chances[:, :-1]


class _Positions(NamedTuple):
    """Where transitions count in a flat (states, states and elsewhere)."""

    known: Integers
    """Which of the transitions begin in one of the states."""
    of_state: Integers
    of_bucket: Integers
    """Twice as many: what a transition tells of its bucket holds for both states of it."""


@lru_cache(maxsize=256)
def _positions(transitions: tuple[Transition, ...], states: tuple[LoadState, ...]) -> _Positions:
    """Of two states of a bucket the one that does not fall comes first."""
    first = {state.bucket: position for position, state in enumerate(states) if not state.is_falling}
    elsewhere, columns = len(states), len(states) + 1
    known: list[int] = []
    of_state: list[int] = []
    rising: list[int] = []
    falling: list[int] = []
    for number, (origin, target) in enumerate(transitions):
        at, to = first.get(origin.bucket), first.get(target.bucket)
        if at is None:
            continue
        known.append(number)
        of_state.append((at + origin.is_falling) * columns + (elsewhere if to is None else to + target.is_falling))
        for is_falling, of_bucket in ((False, rising), (True, falling)):
            towards = is_falling if to == at else target.is_falling
            of_bucket.append((at + is_falling) * columns + (elsewhere if to is None else to + towards))
    return _Positions(*(np.array(numbers, dtype=np.int64) for numbers in (known, of_state, rising + falling)))
