"""Who measures what: cells worth a measurement become short pinned segments, dealt to replicas that are in that bucket now.

A cell is with one replica at a time, or with as many different ones as the group's quorum still lacks. A segment ends when
its replica says so, when the cell is not worth it any more, when the replica left the bucket or the fleet, or after its time
to live; what is still missing then is dealt again under a new id. What a segment counted before it was lost is not lost:
counters are cumulative. The tokens that segments are expected to lose come out of an allowance (INV-3). Fails towards less
exploration: no replica in the bucket or no allowance, no measurement.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nightjar.policy.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.evidence import Cell
from nightjar.policy.merging import LEAST_STEPS, Pending, quorum
from nightjar.policy.planners.calibration import Measurement
from nightjar.policy.planners.planner import GroupView, batch_range
from nightjar.policy.records import ExplorationSegment

MAX_SEGMENTS_PER_REPLICA: Final = 2
"""One to run and one to follow without a gap; more would only be dealt before the first one's result is known."""
TIME_TO_LIVE_S: Final = 30.0
"""Long enough for ten CPU steps of half a second at the wrong K behind another segment."""
DELIVERY_S: Final = 5.0
"""What the way to the replica may take on top before the policy counts a segment as lost."""
LEFT_BUCKET_S: Final = 3.0
"""A batch that flickers across a bucket's edge keeps its segment at least this long."""
ROUND_S: Final = 2.0
"""A quorum is asked together, or within this time."""
FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 120.0
"""Pause after the first round of a cell, and the longest: what has just been measured is not in doubt for lack of a measurement."""
OUTPUT_SHARE: Final = 0.01
"""Of a group's generated tokens, what exploration may lose in the long run (INV-3)."""
COLD_START_TOKENS_PER_ROW: Final = 100.0
"""Tokens a row that a group may lose before it earned an allowance, for each voice that it needs: all arms of a bucket or two."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Tokens that a group's exploration may still lose, and the most decode rows for which a cold start was granted."""

    tokens: float = 0.0
    most_rows: float = 0.0

    @property
    def most_tokens(self) -> float:
        """What is saved up is never more: a cold start's grant, so that a quiet day does not pay for a wild hour."""
        return COLD_START_TOKENS_PER_ROW * self.most_rows

    def earn(self, generated_tokens: float, rows: float) -> Allowance:
        """The allowance after `generated_tokens` more, in a group that runs `rows` decode rows, counted once for each voice needed.

        >>> Allowance().earn(0.0, 4.0), Allowance(5.0, 4.0).earn(1000.0, 2.0)
        (Allowance(tokens=400.0, most_rows=4.0), Allowance(tokens=15.0, most_rows=4.0))
        """
        most_rows = max(self.most_rows, rows)
        grant = COLD_START_TOKENS_PER_ROW * (most_rows - self.most_rows)
        earned = Allowance(self.tokens + grant + OUTPUT_SHARE * generated_tokens, most_rows)
        return Allowance(min(earned.tokens, earned.most_tokens), most_rows)

    def spend(self, tokens: float) -> Allowance:
        """The allowance after a measurement that is expected to lose `tokens`."""
        return Allowance(self.tokens - tokens, self.most_rows)


@dataclass(frozen=True, slots=True)
class Round:
    """How often a cell's measurement was begun, and when last."""

    number: int
    began_s: float

    def may_ask(self, now_s: float) -> bool:
        """Whether a replica may be asked at `now_s`: in the round's first moments, or once its pause is over.

        >>> [Round(1, 100.0).may_ask(at_s) for at_s in (101.0, 105.0, 111.0)]
        [True, False, True]
        """
        return not ROUND_S < now_s - self.began_s < self.pause_s

    @property
    def pause_s(self) -> float:
        """Seconds from the round's beginning to the next: doubled each time, so that no tie is measured for ever."""
        return min(FIRST_PAUSE_S * 2.0 ** min(self.number - 1, 16), LONGEST_PAUSE_S)

    def asked(self, now_s: float) -> Round:
        """The round in which a replica is asked at `now_s`."""
        return self if now_s - self.began_s <= ROUND_S else Round(self.number + 1, now_s)


Rounds = Mapping[Cell, Round]


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A measurement under way."""

    segment: ExplorationSegment
    replica_id: str
    cell: Cell
    dealt_at_s: float


@dataclass(frozen=True, slots=True)
class Exploration:
    """A group's measurements under way, what they may still cost, and which cells were measured how often."""

    segments: tuple[OpenSegment, ...] = ()
    allowance: Allowance = field(default_factory=Allowance)
    rounds: Rounds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explorer:
    """A replica that may be asked to measure: its batch now (0: idle), the last segment it finished, and the tokens that it
    would lose until its drafter can draft (0: it could in the next step)."""

    decode_batch_size: int
    finished_segment_id: int
    restart_tokens: float = 0.0

    @property
    def bucket(self) -> int | None:
        """Batch bucket it runs in; None while idle."""
        return batch_bucket(self.decode_batch_size) if self.decode_batch_size else None


def deal(
    view: GroupView,
    wanted: Mapping[int, Sequence[Measurement]],
    explorers: Mapping[str, Explorer],
    pending: Mapping[str, Pending],
    before: Exploration,
    next_segment_id: int,
    rng: random.Random,
) -> Exploration:
    """The exploration after this tick: the old segments that still make sense first, then new ones.

    `wanted` says by bucket what is worth measuring; `pending` names every live replica of the group, `explorers` those that may
    be asked. Dealt is what is worth most for its cost where most replicas are; where the allowance does not reach for that, it
    is saved up for it. New segments have ids from `next_segment_id` up.
    """
    needed = quorum(len(pending))
    worth = {one.cell for found in wanted.values() for one in found}
    allowance, rounds = before.allowance, dict(before.rounds)
    open_segments = [
        held for held in before.segments if held.cell in worth and _still_runs(held, explorers, pending, needed, view.now_s)
    ]
    by_bucket: dict[int, list[str]] = {}
    for replica_id in sorted(explorers):
        bucket = explorers[replica_id].bucket
        if bucket is not None and bucket in wanted:
            by_bucket.setdefault(bucket, []).append(replica_id)
    ranked = sorted(
        (measurement for bucket in by_bucket for measurement in wanted[bucket]),
        key=lambda one: (-one.worth * len(by_bucket[one.cell[0]]) / (one.cost_tokens + 1.0), one.cell),
    )
    for cell, _, cost_tokens in ranked:
        round_ = rounds.get(cell, Round(0, -math.inf))
        if not round_.may_ask(view.now_s):
            continue
        drafting = {held.replica_id for held in open_segments if held.cell[1]}
        for replica_id in _askable(cell, by_bucket[cell[0]], explorers, pending, open_segments, needed, rng):
            restart = explorers[replica_id].restart_tokens if cell[1] and replica_id not in drafting else 0.0
            if cost_tokens + restart > allowance.most_tokens:
                continue
            if cost_tokens + restart > allowance.tokens:
                return Exploration(tuple(open_segments), allowance, rounds)
            allowance = allowance.spend(cost_tokens + restart)
            segment = _segment(next_segment_id + len(open_segments), cell, view)
            open_segments.append(OpenSegment(segment, replica_id, cell, view.now_s))
            rounds[cell] = round_ = round_.asked(view.now_s)
    return Exploration(tuple(open_segments), allowance, rounds)


def in_words(segments: Sequence[ExplorationSegment]) -> str:
    """What a replica measures, as an operator reads it: `measuring K=5 at batch 1`."""
    return ", ".join(
        f"measuring K={segment.num_speculative_tokens} at batch {batch_range(segment.first_batch_size, segment.last_batch_size)}"
        for segment in segments
    )


def _still_runs(
    held: OpenSegment, explorers: Mapping[str, Explorer], pending: Mapping[str, Pending], needed: int, now_s: float
) -> bool:
    explorer = explorers.get(held.replica_id)
    if explorer is None or explorer.finished_segment_id >= held.segment.segment_id:
        return False
    age_s = now_s - held.dealt_at_s
    inside = held.segment.first_batch_size <= explorer.decode_batch_size <= held.segment.last_batch_size
    left = not inside and age_s > LEFT_BUCKET_S
    said_enough = needed > 1 and pending[held.replica_id].has_voice(held.cell)
    return not (left or said_enough or age_s > TIME_TO_LIVE_S + DELIVERY_S)


def _askable(
    cell: Cell,
    in_bucket: Sequence[str],
    explorers: Mapping[str, Explorer],
    pending: Mapping[str, Pending],
    open_segments: Sequence[OpenSegment],
    needed: int,
    rng: random.Random,
) -> list[str]:
    """Replicas to ask for `cell` now: as many as the quorum lacks, none twice, none with its hands full.

    Those come first whose drafter is in the right state: a dormant one has to catch up before it can draft, and after it was off.
    """
    asked = {held.replica_id for held in open_segments if held.cell == cell}
    heard = {replica_id for replica_id, waiting in pending.items() if waiting.has_voice(cell)} if needed > 1 else set()
    lacking = needed - len(asked | heard)
    if lacking <= 0:
        return []
    load = Counter(held.replica_id for held in open_segments)
    free = [
        replica_id
        for replica_id in in_bucket
        if replica_id not in asked and replica_id not in heard and load[replica_id] < MAX_SEGMENTS_PER_REPLICA
    ]
    shuffled = rng.sample(free, len(free))
    sign = 1.0 if cell[1] else -1.0
    return sorted(shuffled, key=lambda replica_id: (load[replica_id], sign * explorers[replica_id].restart_tokens))[:lacking]


def _segment(segment_id: int, cell: Cell, view: GroupView) -> ExplorationSegment:
    """The measurement as the engine gets it. A group that has seen but one K fills up in its first seconds, and its drafters fall
    behind as soon as its first plan says off: there a segment runs at whatever batch comes, four times fuller at most."""
    bucket, length = cell
    first, last = bucket_range(bucket, view.key.max_num_seqs)
    if len({seen for _, seen in view.evidence.cells}) < 2:
        first, last = 1, min(4 * last, view.key.max_num_seqs)
    return ExplorationSegment(
        segment_id=segment_id,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=length,
        clean_steps=max(view.settings.calibration_clean_steps, int(LEAST_STEPS)),
        time_to_live_s=TIME_TO_LIVE_S,
    )
