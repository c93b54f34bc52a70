"""How long speculation will stay on once it is, and what that is worth: a chain over the states where the load was seen to stand.

Replicas' reports show, second by second, how their load moves between batch buckets. A restart is an investment: paid now, earned
back while the load stays where speculation pays. How long that is depends on where the load stands (deep in the quiet, or at the
crossover) and whether it falls, so the chain tells it by state; docs/restarts.md compares it with the mean length of past ON times.
No single replica may decide it (INV-10): in a group of three or more, none is taken to leave more often than others do. One that
claims to stay where others seldom are is believed, as is any whose load is steady. Fails towards a short ON time: what was never
seen is taken to end in seconds, and what a replica did while it was not heard counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nlargest
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.goodput import HORIZON_S
from nightjar.policy.evidence.robust import LEAST_REPLICAS
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.operator import LEAST_PERIODS

IDLE: Final = -1
"""The bucket of a replica without decode rows. It ends an ON time: after it nothing lags, and a restart is free anyhow."""
SAMPLE_PERIOD_S: Final = 1.0
"""Between two looks at a replica's batch. One whose reports were missing for LEAST_PERIODS of them was not seen moving."""
HALF_LIFE_S: Final = 600.0
"""After which a transition counts half: load has habits of minutes, and forgets those of hours."""


class LoadState(NamedTuple):
    """Where a replica's load stands: its bucket, and whether it came there from a fuller one.

    A load that falls goes on falling more often than not. Without that, a crossover that is passed both ways counts half of the
    times when speculation was on already, and went off in the next second.
    """

    bucket: int
    is_falling: bool


Transition = tuple[LoadState, LoadState]
"""From one state to another (or the same) within one sample."""


class TransitionWeight(NamedTuple):
    """How often a transition was made, as far as that counts for its bucket, whatever came before, and for its very state."""

    of_bucket: float = 0.0
    of_state: float = 0.0

    def plus(self, other: TransitionWeight) -> TransitionWeight:
        """Both together."""
        return TransitionWeight(self.of_bucket + other.of_bucket, self.of_state + other.of_state)

    def times(self, share: float) -> TransitionWeight:
        """A share of it."""
        return TransitionWeight(self.of_bucket * share, self.of_state * share)


NO_WEIGHT: Final = TransitionWeight()


class Times(NamedTuple):
    """How often a replica did something, which decays, and when it did so last."""

    number: float = 0.0
    at_s: float = 0.0

    def at(self, now_s: float) -> float:
        """How often until `now_s`."""
        share_left: float = 0.5 ** (max(now_s - self.at_s, 0.0) / HALF_LIFE_S)
        return self.number * share_left

    def once_more(self, now_s: float) -> Times:
        """With one time at `now_s`."""
        return Times(self.at(now_s) + 1.0, now_s)


NEVER: Final = Times()


class LastSeen(NamedTuple):
    """A replica as it was last looked at: its state, when that was, and how often it has left each state, and any."""

    state: LoadState
    at_s: float
    left: Mapping[LoadState, Times] = MappingProxyType({})
    left_any: Times = NEVER

    def then(self, state: LoadState, now_s: float) -> LastSeen:
        """The same replica, seen in `state` at `now_s`."""
        if state.bucket == self.state.bucket:
            return self._replace(state=state, at_s=now_s)
        left = {**self.left, self.state: self.left.get(self.state, NEVER).once_more(now_s)}
        return LastSeen(state, now_s, left, self.left_any.once_more(now_s))


@dataclass(frozen=True, slots=True)
class LoadTracker:
    """Where each replica of a group was when it was last looked at; O(replicas * buckets) (INV-8)."""

    seen: Mapping[str, LastSeen] = field(default_factory=dict)

    def state(self, replica_id: str, bucket: int) -> LoadState:
        """Where a replica in `bucket` stands. One that nobody saw come is taken to fall: who has to restart was off before."""
        before = self.seen.get(replica_id)
        return LoadState(bucket, is_falling=True) if before is None else _next(before.state, bucket)

    def look(self, decode_batch_sizes: Mapping[str, int], now_s: float) -> tuple[LoadTracker, dict[Transition, TransitionWeight]]:
        """Look at the batches reported by now, and what moved since the look before, at most once a sample.

        In a group of three or more no replica is believed to leave more often than others do, or one that jumps every second would
        end everybody's ON time (INV-10). Of buckets the most restless one's changes count as if it had made one more than the
        second most restless. Of a state, which may be one that hardly anybody else has visited, what it does counts as if it had
        left it as often as the second most.
        """
        seen: dict[str, LastSeen] = {}
        looked: list[tuple[LoadState, LastSeen]] = []
        for replica_id, batch in decode_batch_sizes.items():
            before = self.seen.get(replica_id)
            state = self.state(replica_id, batch_bucket(batch) if batch else IDLE)
            if before is None:
                seen[replica_id] = LastSeen(state, now_s)
            elif now_s - before.at_s < 0.9 * SAMPLE_PERIOD_S:
                seen[replica_id] = before
            elif now_s - before.at_s > LEAST_PERIODS * SAMPLE_PERIOD_S:
                seen[replica_id] = before._replace(state=state, at_s=now_s)
            else:
                seen[replica_id] = before.then(state, now_s)
                looked.append((before.state, seen[replica_id]))
        credit = _Credit(list(seen.values()), now_s)
        transitions: dict[Transition, TransitionWeight] = {}
        for origin, now in looked:
            transitions[origin, now.state] = transitions.get((origin, now.state), NO_WEIGHT).plus(credit.of(origin, now))
        return LoadTracker(seen), transitions


class _Credit:
    """How far a group's replicas are believed in one look."""

    def __init__(self, seen: Sequence[LastSeen], now_s: float) -> None:
        self._seen = seen
        self._now_s = now_s
        self._most_left: dict[LoadState, float] = {}
        self._has_quorum = len(seen) >= LEAST_REPLICAS
        self._most_left_any = 1.0 + _second([last_seen.left_any.at(now_s) for last_seen in seen]) if self._has_quorum else 0.0

    def of(self, origin: LoadState, now: LastSeen) -> TransitionWeight:
        """What counts of a replica's move from `origin`, or of its staying there."""
        if not self._has_quorum:
            return TransitionWeight(1.0, 1.0)
        has_left = now.state.bucket != origin.bucket
        own = now.left.get(origin, NEVER).at(self._now_s)
        return TransitionWeight(
            min(1.0, self._most_left_any / now.left_any.at(self._now_s)) if has_left else 1.0,
            min(1.0, self._left(origin) / own) if own else 1.0,
        )

    def _left(self, state: LoadState) -> float:
        """How often the second most has left a state."""
        found = self._most_left.get(state)
        if found is None:
            found = self._most_left[state] = _second([last_seen.left.get(state, NEVER).at(self._now_s) for last_seen in self._seen])
        return found


def _second(values: Sequence[float]) -> float:
    return nlargest(2, values)[1]


def _next(before: LoadState, bucket: int) -> LoadState:
    return LoadState(bucket, is_falling=bucket < before.bucket if bucket != before.bucket else before.is_falling)


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

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
        V = max(0, D + g P V) there, V = D + g P V where it is on, with g = 1 - SAMPLE_PERIOD_S / HORIZON_S and D what one sample
        gives.
        A state that was seldom seen moves as its bucket does, whatever came before, and a bucket that was seldom seen as the
        prior says.
        """
        if not gains_tokens_per_s:
            return {}
        per_second = {bucket: -cost for bucket, cost in lag_costs_tokens_per_s.items()} | dict(gains_tokens_per_s)
        states = [LoadState(bucket, is_falling) for bucket in sorted(per_second) for is_falling in (False, True)]
        per_sample = np.array([per_second[state.bucket] for state in states]) * SAMPLE_PERIOD_S
        is_on = np.array([state.bucket in gains_tokens_per_s for state in states])
        discounted = (1.0 - SAMPLE_PERIOD_S / HORIZON_S) * self._chances(states)
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
