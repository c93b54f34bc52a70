"""The fleet in words and numbers, as `status` shows it. Reads the state, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nightjar.policy.batch_buckets import bucket_range
from nightjar.policy.exploration import in_words
from nightjar.policy.fleet_state import Decision, FleetState, GroupState, ReplicaState
from nightjar.policy.planners.planner import batch_range
from nightjar.policy.records import Mode, Table
from nightjar.policy.status import CellStatus, GroupStatus, ReplicaStatus


def fleet_status(
    state: FleetState, decisions: Mapping[str, Decision], now_s: float
) -> tuple[tuple[GroupStatus, ...], tuple[ReplicaStatus, ...]]:
    """Every group and every replica as of `now_s`, by id. `decisions` are the last ones, by replica id.

    A replica's mode is what it runs: its own kill switch (`local_mode`) where one is set. A replica that reported after the
    last decision has none yet and says so.
    """
    sizes = Counter(replica.group_id for replica in state.replicas.values())
    groups = tuple(_group(group_id, group, sizes[group_id]) for group_id, group in sorted(state.groups.items()))
    replicas = tuple(
        _replica(replica_id, replica, state.groups[replica.group_id], decisions.get(replica_id), now_s)
        for replica_id, replica in sorted(state.replicas.items())
    )
    return groups, replicas


def _group(group_id: str, group: GroupState, replicas: int) -> GroupStatus:
    plan, max_num_seqs = group.plan, group.key.max_num_seqs
    cells = []
    for (bucket, length), cell in sorted(group.evidence.cells.items()):
        first, last = bucket_range(bucket, max_num_seqs)
        cells.append(
            CellStatus(
                first_batch_size=first,
                last_batch_size=last,
                num_speculative_tokens=length,
                goodput_tokens_per_s=group.evidence.goodput_tokens_per_s(bucket, length) or 0.0,
                clean_steps=cell.steps,
            )
        )
    return GroupStatus(
        group_id=group_id,
        replicas=replicas,
        planner=group.planner,
        rows=plan.rows if plan is not None else (),
        acceptance=group.evidence.acceptance.measured(),
        cells=tuple(cells),
        reason="; ".join(part for part in (*(() if plan is None else plan.reasons or (plan.summary,)), _restarts(group)) if part),
    )


def _restarts(group: GroupState) -> str:
    """`restarts: 2 of 3 granted`; empty where none is wished or in flight."""
    granted, waiting = len(group.restarts.open_leases), len(group.restarts.waiting_since_s)
    return f"restarts: {granted} of {granted + waiting} granted" if granted or waiting else ""


def _replica(replica_id: str, replica: ReplicaState, group: GroupState, decision: Decision | None, now_s: float) -> ReplicaStatus:
    report, snapshot = replica.report, replica.report.snapshot
    mode = report.local_mode or (decision.mode if decision is not None else None)
    return ReplicaStatus(
        replica_id=replica_id,
        application=report.application,
        node_id=report.node_id,
        group_id=replica.group_id,
        mode=mode if mode is not None else Mode(kind="shadow"),
        load=snapshot.load,
        drafter_state=snapshot.drafter_state,
        drafter=snapshot.drafter,
        adapters=snapshot.adapters,
        restarts=snapshot.counters.restarts,
        failed_probes=snapshot.counters.failed_probes,
        catch_up_seconds=max(snapshot.counters.catch_up.seconds, 0.0),
        acceptance=replica.acceptance.measured(),
        generated_tokens_per_s=replica.generated_tokens_per_s,
        report_age_s=max(now_s - replica.heard_at_s, 0.0),
        settings_version=snapshot.settings_version,
        reason=_reason(replica, group, decision),
        serving_plainly=report.serving_plainly,
        engine_id=snapshot.counters.engine_id,
        totals=snapshot.counters.totals,
    )


def _reason(replica: ReplicaState, group: GroupState, decision: Decision | None) -> str:
    """The last decision in words, for the batch the replica runs now."""
    report = replica.report
    if decision is None:
        return "heard of since the last decision"
    words = decision.reason
    batch = report.snapshot.load.decode_batch_size
    if batch and decision.mode.kind in {"auto", "shadow"} and group.plan is not None and not report.serving_plainly:
        words = (group.plan if replica.own is None else replica.own.plan).reason(batch)
        if isinstance(decision.plan, Table) and decision.plan.segments:
            words += f"; {in_words(decision.plan.segments)}"
        if decision.terms.words:
            words += f"; {decision.terms.words}"
        if decision.mode.kind == "shadow":
            words = f"shadow, nothing is touched: {words}"
    if report.local_mode is not None:
        words = f"mode {report.local_mode} set in the replica's own user_config overrides: {words}"
    held = ", ".join(batch_range(*bucket_range(bucket, report.group.max_num_seqs)) for bucket in report.snapshot.held_buckets)
    if held:
        words = f"the guard holds batch {held} off: speculation measured worse than off; {words}"
    fault = report.snapshot.fault and f"the engine runs its own K since an error in the hooks: {report.snapshot.fault}"
    return "; ".join(part for part in (report.notice, fault, words) if part)[:1024]
