"""Who measures what: missing cells become short pinned segments, dealt to replicas that are in that batch bucket now.

A cell is with one replica at a time, or with as many different ones as the group's quorum still lacks. A segment ends when
its replica says so, when the cell is known, when the replica left the bucket or the fleet, or after its time to live;
what is still missing then is dealt again under a new id. What a segment counted before it was lost is not lost: counters
are cumulative. Fails towards less exploration: no replica in the bucket, no measurement.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nightjar.policy.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.evidence import Cell
from nightjar.policy.merging import LEAST_STEPS, Pending, quorum
from nightjar.policy.planners.calibration import missing_measurements
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


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A measurement under way."""

    segment: ExplorationSegment
    replica_id: str
    cell: Cell
    dealt_at_s: float


@dataclass(frozen=True, slots=True)
class Explorer:
    """A replica that may be asked to measure: its batch now (0: idle) and the last segment it finished."""

    decode_batch_size: int
    finished_segment_id: int

    @property
    def bucket(self) -> int | None:
        """Batch bucket it runs in; None while idle."""
        return batch_bucket(self.decode_batch_size) if self.decode_batch_size else None


def deal(
    view: GroupView,
    explorers: Mapping[str, Explorer],
    pending: Mapping[str, Pending],
    dealt: Sequence[OpenSegment],
    next_segment_id: int,
    now_s: float,
    rng: random.Random,
) -> tuple[OpenSegment, ...]:
    """The segments open from now on: the old ones that still make sense, then new ones with ids from `next_segment_id` up.

    `pending` names every live replica of the group; `explorers` those that may be asked.
    """
    buckets = sorted({explorer.bucket for explorer in explorers.values() if explorer.bucket is not None})
    needed = quorum(len(pending))
    open_segments = [held for held in dealt if _still_runs(held, view, explorers, pending, needed, now_s)]
    for bucket in buckets:
        in_bucket = sorted(replica_id for replica_id, explorer in explorers.items() if explorer.bucket == bucket)
        for length in missing_measurements(view, bucket):
            cell = (bucket, length)
            for replica_id in _askable(cell, in_bucket, pending, open_segments, needed, rng):
                segment_id = next_segment_id + len(open_segments)
                open_segments.append(OpenSegment(_segment(segment_id, cell, view), replica_id, cell, now_s))
    return tuple(open_segments)


def in_words(segments: Sequence[ExplorationSegment]) -> str:
    """What a replica measures, as an operator reads it: `measuring K=5 at batch 1`."""
    return ", ".join(
        f"measuring K={segment.num_speculative_tokens} at batch {batch_range(segment.first_batch_size, segment.last_batch_size)}"
        for segment in segments
    )


def _still_runs(
    held: OpenSegment,
    view: GroupView,
    explorers: Mapping[str, Explorer],
    pending: Mapping[str, Pending],
    needed: int,
    now_s: float,
) -> bool:
    explorer = explorers.get(held.replica_id)
    if explorer is None or explorer.finished_segment_id >= held.segment.segment_id:
        return False
    age_s = now_s - held.dealt_at_s
    left = explorer.bucket != held.cell[0] and age_s > LEFT_BUCKET_S
    said_enough = needed > 1 and pending[held.replica_id].has_voice(held.cell)
    return not (left or said_enough or age_s > TIME_TO_LIVE_S + DELIVERY_S or view.is_measured(*held.cell))


def _askable(
    cell: Cell,
    in_bucket: Sequence[str],
    pending: Mapping[str, Pending],
    open_segments: Sequence[OpenSegment],
    needed: int,
    rng: random.Random,
) -> list[str]:
    """Replicas to ask for `cell` now: as many as the quorum lacks, none twice, none with its hands full."""
    asked = {held.replica_id for held in open_segments if held.cell == cell}
    heard = {replica_id for replica_id, waiting in pending.items() if waiting.has_voice(cell)} if needed > 1 else set()
    lacking = needed - len(asked | heard)
    if lacking <= 0:
        return []
    load = [held.replica_id for held in open_segments]
    free = [
        replica_id
        for replica_id in in_bucket
        if replica_id not in asked and replica_id not in heard and load.count(replica_id) < MAX_SEGMENTS_PER_REPLICA
    ]
    return rng.sample(free, min(lacking, len(free)))


def _segment(segment_id: int, cell: Cell, view: GroupView) -> ExplorationSegment:
    bucket, length = cell
    first, last = bucket_range(bucket, view.key.max_num_seqs)
    return ExplorationSegment(
        segment_id=segment_id,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=length,
        clean_steps=max(view.settings.calibration_clean_steps, int(LEAST_STEPS)),
        time_to_live_s=TIME_TO_LIVE_S,
    )
