"""The fleet's decisions as functions of values: reports go in one by one, and once a period a decision for every replica comes out.

`observe` keeps what is new in a report as pending evidence; `decide` drops silent replicas, merges each group's pending
evidence, plans, deals out measurements and answers per replica; `fleet_status` tells it in words. Clock and randomness
are the caller's, so the actor, the simulator and the journal's replay come to the same decisions (INV-7). Fails towards
off: what a group does not know, it does not speculate on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from nightjar.policy.exploration import Explorer, OpenSegment, deal, in_words
from nightjar.policy.fleet_restarts import MayGrant, group_restarts
from nightjar.policy.fleet_state import (
    Decision,
    FleetState,
    GroupState,
    ReplicaState,
    empty_fleet,
    learned,
    quieted,
    with_learned,
)
from nightjar.policy.fleet_status import fleet_status
from nightjar.policy.intake import observe
from nightjar.policy.merging import Pending, merge
from nightjar.policy.modes import ModeOverride, effective_mode, live_overrides
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.planners import PLANNERS
from nightjar.policy.planners.planner import GroupView, one_length, speculation
from nightjar.policy.records import ExplorationSegment, GroupKey, Mode, Table
from nightjar.policy.settings import OperatorSettings

__all__ = ["Decision", "FleetState", "decide", "empty_fleet", "fleet_status", "learned", "observe", "quieted", "with_learned"]

MAX_REASON_LENGTH: Final = 1024
"""Of a record's `reason`."""


def decide(
    state: FleetState, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float, rng: random.Random
) -> tuple[dict[str, Decision], FleetState]:
    """A decision for every live replica, by replica id, and the state after it.

    Replicas unheard of for `replica_timeout_s` are dropped with what they had pending. Groups stay with what they learned.
    """
    live = {
        replica_id: replica
        for replica_id, replica in sorted(state.replicas.items())
        if now_s - replica.heard_at_s <= settings.replica_timeout_s
    }
    members: dict[str, dict[str, ReplicaState]] = {group_id: {} for group_id in state.groups}
    for replica_id, replica in live.items():
        members[replica.group_id][replica_id] = replica
    still = live_overrides(overrides, now_s)
    decisions: dict[str, Decision] = {}
    groups: dict[str, GroupState] = {}
    next_segment_id = state.next_segment_id
    may_grant = MayGrant.of(state, settings, now_s)
    for group_id, group in state.groups.items():
        if not (members[group_id] or group.evidence.cells or group.restarts.open_leases):
            continue
        modes = {
            replica_id: effective_mode(replica_id, replica.report.application, settings.mode, still, now_s)
            for replica_id, replica in members[group_id].items()
        }
        groups[group_id], left = _decide_group(group, members[group_id], modes, settings, next_segment_id, now_s, rng)
        groups[group_id], terms, may_grant, counted = group_restarts(
            groups[group_id], members[group_id], modes, settings, may_grant, now_s
        )
        for replica_id, new_restarts in counted.items():
            live[replica_id] = replace(live[replica_id], new_restarts=new_restarts)
        for replica_id, pending in left.items():
            live[replica_id] = replace(live[replica_id], pending=pending)
        next_segment_id = max([next_segment_id, *(held.segment.segment_id + 1 for held in groups[group_id].segments)])
        decided = _decisions(groups[group_id], members[group_id], modes, settings)
        decisions.update({name: replace(decision, terms=terms[name]) for name, decision in decided.items()})
    return decisions, FleetState(PersistentMap(live), groups, next_segment_id, state.quiet_since_s)


def _decide_group(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    settings: OperatorSettings,
    next_segment_id: int,
    now_s: float,
    rng: random.Random,
) -> tuple[GroupState, dict[str, Pending]]:
    """Merge, plan, deal: the group afterwards, and what is left pending of the replicas that were merged."""
    pending = {replica_id: replica.pending for replica_id, replica in members.items()}
    evidence, left = merge(group.evidence, pending, settings.evidence_half_life_steps)
    view = GroupView(group.key, settings, evidence, group.plan)
    plan = PLANNERS[settings.planner](view)
    segments: tuple[OpenSegment, ...] = ()
    if settings.planner == "fleet":
        explorers = {
            replica_id: Explorer(replica.report.snapshot.load.decode_batch_size, replica.report.snapshot.finished_segment_id)
            for replica_id, replica in members.items()
            if modes[replica_id][0].kind == "auto" and not replica.report.serving_plainly and replica.report.local_mode is None
        }
        segments = deal(view, explorers, {**pending, **left}, group.segments, next_segment_id, now_s, rng)
    return GroupState(group.key, evidence, settings.planner, plan, segments, group.restarts), left


def _decisions(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    settings: OperatorSettings,
) -> dict[str, Decision]:
    assert group.plan is not None
    planned = Table(rows=group.plan.rows)
    segments: dict[str, list[ExplorationSegment]] = {}
    for held in group.segments:
        segments.setdefault(held.replica_id, []).append(held.segment)
    arms = settings.arms(group.key.max_num_speculative_tokens)
    named = {row.num_speculative_tokens for row in planned.rows}
    allowed = tuple(sorted(named.union(arms)))
    decisions = {}
    for replica_id, replica in members.items():
        mode, who = modes[replica_id]
        if replica.report.serving_plainly or mode.kind in {"off", "pin"}:
            decisions[replica_id] = _by_mode(mode, who, replica.report.serving_plainly, group.key, settings, arms)
            continue
        mine = tuple(segments.get(replica_id, ()))
        reason = f"{settings.planner}: {group.plan.summary}" + (f"; {in_words(mine)}" if mine else "")
        if mode.kind == "shadow":
            reason = f"mode shadow set by {who}, nothing is touched; {reason}"
        plan = Table(rows=planned.rows, segments=mine) if mine else planned
        decisions[replica_id] = Decision(mode, plan, allowed, settings.dwell_steps, reason[:MAX_REASON_LENGTH])
    return decisions


def _by_mode(
    mode: Mode, who: str, serving_plainly: str, key: GroupKey, settings: OperatorSettings, arms: tuple[int, ...]
) -> Decision:
    """The one K of a replica whose mode leaves nothing to plan, or whose engine cannot be steered.

    A pinned K is a person's word: it need not be among the allowed ones, but an engine cannot exceed its maximum.
    """
    length, reason = 0, f"mode {mode} set by {who}"
    if serving_plainly:
        reason = f"serves plainly, not steered: {serving_plainly}"
    elif mode.num_speculative_tokens is not None:
        length = min(mode.num_speculative_tokens, key.max_num_speculative_tokens)
        if length != mode.num_speculative_tokens:
            reason += f", lowered to {speculation(length)}: the engine's maximum is {key.max_num_speculative_tokens}"
    table = Table(rows=one_length(length, key.max_num_seqs))
    return Decision(mode, table, tuple(sorted({length}.union(arms))), settings.dwell_steps, reason[:MAX_REASON_LENGTH])
