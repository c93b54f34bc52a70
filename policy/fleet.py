"""The fleet's decisions as a function of values: a state goes in, a decision for every replica and the state after it come out.

`decide` drops silent replicas, merges each group's pending evidence (`intake.observe` keeps it), plans, deals out measurements and
answers per replica; `fleet_status.py` tells it in words. The controller alone calls it, with the caller's clock and random numbers.
Fails towards off: what a group does not know, it does not speculate on.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nightjar.policy.estimate.off_steps import expected_off_steps
from nightjar.policy.granting import MayGrant, group_restarts
from nightjar.policy.intake import MAX_RETIRED_ENGINES, counted_under
from nightjar.policy.learning import hold, learn
from nightjar.policy.limiting import with_limits
from nightjar.policy.modes import ModeOverride, effective_mode, fleet_override, live_overrides, with_planner
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.planners.base import one_length, speculation
from nightjar.policy.seeding import with_own_price, with_waiting_priors
from nightjar.policy.state import MAX_REPLICAS, FleetState, GroupState, ReplicaState
from nightjar.policy.trials import in_words
from nightjar.policy.trying import Trying, with_canary
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import MAX_REASON_LENGTH
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import ExplorationSegment, Plan, RestartLimits, Settings, Table

MOST_REPLANS: Final = 40
"""Re-plans in one decision, of groups and of replicas, the longest waiting first: 60 ms, however many there are."""

_NO_RESTARTS: Final = RestartLimits()


def decide(
    state: FleetState, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float, rng: random.Random
) -> tuple[dict[str, Settings], FleetState]:
    """The settings of every live replica, by replica id, and the state after it.

    Replicas unheard of for `replica_timeout_s` are dropped with what they had not yet merged. Groups stay with what they learned.
    Where a group with a seed has a replica, the seed becomes its prior first. Replicas that cannot be steered (served plainly, or
    failed open) count no steps, teach nothing and have no restarts: the budget is of the others. While the fleet is frozen every
    group runs the plan that was in force then, and seeds wait. A canary's replicas run what it tries, until it loses.
    """
    settings, by_hand = with_planner(settings, overrides, now_s), fleet_override(overrides, now_s)
    anew_at_s = by_hand.anew_at_s if by_hand is not None else None
    frozen = state.freeze if state.freeze is not None and state.freeze.is_live(now_s) else None
    if frozen is None:
        state = with_waiting_priors(state, now_s, settings.calibration_clean_steps)
    live = {
        replica_id: replica
        for replica_id, replica in sorted(state.replicas.items())
        if now_s - replica.heard_at_s <= settings.replica_timeout_s
    }
    members: dict[str, dict[str, ReplicaState]] = {group_id: {} for group_id in state.groups}
    for replica_id, replica in live.items():
        members[replica.group_id][replica_id] = replica
    still = live_overrides(overrides, now_s)
    decisions: dict[str, Settings] = {}
    groups: dict[str, GroupState] = {}
    next_segment_id = state.next_segment_id
    may_grant = MayGrant.of(state, settings, now_s)
    trying = Trying(state.canary, settings, still, now_s)
    replans_left = MOST_REPLANS
    for group_id, group in sorted(state.groups.items(), key=lambda entry: entry[1].estimated_at_s):
        if not (members[group_id] or group.evidence.cells or group.restarts.open_leases):
            continue
        modes = {
            replica_id: effective_mode(replica_id, replica.report.application, settings.mode, still, now_s)
            for replica_id, replica in members[group_id].items()
        }
        its = settings if frozen is None else frozen.settings_of(group_id, settings)
        tried = trying.group(group_id, members[group_id], modes)
        modes |= {name: (override.mode, "the canary") for name, override in tried.items()}
        limited = with_limits(members[group_id], modes, its, still, now_s, tried)
        members[group_id] |= limited
        steered = {name: replica for name, replica in members[group_id].items() if replica.can_be_steered}
        asked = {
            replica_id
            for replica_id, replica in steered.items()
            if modes[replica_id][0].kind == "auto" and replica.report.local_mode is None
        }
        if frozen is None:
            groups[group_id], changed, used = learn(group, steered, asked, its, next_segment_id, replans_left, now_s, rng)
        else:
            plan = frozen.plan_of(group_id, group.key, group.plan)
            groups[group_id], changed, used = hold(group, steered, plan, its, replans_left, now_s)
        replans_left -= used
        steered |= changed
        members[group_id] |= steered
        live.update(limited | changed)
        if groups[group_id].estimate is not group.estimate:  # what guards compare with follows the estimate that the plan stands on
            groups[group_id] = _with_off_steps(groups[group_id], its)
        groups[group_id] = with_own_price(counted_under(groups[group_id], steered, modes, now_s), steered)
        groups[group_id], limits, may_grant, counted = group_restarts(groups[group_id], steered, modes, its, may_grant, now_s)
        for replica_id, new_restarts in counted.items():
            live[replica_id] = replace(live[replica_id], new_restarts=new_restarts)
        next_segment_id = max([next_segment_id, *(held.segment.segment_id + 1 for held in groups[group_id].exploration.segments)])
        own_settings = trying.settings_of(tried, its)
        decisions.update(_decisions(groups[group_id], members[group_id], modes, limits, its, own_settings, anew_at_s))
    groups = {group_id: groups[group_id] for group_id in state.groups if group_id in groups}
    departed = _departed(state, live)
    live |= {name: replace(replica, new_work={}) for name, replica in live.items() if replica.new_work}
    after = replace(state, replicas=PersistentMap(live), groups=groups, next_segment_id=next_segment_id, departed=departed)
    return decisions, with_canary(after, trying.after(frozen=frozen is not None))


def _departed(state: FleetState, live: Mapping[str, ReplicaState]) -> Mapping[str, tuple[str, ...]]:
    """The replicas that departed and the engines that were counted of each; no more than there may be replicas (INV-8)."""
    gone: dict[str, tuple[str, ...]] = {}
    for replica_id, replica in state.replicas.items():
        if replica_id not in live:
            engine_ids = (*state.departed.get(replica_id, ()), *replica.retired_engine_ids, replica.counted.engine_id)
            gone[replica_id] = tuple(dict.fromkeys(engine_ids))[-MAX_RETIRED_ENGINES:]
    if not gone:
        return state.departed
    kept = {replica_id: engine_ids for replica_id, engine_ids in state.departed.items() if replica_id not in gone} | gone
    return dict(list(kept.items())[-MAX_REPLICAS:])


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
        apart = group.apart(replica)
        its = own_settings.get(replica_id, operator)
        same = modes[replica_id], replica.report.serving_plainly, id(apart), replica.why_apart, mine, restarts, id(its)
        if same not in shared:
            plan, allowed, dwell_steps, reason = _planned(group, group_plan, replica, *modes[replica_id], mine, its)
            shared[same] = Settings(
                mode=modes[replica_id][0],
                plan=plan,
                allowed_num_speculative_tokens=allowed,
                dwell_steps=dwell_steps,
                settings_max_age_s=its.settings_max_age_s,
                exchange_period_s=its.exchange_period_s,
                restarts=restarts,
                offload=its.offload_rules(),
                reason=reason[:MAX_REASON_LENGTH],
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
) -> tuple[Plan, tuple[int, ...], int, str]:
    """The plan of a replica, the K that it allows, how many steps a K is held before it rises, and why."""
    assert group.plan is not None
    key = group.key
    arms = operator.arms(key.max_num_speculative_tokens, key.graph_tiers)
    if replica.report.serving_plainly or mode.kind in {"off", "pin"}:
        length, reason = _by_mode(mode, who, replica.report.serving_plainly, key)
        table = Table(rows=one_length(length, key.max_num_seqs))
        return table, tuple(sorted({length}.union(arms))), operator.dwell_steps, reason
    apart = group.apart(replica)
    its_plan = group.plan if apart is None else apart.plan
    rows, mixed_rows = its_plan.rows, its_plan.mixed_rows
    summary = its_plan.summary if apart is None else f"{its_plan.summary} ({replica.why_apart})"
    reason = f"{operator.planner}: {summary}" + (f"; {in_words(mine)}" if mine else "")
    if mode.kind == "shadow":
        reason = f"mode shadow set by {who}, nothing is touched; {reason}"
    plan = group_plan
    if apart is not None or mine:
        plan = Table(rows=rows, mixed_rows=mixed_rows, segments=mine, off_steps=group.off_steps)
    allowed = tuple(sorted({row.num_speculative_tokens for row in (*rows, *mixed_rows)}.union(arms)))
    return plan, allowed, 0 if group.plan.local else operator.dwell_steps, reason


def _by_mode(mode: Mode, who: str, serving_plainly: str, key: GroupKey) -> tuple[int, str]:
    """The one K of a replica whose mode leaves nothing to plan, or whose engine cannot be steered; and why.

    A pinned K is a person's word: it need not be among the allowed ones, nor have graphs, but an engine cannot exceed its maximum.
    """
    if serving_plainly:
        return 0, f"serves plainly, not steered: {serving_plainly}"
    wanted, reason = mode.num_speculative_tokens or 0, f"mode {mode} set by {who}"
    most = key.max_num_speculative_tokens
    if wanted > most:
        return most, f"{reason}, lowered to {speculation(most)}: the engine's maximum is {most}"
    return wanted, "; ".join(part for part in (reason, mode.why_slow(key.graph_tiers)) if part)
