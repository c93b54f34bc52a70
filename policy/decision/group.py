"""One group's decision as a function of values: its replicas' modes and limits, what it learns, its restarts, and what each runs.

Everything that holds for all groups is in the `Context`. What one group uses up for those after it goes from group to group as
`Shared`. Fails towards off: a replica that cannot be steered counts no steps, teaches nothing and is told K = 0.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from nightjar.policy.decision.canary import Tried, tried_in
from nightjar.policy.decision.learning import learn
from nightjar.policy.decision.restarts import MayGrant, group_restarts
from nightjar.policy.evidence.goodput import expected_off_steps
from nightjar.policy.exploration import measuring
from nightjar.policy.intake import counted_under
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.operator.freeze import Freeze
from nightjar.policy.operator.overrides import (
    ModeOverride,
    effective_mode,
    fleet_override,
    limit_of,
    live_overrides,
    objective_of,
    slower,
    with_overrides,
)
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.planners.base import one_k
from nightjar.policy.priors import with_own_price
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.wire.cause import MAX_CAUSES, Causes, Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import ExplorationSegment, Plan, RestartLimits, Settings, Table

_NO_RESTARTS: Final = RestartLimits()


@dataclass(frozen=True, slots=True)
class Context:
    """What holds for every group in one decision: settings with the planner that decides now, overrides and a freeze in force, the
    canary, since when engines' own planners begin anew, and the time.
    """

    settings: OperatorSettings
    overrides: tuple[ModeOverride, ...]
    freeze: Freeze | None
    canary: Trial | None
    anew_at_s: float | None
    now_s: float

    @classmethod
    def of(cls, state: FleetState, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float) -> Self:
        """As a decision begins."""
        by_hand, freeze = fleet_override(overrides, now_s), state.freeze
        return cls(
            with_overrides(settings, overrides, now_s),
            live_overrides(overrides, now_s),
            freeze if freeze is not None and freeze.is_live(now_s) else None,
            state.canary,
            by_hand.anew_at_s if by_hand is not None else None,
            now_s,
        )


@dataclass(frozen=True, slots=True)
class Shared:
    """What groups that decide one after the other share: re-plans left, the next segment's id, and what may be granted."""

    replans: int
    next_segment_id: int
    may_grant: MayGrant


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """A group and its replicas after its decision, the settings of these, what a canary does among them, and what is left for the
    groups after it.
    """

    group: GroupState
    replicas: Mapping[str, ReplicaState]
    decisions: Mapping[str, Settings]
    tried: Tried
    shared: Shared


def decide_group(
    group_id: str,
    group: GroupState,
    replicas: Mapping[str, ReplicaState],
    context: Context,
    shared: Shared,
    rng: random.Random,
) -> GroupOutcome:
    """What comes of one group's decision; `replicas` are its live ones as they reported.

    Replicas that cannot be steered (served plainly, or failed open) count no steps, teach nothing and have no restarts: the budget
    is of the others. In a frozen fleet the group runs the plan that was in force then. A canary's replicas run what it tries.
    """
    settings, now_s, freeze = context.settings, context.now_s, context.freeze
    modes = {
        replica_id: effective_mode(
            replica_id,
            replica.report.application,
            settings.mode,
            context.overrides,
            now_s,
            adaptive_verification=group.key.adaptive_verification,
        )
        for replica_id, replica in replicas.items()
    }
    if freeze is not None:
        settings = freeze.settings_of(group_id, settings)
    tried = tried_in(context.canary, group_id, replicas, modes, context.overrides, now_s)
    modes |= {replica_id: (override.mode, "the canary") for replica_id, override in tried.overrides.items()}
    limited = _with_own_aims(replicas, modes, settings, context.overrides, now_s, tried.overrides)
    steered = {replica_id: replica for replica_id, replica in limited.items() if replica.can_be_steered}
    asked = {
        replica_id
        for replica_id, replica in steered.items()
        if modes[replica_id][0].kind == "auto" and replica.report.local_mode is None
    }
    held = freeze.plan_of(group_id, group.key, group.plan) if freeze is not None else None
    after, changed, replans = learn(group, steered, asked, held, settings, shared.next_segment_id, shared.replans, now_s, rng)
    learned = steered | changed
    if after.estimate is not group.estimate:  # what guards compare with follows the estimate that the plan stands on
        after = _with_off_steps(after, settings)
    after = with_own_price(counted_under(after, learned, modes, now_s), learned)
    after, restarts, may_grant, counted = group_restarts(after, learned, modes, settings, shared.may_grant, now_s)
    own_settings = tried.settings_over(settings)
    decisions = _decisions(after, limited | learned, modes, restarts, settings, own_settings, context.anew_at_s)
    priced = {name: replace(learned[name], new_restarts=new_restarts) for name, new_restarts in counted.items()}
    segment_ids = [measured.segment.segment_id + 1 for measured in after.exploration.segments]
    left = Shared(shared.replans - replans, max([shared.next_segment_id, *segment_ids]), may_grant)
    return GroupOutcome(after, limited | learned | priced, decisions, tried, left)


def _with_own_aims(
    replicas: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    settings: OperatorSettings,
    overrides: Sequence[ModeOverride],
    now_s: float,
    tried: Mapping[str, ModeOverride],
) -> dict[str, ReplicaState]:
    """The replicas with the limit of a step and the objective that each has and not all of the group (an application's, by hand, or
    a canary's).

    A limit does not loosen the fleet's `max_step_ms`, which the group's plan keeps already. Neither has a replica whose mode plans
    nothing, that cannot be steered, or whose planner does not learn.
    """
    by_hand = any(override.max_step_ms or override.objective for override in (*overrides, *tried.values()))
    there_are = settings.planner in LEARNING_PLANNERS and (by_hand or bool(settings.named_applications))
    limited = {}
    for replica_id, replica in replicas.items():
        limit, objective, is_by_hand = None, None, False
        if there_are and replica.can_be_steered and modes[replica_id][0].kind in {"auto", "shadow"}:
            said, application = (tried[replica_id], *overrides) if replica_id in tried else overrides, replica.report.application
            limit = limit_of(replica_id, application, settings, said, now_s)
            objective, is_by_hand = objective_of(replica_id, application, settings, said, now_s)
        before = (replica.limit, replica.objective, replica.is_objective_by_hand)
        limited[replica_id] = (
            replica
            if (limit, objective, is_by_hand) == before
            else replace(replica, limit=limit, objective=objective, is_objective_by_hand=is_by_hand)
        )
    return limited


def _with_off_steps(group: GroupState, settings: OperatorSettings) -> GroupState:
    """The group with what its engines' guards compare with; nothing where its planner does not learn."""
    if group.estimate is None:
        return group if not group.off_steps else replace(group, off_steps=())
    model, clean_steps = group.estimate.goodput_model, settings.calibration_clean_steps
    return replace(group, off_steps=expected_off_steps(group.evidence, model, clean_steps, group.off_steps))


def _decisions(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    limits: Mapping[str, RestartLimits],
    operator: OperatorSettings,
    own_settings: Mapping[str, OperatorSettings],
    anew_at_s: float | None,
) -> dict[str, Settings]:
    """Settings of every member, by the operator's or its own.

    Members of whom all the same holds share one record: building one for each would take long.
    """
    assert group.plan is not None
    segments: dict[str, list[ExplorationSegment]] = {}
    for held in group.exploration.segments:
        if held.replica_id not in members or group.may_measure(members[held.replica_id], held.cell):
            segments.setdefault(held.replica_id, []).append(held.segment)
    group_plan: Plan
    if group.plan.local is not None:
        group_plan = group.plan.local.begun_anew(anew_at_s)
    else:
        group_plan = Table(rows=group.plan.rows, mixed_rows=group.plan.mixed_rows, off_steps=group.off_steps)
    shared: dict[Hashable, Settings] = {}
    decisions = {}
    for replica_id, replica in members.items():
        mine, restarts = tuple(segments.get(replica_id, ())), limits.get(replica_id, _NO_RESTARTS)
        variant = group.variant(replica)
        its = own_settings.get(replica_id, operator)
        same = modes[replica_id], replica.report.serving_plainly, id(variant.plan), variant.why_apart, mine, restarts, id(its)
        if same not in shared:
            plan, allowed, dwell_steps, causes = _planned(group, group_plan, replica, *modes[replica_id], mine, its)
            shared[same] = Settings(
                mode=modes[replica_id][0],
                plan=plan,
                allowed_num_speculative_tokens=allowed,
                dwell_steps=dwell_steps,
                settings_max_age_s=its.settings_max_age_s,
                exchange_period_s=its.exchange_period_s,
                restarts=restarts,
                offload=its.offload_rules(),
                causes=causes[:MAX_CAUSES],
            )
        decisions[replica_id] = shared[same]
    return decisions


def _planned(
    group: GroupState,
    group_plan: Plan,
    replica: ReplicaState,
    mode: Mode,
    who: str,
    mine: tuple[ExplorationSegment, ...],
    operator: OperatorSettings,
) -> tuple[Plan, tuple[int, ...], int, Causes]:
    """The plan of a replica, the K that it allows, how many steps a K is held before it rises, and why."""
    key = group.key
    ks = operator.runnable_ks(key.max_num_speculative_tokens, key.graph_tiers)
    if replica.report.serving_plainly or mode.kind in {"off", "pin"}:
        k, causes = _by_mode(mode, who, replica.report.serving_plainly, key)
        table = Table(rows=one_k(k, key.max_num_seqs))
        return table, tuple(sorted({k}.union(ks))), operator.dwell_steps, causes
    variant = group.variant(replica)
    assert variant.plan is not None
    assert group.plan is not None
    rows, mixed_rows = variant.plan.rows, variant.plan.mixed_rows
    shadow = (*_set_by(mode, who), because(Code.UNTOUCHED)) if mode.kind == "shadow" else ()
    planner = because(Code.PLANNER, operator.planner)
    causes = (*shadow, planner, *variant.plan.summary, *variant.why_apart, *measuring(mine))
    plan = group_plan
    if variant.why_apart or mine:
        plan = Table(rows=rows, mixed_rows=mixed_rows, segments=mine, off_steps=group.off_steps)
    allowed = tuple(sorted({row.num_speculative_tokens for row in (*rows, *mixed_rows)}.union(ks)))
    return plan, allowed, 0 if group.plan.local else operator.dwell_steps, causes


def _by_mode(mode: Mode, who: str, serving_plainly: str, key: GroupKey) -> tuple[int, Causes]:
    """The one K of a replica whose mode leaves nothing to plan, or whose engine cannot be steered; and why.

    A pinned K is a person's word: it need not be among the allowed ones, nor have graphs, but an engine cannot exceed its maximum.
    """
    if serving_plainly:
        return 0, (because(Code.SERVED_PLAINLY, serving_plainly),)
    wanted, most, causes = mode.num_speculative_tokens or 0, key.max_num_speculative_tokens, _set_by(mode, who)
    if wanted > most:
        return most, (*causes, because(Code.LOWERED, num_speculative_tokens=most))
    return wanted, (*causes, *slower(mode, key))


def _set_by(mode: Mode, who: str) -> Causes:
    return because(Code.MODE, str(mode)), because(Code.SET_BY, who)
