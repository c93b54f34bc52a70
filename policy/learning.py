"""One group's tick: merge what replicas measured, think if that is news, deal out measurements, and let single replicas think.

Everything a group learns goes through here, from values to values; the fleet loop around it knows of modes and records only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Final

from nightjar.policy.batch_buckets import batch_bucket
from nightjar.policy.drafter_life import MAX_CHUNK_TOKENS
from nightjar.policy.evidence import Evidence
from nightjar.policy.exploration import Allowance, Exploration, Explorer, deal
from nightjar.policy.fleet_state import GroupState, ReplicaState
from nightjar.policy.merging import merge, quorum
from nightjar.policy.mixed_steps import steps_per_token
from nightjar.policy.planners import PLANNERS
from nightjar.policy.planners.planner import GroupView
from nightjar.policy.records import DrafterState
from nightjar.policy.settings import OperatorSettings
from nightjar.policy.thinking import is_news, own_evidence, think

MOST_OWN_THOUGHTS: Final = 100
"""Replicas of a group that think for themselves in one tick, the longest waiting first: bounds its time in a cold, large group."""


_DRAFTER_UP: Final = frozenset({DrafterState.ACTIVE, DrafterState.IN_SYNC, DrafterState.PROBING, DrafterState.CATCHING_UP})


def learn(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    explorers: Mapping[str, Explorer],
    settings: OperatorSettings,
    next_segment_id: int,
    now_s: float,
    rng: random.Random,
) -> tuple[GroupState, dict[str, ReplicaState]]:
    """The group after this tick, and those of its live `members` that changed. `explorers` may be asked to measure."""
    pending = {replica_id: replica.pending for replica_id, replica in members.items()}
    before = group.evidence if group.decided_at_s is not None else _heard_at(group.evidence, now_s)
    evidence, left = merge(before, pending, settings.evidence_half_life_steps, now_s)
    evidence = replace(evidence, mixed_steps_per_token=steps_per_token(replica.mixed_share for replica in members.values()))
    changed = {replica_id: replace(members[replica_id], pending=waiting) for replica_id, waiting in left.items()}
    view = GroupView(group.key, settings, evidence, group.plan, now_s)
    after = replace(group, evidence=evidence, planner=settings.planner, decided_at_s=now_s)
    if settings.planner != "fleet":
        changed.update(_without_own({**members, **changed}))
        return replace(after, plan=PLANNERS[settings.planner](view), exploration=Exploration(), thought=None), changed
    thought = think(view) if group.thought is None or is_news(group.thought, view) else group.thought
    elapsed_s = now_s - group.decided_at_s if group.decided_at_s is not None else 0.0
    earned = _earned(group.exploration.allowance, members, explorers, elapsed_s)
    exploration = replace(group.exploration, allowance=earned)
    exploration = deal(view, thought.wanted, explorers, {**pending, **left}, exploration, next_segment_id, rng)
    changed.update(_own_thoughts(view.with_plan(thought.plan), {**members, **changed}))
    return replace(after, plan=thought.plan, exploration=exploration, thought=thought), changed


def explorer(group: GroupState, replica: ReplicaState) -> Explorer:
    """A replica as one that may be asked to measure. Where its drafter is down, all of its KV cache may have to be caught up."""
    snapshot = replica.report.snapshot
    batch = snapshot.load.decode_batch_size
    lost = 0.0
    if batch and group.thought is not None and snapshot.drafter_state not in _DRAFTER_UP:
        wish, cells = replica.report.restart_wish, group.evidence.cells.values()
        context_per_row = sum(cell.context_tokens for cell in cells) / max(sum(cell.rows for cell in cells), 1.0)
        lag_tokens = wish.lag_tokens if wish is not None else batch * context_per_row
        off_step_s = batch / group.thought.outlook.goodput_tokens_per_s(batch_bucket(batch), 0)
        lost = (
            group.restarts.catch_up.cost(off_step_s, group.key.accelerator).of_lag(lag_tokens, MAX_CHUNK_TOKENS)
            / off_step_s
            * batch
        )
    return Explorer(batch, snapshot.finished_segment_id, lost)


def _heard_at(evidence: Evidence, now_s: float) -> Evidence:
    """Stored evidence as if it had been heard now: its ages were not stored."""
    heard = {cell: known.at(now_s) for cell, known in evidence.cells.items()}
    return replace(evidence, cells=heard, acceptance=evidence.acceptance.at(now_s))


def _earned(
    allowance: Allowance, members: Mapping[str, ReplicaState], explorers: Mapping[str, Explorer], elapsed_s: float
) -> Allowance:
    """The allowance with what the group generated since the last tick. A median, so that no boast earns anything (INV-10)."""
    rates = [replica.generated_tokens_per_s for replica in members.values()]
    rows = max((explorer.decode_batch_size for explorer in explorers.values()), default=0)
    generated = median(rates) * len(rates) * elapsed_s if rates else 0.0
    return allowance.earn(generated, float(rows * quorum(len(members))))


def _own_thoughts(view: GroupView, members: Mapping[str, ReplicaState]) -> dict[str, ReplicaState]:
    """Replicas whose own thought is new or gone. `view` runs the group's new plan."""
    waiting: list[tuple[float, str, GroupView]] = []
    changed: dict[str, ReplicaState] = {}
    for replica_id, replica in members.items():
        evidence = own_evidence(view, len(members), replica.pending)
        if evidence is None:
            if replica.own is not None:
                changed[replica_id] = replace(replica, own=None)
            continue
        mine = view.with_evidence(evidence)
        if replica.own is not None:
            mine = mine.with_plan(replica.own.plan)
        if is_news(replica.own, mine):
            waiting.append((replica.own.at_s if replica.own is not None else float("-inf"), replica_id, mine))
    for _, replica_id, mine in sorted(waiting, key=lambda entry: entry[:2])[:MOST_OWN_THOUGHTS]:
        changed[replica_id] = replace(members[replica_id], own=think(mine))
    return changed


def _without_own(members: Mapping[str, ReplicaState]) -> dict[str, ReplicaState]:
    return {replica_id: replace(replica, own=None) for replica_id, replica in members.items() if replica.own is not None}
