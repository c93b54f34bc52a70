"""How one report enters the fleet's state: differenced, checked, and kept as pending evidence until the group merges it.

A report is data from a stranger (INV-10) on a way that loses, doubles and reorders. Fails closed: what cannot be true or
was heard before counts nothing and says why. How many replicas may report is bounded where they are admitted (policy.issuer).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nightjar.policy.evidence.catch_up import NewRestarts
from nightjar.policy.evidence.cells import MOSTLY_MIXED
from nightjar.policy.evidence.contributions import NewEvidence
from nightjar.policy.evidence.counting import CountedEngine, ImplausibleCountersError, NewSteps, count
from nightjar.policy.evidence.gained import Spent, Under
from nightjar.policy.evidence.waits import NO_WAITS
from nightjar.policy.operator.canary.compare import Work
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import MAX_NAMED
from nightjar.policy.wire.report import NO_ENGINE_ID, GroupKey, LoadReport

MAX_RETIRED_ENGINES: Final = 4
"""Engine ids remembered per replica: a late report of a replaced engine must not count from zero again."""
MAX_SEGMENT_ID_STEP: Final = 10_000_000
"""How far one report may push the segment ids: enough after any lost store, too little to exhaust them."""
SHORTEST_RATE_PERIOD_S: Final = 0.05
"""Reports that come closer together than this say nothing about tokens a second."""


def observe(state: FleetState, report: LoadReport, now_s: float, settings: OperatorSettings) -> tuple[FleetState, str]:
    """Take one report in. Returns the new state and "", or why nothing of it was counted.

    Lost, doubled and reordered reports lose no counts, and none counts twice. A report whose counters cannot be true still
    tells that the replica lives and how it is loaded: it keeps getting settings, its counts wait for a later report. One that
    stands for a failed call of the engine tells only that the replica lives.

    The first report of a replica tells of its engine's whole life. Its restarts and failed probes are of no known time, and never
    count: they would freeze a group for what happened yesterday. All else counts, as a newcomer's first steps or as what is left of
    the group's history after a policy that stored nothing, but not twice: where the evidence was remembered from the policy before,
    and where the replica was silent for longer than `replica_timeout_s` and comes back with an engine that was counted already, the
    report is only what the next one is held against. What such an engine did since it was last heard, or last stored, is lost.
    """
    known = state.replicas.get(report.replica_id)
    counters = report.snapshot.counters
    if known is not None and counters.engine_id == NO_ENGINE_ID:
        return replace(state, replicas=state.replicas.with_item(report.replica_id, replace(known, heard_at_s=now_s))), ""
    if known is not None and (outdated := _outdated(known, report)):
        return state, outdated
    group_id = known.group_id if known is not None and known.report.group == report.group else report.group.group_id
    groups = state.groups if group_id in state.groups else _with_group(state, group_id, report.group)
    if groups is None:
        return state, f"group {group_id}: {MAX_NAMED} groups are tracked already, and no more are taken"
    is_first = _is_first(known, counters.engine_id)
    present = _heard(known, report, group_id, now_s)
    came_back = present.counted_at_s is None and counters.engine_id in state.departed.get(report.replica_id, ())
    counted_at_s = present.counted_at_s
    elapsed_s = float("inf") if counted_at_s is None else now_s - counted_at_s
    ignored = ""
    try:
        new, counted = count(counters, present.counted, elapsed_s, report.group)
        if came_back or (is_first and groups[group_id].is_remembered):
            present = replace(present, counted=counted, counted_at_s=now_s)
        else:
            if is_first:
                new = replace(new, restarts=NewRestarts(new.restarts.catch_up))
            present = _counted(present, new, counted, elapsed_s, now_s, settings.evidence_half_life_steps)
            if counted_at_s is not None:
                groups = {**groups, group_id: _with_spent(groups[group_id], new, counted_at_s)}
                if state.canary is not None and state.canary.is_running:
                    present = _worked(present, new)
    except ImplausibleCountersError as problem:
        ignored = f"replica {report.replica_id}: {problem}; its counts are left out"
    finished = min(report.snapshot.finished_segment_id + 1, state.next_segment_id + MAX_SEGMENT_ID_STEP)
    return replace(
        state,
        replicas=state.replicas.with_item(report.replica_id, present),
        groups=groups,
        next_segment_id=max(state.next_segment_id, finished),
    ), ignored


def _is_first(known: ReplicaState | None, engine_id: str) -> bool:
    """Whether nothing was counted of the replica yet, so that nobody can know how old the counts of its engine are."""
    if known is None or known.counted.engine_id == NO_ENGINE_ID:
        return True
    return known.counted_at_s is None and known.counted.engine_id == engine_id


def _outdated(known: ReplicaState, report: LoadReport) -> str:
    """Why a report tells nothing new, or ""."""
    counters, counted = report.snapshot.counters, known.counted
    if counters.engine_id in known.retired_engine_ids:
        return f"replica {report.replica_id}: engine {counters.engine_id} was replaced by {counted.engine_id}"
    if counters.engine_id != counted.engine_id:
        return ""
    if counters.step_count < counted.step_count:
        return f"replica {report.replica_id}: step count {counters.step_count}, already counted up to {counted.step_count}"
    if counters.step_count == counted.step_count and report.report_number <= known.report.report_number:
        return f"replica {report.replica_id}: report {report.report_number} was heard before"
    return ""


def _with_group(state: FleetState, group_id: str, key: GroupKey) -> dict[str, GroupState] | None:
    """The groups with a new one; at the bound the oldest group without replicas makes room, else None."""
    groups = dict(state.groups)
    if len(groups) >= MAX_NAMED:
        populated = {replica.group_id for replica in state.replicas.values()}
        empty = next((other for other in groups if other not in populated), None)
        if empty is None:
            return None
        del groups[empty]
    groups[group_id] = GroupState(key)
    return groups


def _heard(known: ReplicaState | None, report: LoadReport, group_id: str, now_s: float) -> ReplicaState:
    """The replica as it reports itself, before anything is counted.

    A new engine counts from zero, and what the old one left pending stays; a new group takes nothing over. No batch is larger
    than its group allows."""
    snapshot = report.snapshot
    engine_id = snapshot.counters.engine_id
    batch, load = min(snapshot.load.decode_batch_size, report.group.max_num_seqs), snapshot.load
    if batch != load.decode_batch_size:
        load = load.model_copy(update={"decode_batch_size": batch})
    kept = {"counters": snapshot.counters.model_copy(update={"cells": ()}), "load": load}
    light = report.model_copy(update={"snapshot": snapshot.model_copy(update=kept)})
    waits = known.waits if known is not None else NO_WAITS
    waits = waits.after(load, report.group.max_num_seqs, now_s - known.heard_at_s if known is not None else 0.0)
    if known is None:
        return ReplicaState(light, group_id, now_s, CountedEngine(engine_id), decode_batch_size_before=batch, waits=waits)
    before = known.report.snapshot.load.decode_batch_size
    heard = replace(known, report=light, heard_at_s=now_s, decode_batch_size_before=before, waits=waits)
    if known.group_id != group_id:
        heard = replace(heard, group_id=group_id, new_evidence=NewEvidence(), new_restarts=NewRestarts())
    if known.counted.engine_id == engine_id and known.group_id == group_id:
        return heard
    retired = known.retired_engine_ids
    if known.counted.engine_id != engine_id:
        retired = (*retired, known.counted.engine_id)[-MAX_RETIRED_ENGINES:]
    return replace(heard, counted=CountedEngine(engine_id), counted_at_s=None, retired_engine_ids=retired)


def _worked(replica: ReplicaState, new: NewSteps) -> ReplicaState:
    """The replica with what it generated since its last report, at its mean decode batch."""
    if not new.all_steps or not new.busy_seconds:
        return replica
    bucket = min(batch_bucket(round(new.decode_rows / new.all_steps)), batch_bucket(replica.report.group.max_num_seqs))
    work = Work(float(new.generated_tokens), new.busy_seconds)
    return replace(replica, new_work={**replica.new_work, bucket: replica.new_work.get(bucket, Work()).plus(work)})


def counted_under(
    group: GroupState, members: Mapping[str, ReplicaState], modes: Mapping[str, tuple[Mode, str]], now_s: float
) -> GroupState:
    """The group with the mode under which its engines' time is counted; where that changed, the count begins anew.

    It is the mode of most of its `members`, so that a canary or an override of few ends no count; a tie changes nothing.
    """
    spent = group.spent
    if spent is None or not members:
        return group
    counts: Counter[Under] = Counter()
    for name, replica in members.items():
        mode = replica.report.local_mode or modes[name][0]
        counts[Under(mode.kind, mode.num_speculative_tokens, group.planner if mode.kind == "auto" else "")] += 1
    most = max(counts, key=lambda under: (counts[under], under == spent.under))
    if most == spent.under:
        return group
    return replace(group, spent=replace(spent, under=most) if spent.under is None else Spent(now_s, under=most))


def _with_spent(group: GroupState, new: NewSteps, since_s: float) -> GroupState:
    """The group with what one of its engines did from `since_s` on, unless its mode changed meanwhile."""
    spent = group.spent or Spent(since_s)
    if since_s < spent.since_s:
        return group
    clean = {cell: one.seconds for cell, one in new.cells.items() if not cell.prefill}
    return replace(group, spent=spent.plus(new.busy_seconds, new.restarts.catch_up.seconds, clean))


def _counted(
    replica: ReplicaState, new: NewSteps, counted: CountedEngine, elapsed_s: float, now_s: float, half_life_steps: float
) -> ReplicaState:
    rate = replica.generated_tokens_per_s
    if SHORTEST_RATE_PERIOD_S <= elapsed_s < float("inf"):
        rate = new.generated_tokens / elapsed_s
    mixed_share = replica.mixed_share.after(
        sum(one.steps for cell, one in new.cells.items() if cell.prefill),
        new.prefill_tokens,
        new.generated_tokens,
        new.first_tokens,
        sum(one.steps for one in new.cells.values()),
        elapsed_s,
    )
    is_mostly_mixed = mixed_share.of_steps > MOSTLY_MIXED  # pure decode steps are too few to tell how drafts are accepted
    acceptance = new.acceptance.sum(new.mixed_acceptance) if is_mostly_mixed else new.acceptance
    return replace(
        replica,
        counted=counted,
        counted_at_s=now_s,
        new_evidence=replica.new_evidence.plus(new.cells, acceptance, half_life_steps, now_s)
        if new.cells
        else replica.new_evidence,
        generated_tokens_per_s=rate,
        mixed_share=mixed_share,
        new_restarts=replica.new_restarts.plus(new.restarts),
    )
