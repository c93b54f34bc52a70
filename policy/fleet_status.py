"""The fleet in words and numbers, as `status` shows it. Reads the state, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from nightjar.policy.estimate.gained import gained, measured
from nightjar.policy.estimate.goodput import Floats
from nightjar.policy.planners.base import NOT_MEASURED, batch_range, told_arms, why_not_known
from nightjar.policy.prediction import predict
from nightjar.policy.restarts.leases import GroupRestarts
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.trials import in_words
from nightjar.policy.wire.batch_buckets import bucket_range
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import MAX_REASON_LENGTH
from nightjar.policy.wire.settings import Settings, Table
from nightjar.policy.wire.status import (
    CellStatus,
    GainedStatus,
    GoodputModelStatus,
    GroupStatus,
    OpenLeaseStatus,
    ReplicaStatus,
    RestartsStatus,
    WaitingWishStatus,
)

MAX_GOODPUT_MODELS: Final = 32
"""Groups whose goodput model and gain are told, the largest first: up to 24 batch buckets by 33 K each, so that a status stays
below a few MB and takes a few milliseconds."""
DISTRUSTED: Final = "its step times are twice or half the other replicas', so its measurements do not count: look at its card"
"""Said of a replica that the others of its group contradict (policy.estimate.pooling)."""


def fleet_status(
    state: FleetState, decisions: Mapping[str, Settings], now_s: float
) -> tuple[tuple[GroupStatus, ...], tuple[ReplicaStatus, ...]]:
    """Every group and every replica as of `now_s`, by id. `decisions` are the last ones, by replica id.

    A replica's mode is what it runs: its own kill switch (`local_mode`) where one is set. A replica that reported after the
    last decision has none yet and says so.
    """
    members: dict[str, dict[str, ReplicaState]] = {group_id: {} for group_id in state.groups}
    for replica_id, replica in state.replicas.items():
        members[replica.group_id][replica_id] = replica
    largest = sorted(members, key=lambda group_id: (-len(members[group_id]), group_id))[:MAX_GOODPUT_MODELS]
    with_model = {group_id for group_id in largest if members[group_id]}
    groups = tuple(
        _group(group_id, group, members[group_id], decisions, group_id in with_model, now_s)
        for group_id, group in sorted(state.groups.items())
    )
    replicas = tuple(
        _replica(replica_id, replica, state.groups[replica.group_id], decisions.get(replica_id), now_s)
        for replica_id, replica in sorted(state.replicas.items())
    )
    return groups, replicas


def _group(
    group_id: str,
    group: GroupState,
    members: Mapping[str, ReplicaState],
    decisions: Mapping[str, Settings],
    with_model: bool,
    now_s: float,
) -> GroupStatus:
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
    predicted = predict(group, members.values())
    decided = [(member, decisions[name].mode) for name, member in members.items() if name in decisions]
    return GroupStatus(
        group_id=group_id,
        replicas=len(members),
        planner=group.planner,
        rows=plan.rows if plan is not None else (),
        mixed_rows=plan.mixed_rows if plan is not None else (),
        acceptance=group.evidence.acceptance.measured(),
        cells=tuple(cells),
        goodput_model=_goodput_model(group, now_s) if with_model else None,
        predicted_tokens_per_s=predicted.planned if predicted is not None else None,
        predicted_off_tokens_per_s=predicted.off if predicted is not None else None,
        predicted_present_tokens_per_s=predicted.present if predicted is not None else None,
        gained=_gained(group, now_s) if with_model else (),
        imported_cells=len(group.imported.cells),
        not_known=next(filter(None, (group.not_known(member, mode) for member, mode in decided)), ""),
        restarts=_restarts(group.restarts, members, now_s),
        reason="; ".join(part for part in (*_plan_in_words(group), _restarts_in_words(group), _imported(group)) if part),
    )


def _goodput_model(group: GroupState, now_s: float) -> GoodputModelStatus | None:
    """What the estimate expects of the K that `explain` tells of, in round numbers.

    None without an estimate, without such a K, and where a number is none: a status must not fail on its group.
    """
    estimate = group.estimate
    told = told_arms(group.evidence, estimate.goodput_model.arms) if estimate is not None else ()
    if estimate is None or not told:
        return None
    model = estimate.goodput_model
    columns = [model.arms.index(arm) for arm in told]
    goodput = np.exp(np.minimum(model.log_goodput, 100.0))
    deviation = np.sqrt(np.maximum(np.diagonal(model.covariance, axis1=1, axis2=2), 0.0))
    _, gain_deviation = model.gain(np.zeros(len(model.rows), dtype=np.int64))
    if not all(np.all(np.isfinite(numbers)) for numbers in (goodput, deviation, gain_deviation)):
        return None
    ranges = [bucket_range(bucket, group.key.max_num_seqs) for bucket in range(len(model.rows))]
    return GoodputModelStatus(
        age_s=max(now_s - estimate.at_s, 0.0) if math.isfinite(estimate.at_s) else None,
        first_batch_sizes=tuple(first for first, _ in ranges),
        last_batch_sizes=tuple(last for _, last in ranges),
        num_speculative_tokens=told,
        goodput_tokens_per_s=_rounded(goodput[:, columns], 2),
        goodput_deviation=_rounded(deviation[:, columns], 4),
        gain_deviation=_rounded(gain_deviation[:, columns], 4) if model.arms[0] in told else (),
    )


def _rounded(numbers: Floats, decimals: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in np.round(numbers, decimals).tolist())


def _gained(group: GroupState, now_s: float) -> tuple[GainedStatus, ...]:
    """Against what would have run without Nightjar: the K of the engines' own file, and off."""
    spent, told = group.spent, []
    if spent is None:
        return ()
    ran = measured(group.evidence, group.imported.cells)
    for former in dict.fromkeys((group.key.max_num_speculative_tokens, 0)):
        found = gained(spent, group.estimate.goodput_model, former, ran) if group.estimate is not None else None
        known = {} if found is None else found._asdict()
        over_s = max(now_s - spent.since_s, 0.0)
        told.append(GainedStatus(num_speculative_tokens=former, over_s=over_s, busy_s=spent.busy_s, **known))
    return tuple(told)


def _restarts(restarts: GroupRestarts, members: Mapping[str, ReplicaState], now_s: float) -> RestartsStatus:
    """A replica holds one lease at a time, and no longer waits with it."""
    held = [lease for lease in restarts.open_leases if now_s < lease.ends_at_s]
    holding = {lease.replica_id for lease in held}
    waiting = sorted((since_s, name) for name, since_s in restarts.waiting_since_s.items() if name not in holding)
    return RestartsStatus(
        open_leases=tuple(
            OpenLeaseStatus(replica_id=lease.replica_id, reload=lease.lease.reload, seconds_left=lease.ends_at_s - now_s)
            for lease in held
        ),
        waiting=tuple(_wish(name, members.get(name), now_s - since_s) for since_s, name in waiting),
        frozen_seconds_left=max(restarts.probes.frozen_until_s - now_s, 0.0),
    )


def _wish(replica_id: str, replica: ReplicaState | None, waiting_s: float) -> WaitingWishStatus:
    wish = replica.report.snapshot.restart_wish if replica is not None else None
    return WaitingWishStatus(
        replica_id=replica_id,
        waiting_s=max(waiting_s, 0.0),
        lag_tokens=wish.lag_tokens if wish is not None else 0,
        reload=wish is not None and wish.reload,
    )


def _plan_in_words(group: GroupState) -> tuple[str, ...]:
    """The plan's reasons, and what their marks mean."""
    if group.plan is None:
        return ()
    reasons = group.plan.reasons or (group.plan.summary,)
    if group.plan.reasons and (why := why_not_known(group.evidence, range(group.key.max_num_speculative_tokens + 1))):
        return (f"{group.plan.summary}, by the odds: {why}",)
    return (*reasons, NOT_MEASURED) if any("~" in reason for reason in reasons) else reasons


def _imported(group: GroupState) -> str:
    """`12 of 14 cells imported, not measured here`; empty where none is."""
    cells = len(group.imported.cells)
    return f"{cells} of {len(group.evidence.cells)} cells imported, not measured here" if cells else ""


def _restarts_in_words(group: GroupState) -> str:
    """`restarts: 2 of 3 granted`; empty where none is wished or in flight."""
    granted, waiting = len(group.restarts.open_leases), len(group.restarts.waiting_since_s)
    return f"restarts: {granted} of {granted + waiting} granted" if granted or waiting else ""


def _replica(replica_id: str, replica: ReplicaState, group: GroupState, decision: Settings | None, now_s: float) -> ReplicaStatus:
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
        acceptance=group.contributions.acceptance_of(replica_id).measured(),
        generated_tokens_per_s=replica.generated_tokens_per_s,
        report_age_s=max(now_s - replica.heard_at_s, 0.0),
        settings_version=snapshot.settings_version,
        reason=_reason(replica, group, decision),
        warning=_joined(_warnings(replica, group)),
        max_step_ms=replica.limit.max_step_ms if replica.limit is not None else None,
        limit_decides=group.limit_decides(replica),
        decision_reason=snapshot.decision_reason,
        steering=report.steering,
        steering_reason=report.steering_reason,
        layers=report.layers,
        engine_id=snapshot.counters.engine_id,
        totals=snapshot.counters.totals,
    )


def _reason(replica: ReplicaState, group: GroupState, decision: Settings | None) -> str:
    """The last decision in words, for the batch the replica runs now."""
    report = replica.report
    if decision is None:
        return "heard of since the last decision"
    words = decision.reason
    batch = report.snapshot.load.decode_batch_size
    plan = group.plan_of(replica)
    if batch and decision.mode.kind in {"auto", "shadow"} and plan is not None and not report.serving_plainly:
        words = plan.reason(batch)
        if isinstance(decision.plan, Table) and decision.plan.segments:
            words += f"; {in_words(decision.plan.segments)}"
        if decision.restarts.reason:
            words += f"; {decision.restarts.reason}"
        if decision.mode.kind == "shadow":
            words = group.not_known(replica, decision.mode) or words
            words = f"shadow, nothing is touched: {words}"
    return _joined((*_warnings(replica, group), words))


def _warnings(replica: ReplicaState, group: GroupState) -> tuple[str, ...]:
    """What an operator may have to act on, each in words, empty where it is not so."""
    report = replica.report
    held = ", ".join(batch_range(*bucket_range(bucket, report.group.max_num_seqs)) for bucket in report.snapshot.held_buckets)
    kill_switch = ""
    if report.local_mode is not None:
        slower = report.local_mode.why_slow(report.group.graph_tiers)
        kill_switch = f"mode {report.local_mode} set in the replica's own user_config overrides"
        kill_switch += f" ({slower})" if slower else ""
    return (
        report.notice,
        report.snapshot.fault_in_words,
        DISTRUSTED if report.replica_id in group.contributions.distrusted else "",
        f"the guard holds batch {held} off: speculation measured worse than off" if held else "",
        kill_switch,
        f"K limited by {replica.limit}" if group.limit_decides(replica) else "",
    )


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(filter(None, parts))[:MAX_REASON_LENGTH]
