"""The fleet in words and numbers, as `status` shows it and metrics count it. Reads the state, changes nothing.

What a group's plan is worth now is told by the numbers that the plan stands on (policy.evidence.goodput), so metrics, `status` and
the planner never tell different stories. Predicted, not measured. Fails towards silence: where a batch is not known well enough,
its replica is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nightjar.policy.evidence.gained import gained, measured
from nightjar.policy.evidence.goodput import Floats
from nightjar.policy.planners.base import stated_ks
from nightjar.policy.restarts.leases import GroupRestarts
from nightjar.policy.state import FleetState, GroupState, PlanVariant, ReplicaState
from nightjar.policy.status.causes import beside_plan, of_plan, of_replica, warnings
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import MAX_REASON_LENGTH
from nightjar.policy.wire.settings import Settings
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
from nightjar.policy.words import NOT_MEASURED, has_guesses, in_words

MAX_GOODPUT_MODELS: Final = 32
"""Groups whose goodput model and gain are told, the largest first: up to 24 batch buckets by 33 K each, so that a status stays
below a few MB and takes a few milliseconds."""


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
    for (bucket, k, _), cell in sorted(group.evidence.cells.items()):
        first, last = bucket_range(bucket, max_num_seqs)
        cells.append(
            CellStatus(
                first_batch_size=first,
                last_batch_size=last,
                num_speculative_tokens=k,
                goodput_tokens_per_s=group.evidence.goodput_tokens_per_s(bucket, k) or 0.0,
                clean_steps=cell.steps,
            )
        )
    why, beside, predicted = of_plan(group), beside_plan(group), predict(group, members.values())
    decided = [(member, decisions[name].mode) for name, member in members.items() if name in decisions]
    return GroupStatus(
        group_id=group_id,
        replicas=len(members),
        planner=group.planner,
        rows=plan.rows if plan is not None else (),
        mixed_rows=plan.mixed_rows if plan is not None else (),
        acceptance=group.evidence.acceptance.measured(),
        censored_acceptance=group.key.adaptive_verification,
        cells=tuple(cells),
        goodput_model=_goodput_model(group, now_s) if with_model else None,
        predicted_tokens_per_s=predicted.planned if predicted is not None else None,
        predicted_off_tokens_per_s=predicted.off if predicted is not None else None,
        predicted_present_tokens_per_s=predicted.present if predicted is not None else None,
        predicted_off_deviation=predicted.off_deviation if predicted is not None else None,
        predicted_present_deviation=predicted.present_deviation if predicted is not None else None,
        gained=_gained(group, now_s) if with_model else (),
        imported_cells=group.imported.clean_cells,
        not_known=in_words(next(filter(None, (group.not_known(member, mode) for member, mode in decided)), ())),
        restarts=_restarts(group.restarts, members, now_s),
        causes=(*why, *beside),
        reason="; ".join(filter(None, (in_words(why), NOT_MEASURED if has_guesses(why) else "", in_words(beside)))),
    )


def _goodput_model(group: GroupState, now_s: float) -> GoodputModelStatus | None:
    """What the estimate expects of the K that `explain` tells of, in round numbers.

    None without an estimate, without such a K, and where a number is none: a status must not fail on its group.
    """
    estimate = group.estimate
    told = stated_ks(group.evidence, estimate.goodput_model.ks) if estimate is not None else ()
    if estimate is None or not told:
        return None
    model = estimate.goodput_model
    columns = [model.ks.index(k) for k in told]
    goodput = np.exp(np.minimum(model.log_goodput, 100.0))
    deviation = np.sqrt(np.maximum(np.diagonal(model.covariance, axis1=1, axis2=2), 0.0))
    gain_deviation = model.told_deviation[:, :, 0]
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
        gain_deviation=_rounded(gain_deviation[:, columns], 4) if model.ks[0] in told else (),
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


def _replica(replica_id: str, replica: ReplicaState, group: GroupState, decision: Settings | None, now_s: float) -> ReplicaStatus:
    report, snapshot, warned = replica.report, replica.report.snapshot, warnings(replica, group)
    causes = of_replica(replica, group, decision, warned)
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
        causes=causes,
        reason=in_words(causes)[:MAX_REASON_LENGTH],
        warning=in_words(warned)[:MAX_REASON_LENGTH],
        max_step_ms=replica.limit.max_step_ms if replica.limit is not None else None,
        limit_decides=group.limit_decides(replica),
        step_causes=snapshot.causes,
        decision_reason=in_words(snapshot.causes)[:MAX_REASON_LENGTH],
        steering=report.steering,
        steering_reason=report.steering_reason,
        layers=report.layers,
        engine_id=snapshot.counters.engine_id,
        totals=snapshot.counters.totals,
    )


@dataclass(frozen=True, slots=True)
class Predicted:
    """Generated tokens a second that a group's busy replicas are predicted to give at the batches they run now."""

    planned: float
    """With the K of the plan."""
    off: float
    """With K = 0."""
    present: float | None = None
    """With the K of each replica's last step; None where one is not predicted. In shadow, what the plan is compared with."""
    off_deviation: float | None = None
    present_deviation: float | None = None
    """Standard deviations, as people are told them, of the logarithm of `planned` over either. None where nothing says."""


def predict(group: GroupState, replicas: Iterable[ReplicaState]) -> Predicted | None:
    """What the plan stands on (policy.evidence.goodput; `status` gives it as reasons), summed over the replicas that are busy.

    None where no busy replica's batch is known well enough, where a single K ever ran, or where engines plan for themselves.
    """
    if group.plan is None or group.plan.local is not None or group.evidence.only_k is not None:
        return None
    known = list(_goodputs(group, replicas))
    if not known:
        return None
    presents = [one.present for one in known if one.present is not None]
    return Predicted(
        planned=sum(one.planned for one in known),
        off=sum(one.off for one in known),
        present=sum(presents) if len(presents) == len(known) else None,
        off_deviation=_alike([(one.planned, one.off_deviation) for one in known]),
        present_deviation=_alike([(one.planned, one.present_deviation) for one in known]),
    )


def _alike(deviations: Sequence[tuple[float, float | None]]) -> float | None:
    """Of a sum whose parts (weight, deviation) err alike: they come from the same few slopes. None where one is not known."""
    known = [(weight, deviation) for weight, deviation in deviations if deviation is not None]
    total = sum(weight for weight, _ in known)
    return sum(weight * deviation for weight, deviation in known) / total if total and len(known) == len(deviations) else None


def _goodputs(group: GroupState, replicas: Iterable[ReplicaState]) -> Iterator[Predicted]:
    """Of each busy replica that can be steered and whose batch is known well enough. Asked once for each estimate."""
    alike: Counter[tuple[int, int, int]] = Counter()
    variants: dict[int, PlanVariant] = {}
    for replica in replicas:
        load = replica.report.snapshot.load
        batch = load.decode_batch_size
        if not batch or not replica.can_be_steered:
            continue
        variant = group.variant(replica)
        variants[id(variant.estimate)] = variant
        alike[id(variant.estimate), batch_bucket(batch), load.num_speculative_tokens] += 1
    plan_goodputs = {key: group.plan_goodput(variant) for key, variant in variants.items()}
    for (key, bucket, k), count in alike.items():
        planned, off = plan_goodputs[key].planned_goodput[bucket], plan_goodputs[key].off_goodput[bucket]
        if planned is None or not off:
            continue
        estimate, runs = variants[key].estimate, plan_goodputs[key].planned[bucket]
        present = group.goodput(estimate, bucket, k)
        over = [estimate.told_gain(bucket, runs, other) if estimate is not None else None for other in (0, k)]
        doubts = [told.deviation if told is not None else None for told in over]
        yield from (Predicted(planned, off, present, *doubts) for _ in range(count))
