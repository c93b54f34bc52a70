"""One group's tick: merge what replicas measured, re-plan where that says something new, and deal out measurements.

Everything a group learns goes through here, from values to values; `group.py` around it knows of modes and records only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.evidence.contributions import Contributions, NewEvidence
from nightjar.policy.evidence.mixed_steps import per_token, share_of_steps
from nightjar.policy.evidence.pooling import Slopes, pooled, with_effects, without
from nightjar.policy.evidence.robust import LEAST_REPLICAS
from nightjar.policy.evidence.waits import waits_of_group
from nightjar.policy.exploration import Allowance, Exploration, Explorer, deal
from nightjar.policy.planners import LEARNING_PLANNERS, PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView
from nightjar.policy.planners.estimates import (
    Estimate,
    cold_start,
    for_objective,
    needs_replan,
    own_evidence,
    refreshed,
    replan,
    replan_alone,
)
from nightjar.policy.restarts.leases import switch_costs
from nightjar.policy.state import Apart, GroupState, PlanVariant, ReplicaState
from nightjar.policy.step.drafter import MAX_CHUNK_TOKENS
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import DrafterState, LoadReport

_DRAFTER_UP: Final = frozenset({DrafterState.ACTIVE, DrafterState.IN_SYNC, DrafterState.PROBING, DrafterState.CATCHING_UP})


def learn(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    asked: Container[str],
    held: GroupPlan | None,
    settings: OperatorSettings,
    next_segment_id: int,
    most_replans: int,
    now_s: float,
    rng: random.Random,
) -> tuple[GroupState, dict[str, ReplicaState], int]:
    """The group after this tick, those of its live `members` that changed, and how often it re-planned; members in `asked` may be
    asked to measure.

    It and its replicas re-plan at most `most_replans` times, the longest waiting first. Groups over the limit keep their last
    plan, or the cold-start plan.

    While the fleet is frozen the group runs `held`. What its members report counts on, for the first plan after the freeze, and
    measurements under way are taken back. A group whose policy began anew estimates once, for what guards compare with and leases
    in flight are worth. A member's limit that came meanwhile is kept as ever.
    """
    group, view, changed = _looked(group, members, settings, now_s)
    group_with = partial(replace, group, evidence=view.evidence, planner=settings.planner, decided_at_s=now_s)
    learns = settings.planner in LEARNING_PLANNERS
    if held is None and not learns:
        changed.update(_without_own({**members, **changed}))
        plan = PLANNERS[settings.planner](_with_switch_costs(group, view))
        return group_with(plan=plan, exploration=Exploration(), estimate=None, apart={}), changed, 0
    estimate, replans = group.estimate, 0
    is_cold = estimate is None or estimate.at_s == -math.inf
    if learns and most_replans > 0 and (is_cold if held is not None else needs_replan(estimate, view)):
        estimate, replans = replan(view), 1
    elif learns and estimate is None:
        estimate = cold_start(view)
    present, own, own_replans = {**members, **changed}, dict[str, ReplicaState](), 0
    if held is None:
        assert estimate is not None
        plan, exploration = estimate.plan, _explored(group, members, asked, view, estimate, next_segment_id, rng)
        view = view.with_plan(plan)
        own, views, own_replans = _own_estimates(view, group.contributions, present, most_replans - replans)
    else:
        if estimate is not None and (estimate.plan != held or estimate.wanted):
            estimate = replace(estimate, plan=held, wanted={})
        plan, exploration = held, replace(group.exploration, segments=())
        views = {name: view.with_objective(replica.objective) for name, replica in present.items() if replica.own is not None}
    own |= _own_within(views, {**present, **own})
    apart = _apart(view, estimate, group.apart, members, is_held=held is not None) if estimate is not None else {}
    after = group_with(plan=plan, exploration=exploration, estimate=estimate, apart=apart)
    return after, {**changed, **own}, replans + own_replans


def _with_switch_costs(group: GroupState, view: GroupView) -> GroupView:
    if view.settings.planner != "nightjar" or view.settings.switch_cost_table is not None:
        return view
    plan_goodput = group.plan_goodput(PlanVariant(group.plan or GroupPlan(()), group.estimate))
    return replace(view, switch_costs=switch_costs(group.restarts.catch_up, plan_goodput, view.settings))


def _explored(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    asked: Container[str],
    view: GroupView,
    estimate: Estimate,
    next_segment_id: int,
    rng: random.Random,
) -> Exploration:
    """The measurements under way after this tick. A replica whose evidence is left out is asked for none."""
    elapsed_s = view.now_s - group.decided_at_s if group.decided_at_s is not None else 0.0
    trusted = {name: replica for name, replica in members.items() if name in asked and name not in group.contributions.distrusted}
    found = explorers(group, trusted)
    earned = _earned(group.exploration.allowance, members, found, elapsed_s)
    exploration = replace(group.exploration, allowance=earned)
    return deal(view, estimate.wanted, found, group.contributions, exploration, next_segment_id, rng)


def _looked(
    group: GroupState, members: Mapping[str, ReplicaState], settings: OperatorSettings, now_s: float
) -> tuple[GroupState, GroupView, dict[str, ReplicaState]]:
    """The group with what its members reported since the last tick, what is known of it now, and members without that news."""
    before = group.evidence if group.decided_at_s is not None else _heard_at(group.evidence, now_s)
    group, evidence = _learned(group, before, members, settings.evidence_half_life_steps, now_s)
    shares = [replica.mixed_share for replica in members.values()]
    mixed_steps, prefill_tokens, answers = per_token(shares)
    evidence = replace(
        evidence,
        mixed_steps_per_token=mixed_steps,
        prefill_tokens_per_token=prefill_tokens,
        answers_per_token=answers,
        mixed_share_of_steps=share_of_steps(shares),
    )
    changed = {
        replica_id: replace(replica, new_evidence=NewEvidence())
        for replica_id, replica in members.items()
        if replica.new_evidence.cells
    }
    resting = group.imported.resting if now_s < group.imported.rests_until_s else ()
    sleeps = any(replica.report.snapshot.drafter_state is not DrafterState.IN_SYNC for replica in members.values())
    waits = waits_of_group(replica.waits for replica in members.values())
    view = GroupView(group.key, settings, evidence, group.plan, now_s, group.imported.cells, len(members), resting, sleeps, waits)
    return group, view, changed


def explorers(group: GroupState, members: Mapping[str, ReplicaState]) -> dict[str, Explorer]:
    """Replicas as those that may be asked to measure."""
    restart_tokens = _RestartTokens(group)
    return {
        replica_id: Explorer(
            replica.report.snapshot.load.decode_batch_size,
            replica.decode_batch_size_before,
            replica.report.snapshot.finished_segment_id,
            restart_tokens.of(replica.report),
            partial(group.may_measure, replica),
        )
        for replica_id, replica in members.items()
    }


class _RestartTokens:
    """Tokens that a replica would lose until its drafter can draft; the group's price is worked out once for each bucket."""

    def __init__(self, group: GroupState) -> None:
        self._group = group
        cells = group.evidence.cells.values()
        self._context_per_row = sum(cell.context_tokens for cell in cells) / max(sum(cell.rows for cell in cells), 1.0)
        self._prices: dict[int, tuple[CatchUpCost, float]] = {}

    def of(self, report: LoadReport) -> float:
        """Where the drafter is down and no wish says better, all of the KV cache may have to be caught up."""
        snapshot, estimate = report.snapshot, self._group.estimate
        batch = snapshot.load.decode_batch_size
        if not batch or estimate is None or snapshot.drafter_state in _DRAFTER_UP:
            return 0.0
        bucket = batch_bucket(batch)
        if bucket not in self._prices:
            off_step_s = float(estimate.goodput_model.rows[bucket]) / estimate.goodput_model.goodput_tokens_per_s(bucket, 0)
            self._prices[bucket] = self._group.restarts.catch_up.cost(off_step_s, self._group.key.accelerator), off_step_s
        cost, off_step_s = self._prices[bucket]
        lag_tokens = snapshot.restart_wish.lag_tokens if snapshot.restart_wish is not None else batch * self._context_per_row
        lost: float = cost.of_lag(lag_tokens, MAX_CHUNK_TOKENS) / off_step_s * batch
        return lost


def _learned(
    group: GroupState, before: Evidence, members: Mapping[str, ReplicaState], half_life_steps: float, now_s: float
) -> tuple[GroupState, Evidence]:
    """The group with what its members reported since it last learned, and its evidence, which was `before`."""
    new = {replica_id: replica.new_evidence for replica_id, replica in members.items() if replica.new_evidence.cells}
    contributions = without(group.contributions, members.keys(), len(members), now_s)
    if not new:
        return replace(group, contributions=contributions), before
    contributions, cells = contributions.plus(new, before, group.imported.cells, half_life_steps, now_s)
    contributions, evidence = pooled(contributions, before, cells, len(members), now_s)
    slopes = Slopes.of(group.estimate.goodput_model if group.estimate and len(members) > 1 else None)
    imported = replace(group.imported, cells=tuple(cell for cell in group.imported.cells if cell not in cells))
    return replace(group, contributions=with_effects(contributions, evidence, slopes, now_s), imported=imported), evidence


def _heard_at(evidence: Evidence, now_s: float) -> Evidence:
    """Stored evidence as if it had been heard now: its ages were not stored."""
    heard = {cell: known.at(now_s) for cell, known in evidence.cells.items()}
    return replace(evidence, cells=heard, acceptance=evidence.acceptance.at(now_s))


def _earned(
    allowance: Allowance, members: Mapping[str, ReplicaState], found: Mapping[str, Explorer], elapsed_s: float
) -> Allowance:
    """The allowance with what the group generated since the last tick.

    In a group of three or more a boast earns next to nothing (INV-10): nobody's tokens count for more than the second busiest's,
    and the grant is for the third largest batch; for the smallest that is run where fewer are busy. An idle majority takes nothing
    away.
    """
    needed = LEAST_REPLICAS if len(members) >= LEAST_REPLICAS else 1
    rates = sorted((replica.generated_tokens_per_s for replica in members.values()), reverse=True)
    if needed > 1:
        rates[0] = rates[1]
    batches = sorted((explorer.decode_batch_size for explorer in found.values() if explorer.decode_batch_size), reverse=True)
    rows = batches[min(needed, len(batches)) - 1] if batches else 0
    return allowance.earn(sum(rates) * elapsed_s, float(rows * needed))


def _own_estimates(
    view: GroupView, contributions: Contributions, members: Mapping[str, ReplicaState], most_replans: int
) -> tuple[dict[str, ReplicaState], dict[str, GroupView], int]:
    """Replicas whose own estimate is new or gone, what each that has traffic of its own stands on, and how many estimates are new.

    `view` runs the group's new plan.
    """
    waiting: list[tuple[float, str, GroupView]] = []
    views: dict[str, GroupView] = {}
    changed: dict[str, ReplicaState] = {}
    for replica_id, replica in members.items():
        evidence = own_evidence(view, contributions.acceptance_of(replica_id), has_own=replica.own is not None)
        if evidence is None:
            if replica.own is not None:
                changed[replica_id] = replace(replica, own=None, own_within=None)
            continue
        mine = view.with_evidence(evidence).with_objective(replica.objective)
        if replica.own is not None:
            mine = mine.with_plan(replica.own.plan)
        views[replica_id] = mine
        if needs_replan(replica.own, mine):
            waiting.append((replica.own.at_s if replica.own is not None else float("-inf"), replica_id, mine))
    due = sorted(waiting, key=lambda entry: entry[:2])[:most_replans]
    for _, replica_id, mine in due:
        changed[replica_id] = replace(members[replica_id], own=replan_alone(mine))
    return changed, views, len(due)


def _apart(
    view: GroupView, estimate: Estimate, before: Mapping[Apart, Estimate], members: Mapping[str, ReplicaState], *, is_held: bool
) -> dict[Apart, Estimate]:
    """What replicas run that do not share all of their group's plan: for an objective of their own, and within their own limit.

    Where the plan `is_held` those for an objective are as they were, and who has none runs the group's.
    """
    made: dict[Apart, Estimate] = {}
    for objective in sorted({replica.objective for replica in members.values() if replica.objective is not None}):
        last = before.get(Apart(objective))
        if last is not None and is_held:
            made[Apart(objective)] = last
        elif not is_held:
            made[Apart(objective)] = for_objective(view, estimate, objective, last)
    limits = {(replica.objective or "", replica.limit.max_step_ms) for replica in members.values() if replica.limit is not None}
    for objective_or_none, limit_ms in sorted(limits):
        key = Apart(objective_or_none or None, limit_ms)
        without = made.get(Apart(key.objective), estimate)
        made[key] = refreshed(view.with_objective(key.objective), without, limit_ms, before.get(key))
    return made


def _own_within(views: Mapping[str, GroupView], members: Mapping[str, ReplicaState]) -> dict[str, ReplicaState]:
    """Replicas whose own plan within their limit is new or gone."""
    changed = {}
    for replica_id, mine in views.items():
        replica, own_within = members[replica_id], None
        if replica.own is not None and replica.limit is not None:
            own_within = refreshed(mine, replica.own, replica.limit.max_step_ms, replica.own_within)
        if own_within is not replica.own_within:
            changed[replica_id] = replace(replica, own_within=own_within)
    return changed


def _without_own(members: Mapping[str, ReplicaState]) -> dict[str, ReplicaState]:
    with_own = {replica_id: replica for replica_id, replica in members.items() if replica.own is not None}
    return {replica_id: replace(replica, own=None, own_within=None) for replica_id, replica in with_own.items()}
