"""How the load of a group's replicas moves between batch buckets, as their reports show it, second by second.

What a restart earns hangs on it (on_time.py), so no single replica may decide it (INV-10): in a group of three or more nobody
is believed to leave more often than others do. One that claims to stay where others seldom are is believed, as is any whose load
is steady. Fails towards knowing less: what a replica did while it was not heard counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from types import MappingProxyType
from typing import Final, NamedTuple

from nightjar.policy.evidence.robust import LEAST_REPLICAS
from nightjar.policy.wire.batch_buckets import batch_bucket

IDLE: Final = -1
"""The bucket of a replica without decode rows. It ends an ON time: after it nothing lags, and a restart is free anyhow."""
SAMPLE_PERIOD_S: Final = 1.0
"""Between two looks at a replica's batch."""
LONGEST_SAMPLE_S: Final = 3.0
"""A replica whose reports were missing for longer was not seen moving."""
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

    of_bucket: float
    of_state: float

    def plus(self, other: TransitionWeight) -> TransitionWeight:
        """Both together."""
        return TransitionWeight(self.of_bucket + other.of_bucket, self.of_state + other.of_state)

    def times(self, share: float) -> TransitionWeight:
        """A share of it."""
        return TransitionWeight(self.of_bucket * share, self.of_state * share)


NO_WEIGHT: Final = TransitionWeight(0.0, 0.0)


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
            elif now_s - before.at_s > LONGEST_SAMPLE_S:
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
