"""Who measures what: cells worth a measurement become short pinned segments, dealt to replicas that are in that bucket now.

A cell is with one replica at a time, so that many cells are measured at once, and the next time with another. A segment ends when
its replica says so, when the cell is not worth it any more, when the replica left the bucket or the fleet, or after its time to
live; what is still missing then is dealt again under a new id. What a segment counted before it was lost is not lost: counters are
cumulative. The tokens that segments are expected to lose come out of an allowance (INV-3): a share of the group's output, and a
grant for a cold start. Measurements that pay back soon draw on all that is left; those that can wait draw on a smaller share of
the output as well, so that a group whose plan is settled does not pay for curiosity all day. Fails towards less exploration: no
replica in the bucket or no allowance, no measurement; and what is saved up is bounded.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nightjar.policy.evidence.cells import Cell
from nightjar.policy.evidence.contributions import Contributions
from nightjar.policy.evidence.goodput import HORIZON_S
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.calibration import Measurement
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.cause import Causes, Code, in_batches
from nightjar.policy.wire.settings import DELIVERY_S, ExplorationSegment

OUTPUT_SHARE: Final = 0.01
"""Of a group's generated tokens, what exploration may lose in the long run (INV-3)."""
PATIENT_SHARE: Final = 0.003
"""The same for measurements that can wait: a bucket whose plan is settled is not to pay for curiosity all day."""
COLD_START_TOKENS_PER_ROW: Final = 100.0
"""Tokens a row that a group may lose before it earned an allowance, three times over in a
group of three or more: all K of a bucket or two."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Tokens that a group's exploration may still lose, the most decode rows for which a cold start was granted, and the tokens
    that measurements which can wait may take of them."""

    tokens: float = 0.0
    most_rows: float = 0.0
    patient_tokens: float = 0.0

    @property
    def most_tokens(self) -> float:
        """What is saved up is never more: a cold start's grant, so that a quiet day does not pay for a wild hour."""
        return COLD_START_TOKENS_PER_ROW * self.most_rows

    def earn(self, generated_tokens: float, rows: float) -> Allowance:
        """The allowance after `generated_tokens` more, in a group that runs `rows` decode rows, three times over where it has three
        replicas or more.

        >>> Allowance().earn(0.0, 4.0), Allowance(5.0, 4.0).earn(1000.0, 2.0)
        (Allowance(tokens=400.0, most_rows=4.0, patient_tokens=0.0), Allowance(tokens=15.0, most_rows=4.0, patient_tokens=3.0))
        """
        after = replace(self, most_rows=max(self.most_rows, rows))
        granted = after.most_tokens - self.most_tokens
        return replace(
            after,
            tokens=min(self.tokens + granted + OUTPUT_SHARE * generated_tokens, after.most_tokens),
            patient_tokens=min(self.patient_tokens + PATIENT_SHARE * generated_tokens, after.most_tokens),
        )

    def reaches_for(self, tokens: float, can_wait: bool) -> bool:
        """Whether a measurement may lose so many tokens now."""
        return tokens <= (min(self.tokens, self.patient_tokens) if can_wait else self.tokens)

    def spend(self, tokens: float, can_wait: bool) -> Allowance:
        """The allowance after a measurement that is expected to lose `tokens`."""
        waited = tokens if can_wait else 0.0
        return replace(self, tokens=self.tokens - tokens, patient_tokens=self.patient_tokens - waited)


MAX_SEGMENTS_PER_REPLICA: Final = 2
"""One to run and one to follow without a gap; more would only be dealt before the first one's result is known."""
TIME_TO_LIVE_S: Final = 30.0
"""Long enough for ten CPU steps of half a second at the wrong K behind another segment."""
LEFT_BUCKET_S: Final = 5.0
"""Outside its bucket for so long a replica loses its segment: a batch flickers across an edge whenever a request ends."""
FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 120.0
"""Of one replica, after the first round that was heard, and the longest: what was just measured is in doubt, but not unmeasured.
The longest also for what was measured elsewhere (priors.py), though it weighs less here than there and two K nearly tie: a cluster
that takes over has its first minutes for its traffic, not for what its predecessor knew."""


@dataclass(frozen=True, slots=True)
class Round:
    """How often a cell's measurement was begun and heard of, and when it began last."""

    number: int
    began_s: float

    def may_ask(self, now_s: float, measured_at_s: float, replicas: float) -> bool:
        """Whether one of so many `replicas` may be asked at `now_s`; the cell was last heard of at `measured_at_s`.

        What a round still lacks is asked for again after DELIVERY_S; one that was heard is followed by a pause, doubled each time,
        so that no tie is measured for ever. Each replica pauses as long as one alone would, so that a group looks again sooner.

        >>> [Round(1, 100.0).may_ask(at_s, 90.0, replicas=1) for at_s in (100.0, 104.0, 105.0)]
        [True, False, True]
        >>> [Round(1, 100.0).may_ask(at_s, 103.0, replicas=1) for at_s in (105.0, 111.0)]
        [False, True]
        >>> [Round(3, 100.0).may_ask(at_s, 103.0, replicas=4) for at_s in (109.0, 110.0)]
        [False, True]
        """
        if now_s == self.began_s:
            return True
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self.number - 1, 16), LONGEST_PAUSE_S) / max(replicas, 1.0)
        return now_s - self.began_s >= (max(pause_s, DELIVERY_S) if measured_at_s > self.began_s else DELIVERY_S)

    def asked(self, now_s: float, measured_at_s: float) -> Round:
        """The round in which a replica is asked at `now_s`: the same one until it was heard."""
        return Round(max(self.number, 1) + (measured_at_s > self.began_s), now_s)


Rounds = Mapping[Cell, Round]


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A measurement under way."""

    segment: ExplorationSegment
    replica_id: str
    cell: Cell
    dealt_at_s: float
    inside_at_s: float
    """When its replica was last seen in the bucket."""

    def seen(self, explorer: Explorer, now_s: float) -> OpenSegment:
        """With a look at its replica."""
        inside = self.segment.first_batch_size <= explorer.decode_batch_size <= self.segment.last_batch_size
        return replace(self, inside_at_s=now_s) if inside else self


@dataclass(frozen=True, slots=True)
class Exploration:
    """A group's measurements under way, what they may still cost, and which cells were measured how often."""

    segments: tuple[OpenSegment, ...] = ()
    allowance: Allowance = field(default_factory=Allowance)
    rounds: Rounds = field(default_factory=dict)


def _anything(_cell: Cell) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Explorer:
    """A replica that may be asked to measure: its batch now and in the report before (0: idle), the last segment it finished, the
    tokens that it would lose until its drafter can draft (0: it could in the next step), and whether it may run a cell's K."""

    decode_batch_size: int
    decode_batch_size_before: int
    finished_segment_id: int
    restart_tokens: float = 0.0
    may_measure: Callable[[Cell], bool] = _anything

    @property
    def bucket(self) -> int | None:
        """Batch bucket it runs in; None while idle, and where it has only just come."""
        if not self.decode_batch_size or not self.decode_batch_size_before:
            return None
        now, before = batch_bucket(self.decode_batch_size), batch_bucket(self.decode_batch_size_before)
        return now if now == before else None


def deal(
    view: GroupView,
    wanted: Mapping[int, Sequence[Measurement]],
    explorers: Mapping[str, Explorer],
    contributions: Contributions,
    before: Exploration,
    next_segment_id: int,
    rng: random.Random,
) -> Exploration:
    """The exploration after this tick: the old segments that still make sense first, then new ones.

    `wanted` says by bucket what is worth measuring; `explorers` are the replicas that may be asked, `contributions` tell who
    measured what already. Dealt is what is worth most for its cost where most replicas are; where the allowance does not reach for
    that, it is saved up for it. New segments have ids from `next_segment_id` up.
    """
    still_wanted = {one.cell for found in wanted.values() for one in found}
    allowance, rounds = before.allowance, dict(before.rounds)
    open_segments = [
        held.seen(explorers[held.replica_id], view.now_s)
        for held in before.segments
        if held.cell in still_wanted and _still_runs(held, explorers, view.now_s)
    ]
    by_bucket: dict[int, list[str]] = {}
    for replica_id in sorted(explorers):
        bucket = explorers[replica_id].bucket
        if bucket is not None and bucket in wanted:
            by_bucket.setdefault(bucket, []).append(replica_id)
    ranked = sorted(
        (measurement for bucket in by_bucket for measurement in wanted[bucket]),
        key=lambda one: (-one.improvement * len(by_bucket[one.cell.batch_bucket]) / (one.cost_tokens + 1.0), one.cell),
    )
    busy = _busy_replicas(view, by_bucket)
    saved_for: set[bool] = set()
    for cell, _, gain_tokens_per_s, cost_of_steps_tokens in ranked:
        measured_at_s = _measured_at_s(view, cell)
        round_ = rounds.get(cell, Round(0, -math.inf))
        if not round_.may_ask(view.now_s, measured_at_s, busy[cell.batch_bucket]):
            continue
        earns_tokens = HORIZON_S * gain_tokens_per_s * busy[cell.batch_bucket]
        drafting = {held.replica_id for held in open_segments if held.cell.num_speculative_tokens}
        asked = _askable(cell, by_bucket[cell.batch_bucket], explorers, contributions, open_segments, rng, view.now_s)
        if asked is None:
            continue
        restart = explorers[asked].restart_tokens if cell.num_speculative_tokens and asked not in drafting else 0.0
        cost_tokens = cost_of_steps_tokens + restart
        can_wait = cost_tokens > earns_tokens
        if cost_tokens > allowance.most_tokens or can_wait in saved_for:
            continue
        if not allowance.reaches_for(cost_tokens, can_wait):
            saved_for.add(can_wait)
            continue
        allowance = allowance.spend(cost_tokens, can_wait)
        segment = _segment(next_segment_id + len(open_segments), cell, view)
        open_segments.append(OpenSegment(segment, asked, cell, view.now_s, view.now_s))
        rounds[cell] = round_.asked(view.now_s, measured_at_s)
    return Exploration(tuple(open_segments), allowance, rounds)


def measuring(segments: Sequence[ExplorationSegment]) -> Causes:
    """What a replica measures."""
    return tuple(
        in_batches(Code.MEASURING, one.first_batch_size, one.last_batch_size, one.num_speculative_tokens) for one in segments
    )


def _measured_at_s(view: GroupView, cell: Cell) -> float:
    """When a cell was last heard of. Steps with prefill have no age: a K that was measured in such counts as heard."""
    if cell.prefill:
        return math.inf if view.is_measured_beside_prefill(cell.num_speculative_tokens) else -math.inf
    known = view.evidence.cells.get(cell)
    return known.measured_at_s if known is not None else -math.inf


def _busy_replicas(view: GroupView, by_bucket: Mapping[int, Sequence[str]]) -> dict[int, float]:
    """By bucket with replicas in it now, how many are there on average: the present ones shared out as the group's past was."""
    seconds: dict[int, float] = dict.fromkeys(by_bucket, 0.0)
    whole = 0.0
    mixed = view.evidence.mixed_cells if view.evidence.is_mostly_mixed else {}
    for (bucket, _, prefill), known in (*view.evidence.cells.items(), *mixed.items()):
        spent = known.seconds if prefill else known.steps * known.step_seconds
        whole += spent
        if bucket in seconds:
            seconds[bucket] += spent
    present = sum(map(len, by_bucket.values()))
    if not whole:
        return {bucket: float(len(replicas)) for bucket, replicas in by_bucket.items()}
    return {bucket: present * spent / whole for bucket, spent in seconds.items()}


def _still_runs(held: OpenSegment, explorers: Mapping[str, Explorer], now_s: float) -> bool:
    explorer = explorers.get(held.replica_id)
    if explorer is None or explorer.finished_segment_id >= held.segment.segment_id or not explorer.may_measure(held.cell):
        return False
    left = now_s - held.seen(explorer, now_s).inside_at_s > LEFT_BUCKET_S
    return not (left or now_s - held.dealt_at_s > TIME_TO_LIVE_S + DELIVERY_S)


def _askable(
    cell: Cell,
    in_bucket: Sequence[str],
    explorers: Mapping[str, Explorer],
    contributions: Contributions,
    open_segments: Sequence[OpenSegment],
    rng: random.Random,
    now_s: float,
) -> str | None:
    """The replica to ask for `cell` now; None where one measures it already, or all are at their trial limit. A replica that
    was asked and has left the bucket does not block the others.

    First one whose drafter is in the right state: a dormant one has to catch up before it can draft, and after it was off; among
    those the one that measured least of the cell, because who is wrong shows once three have reported.
    """
    asked = {held.replica_id for held in open_segments if held.cell == cell}
    if any(held.cell == cell and held.inside_at_s == now_s for held in open_segments):
        return None
    load = Counter(held.replica_id for held in open_segments)
    free = [
        replica_id
        for replica_id in in_bucket
        if replica_id not in asked and load[replica_id] < MAX_SEGMENTS_PER_REPLICA and explorers[replica_id].may_measure(cell)
    ]
    shuffled = rng.sample(free, len(free))
    sign = 1.0 if cell.num_speculative_tokens else -1.0

    def first(replica_id: str) -> tuple[int, float, float]:
        restart_tokens = sign * explorers[replica_id].restart_tokens
        return load[replica_id], restart_tokens, contributions.steps_of(replica_id, cell, now_s)

    return min(shuffled, key=first, default=None)


def _segment(segment_id: int, cell: Cell, view: GroupView) -> ExplorationSegment:
    """The measurement as the engine gets it. A group that has seen but one K fills up in its first seconds, and its drafters fall
    behind as soon as its first plan says off: there a segment runs at whatever batch comes, four times fuller at most."""
    bucket, k, beside_prefill = cell
    first, last = bucket_range(bucket, view.key.max_num_seqs)
    if len(view.evidence.ks) < 2:
        first, last = 1, min(4 * last, view.key.max_num_seqs)
    return ExplorationSegment(
        segment_id=segment_id,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=k,
        clean_steps=view.settings.calibration_clean_steps,
        time_to_live_s=TIME_TO_LIVE_S,
        beside_prefill=beside_prefill,
    )
