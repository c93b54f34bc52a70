"""The fleet as a value: replicas, groups and what was decided for them; and what of it is stored.

Memory is O(replicas + groups) (INV-8): of a replica one report without its cells, one compact baseline and its pending
evidence. Both numbers are bounded where reports come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nightjar.policy.estimate.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.estimate.contributions import Contributions, NewEvidence
from nightjar.policy.estimate.counting import CountedEngine
from nightjar.policy.estimate.evidence import Cell, Evidence
from nightjar.policy.estimate.mixed_steps import MixedShare
from nightjar.policy.freeze import Freeze
from nightjar.policy.modes import ReplicaLimit
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.planners.base import GroupPlan
from nightjar.policy.planners.replanning import Estimate
from nightjar.policy.prior.learned import MAX_LEARNED_CELLS, MAX_LEARNED_GROUPS, LearnedGroup, LearnedTables
from nightjar.policy.prior.seed import Imported, SeedGroup
from nightjar.policy.restarts.leases import GroupRestarts
from nightjar.policy.trials import Exploration
from nightjar.policy.wire.report import GroupKey, LoadReport
from nightjar.policy.wire.settings import OffStep

MAX_REPLICAS: Final = 10_000
"""Far above what one actor serves (about 1,000 reports a second), below the calls that Ray lets an actor hold (20,000)."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica: its last report (cells left out) and its batch in the one before, what was counted of its engine, and evidence
    not merged yet.

    `own` is its own estimate, where its traffic is not its group's; None: the group's plan. `limit` is a limit of a
    step that not all of its group have, `own_within` what it thinks for itself within that (planners.limited).
    """

    report: LoadReport
    group_id: str
    heard_at_s: float
    counted: CountedEngine
    counted_at_s: float | None = None
    decode_batch_size_before: int = 0
    new_evidence: NewEvidence = field(default_factory=NewEvidence)
    generated_tokens_per_s: float = 0.0
    mixed_share: MixedShare = field(default_factory=MixedShare)
    new_restarts: NewRestarts = field(default_factory=NewRestarts)
    retired_engine_ids: tuple[str, ...] = ()
    own: Estimate | None = field(default=None, compare=False)
    limit: ReplicaLimit | None = None
    own_within: Estimate | None = field(default=None, compare=False)

    @property
    def why_apart(self) -> str:
        """Why it does not run its group's plan where it does not (`GroupState.apart`), in words."""
        own = "its own evidence" if self.own is not None else ""
        return ", ".join(part for part in (own, f"within {self.limit}" if self.limit is not None else "") if part)

    @property
    def can_be_steered(self) -> bool:
        """Whether its engine obeys and counts its steps: not served plainly, and none of our hooks in it has failed."""
        return not self.report.serving_plainly and not self.report.snapshot.fault


@dataclass(frozen=True, slots=True)
class GroupState:
    """One group: what it learned, the plan in force, who planned it, the measurements under way and what they may still cost.

    `estimate` is what the plan of the planner `fleet` stands on, `within` the same within limits of a step that some replicas have,
    by their milliseconds. `imported` says what of the evidence nobody measured here. `is_remembered`: its evidence comes from the
    policy before, to which engines had told their history.
    """

    key: GroupKey
    evidence: Evidence = field(default_factory=Evidence)
    contributions: Contributions = field(default_factory=Contributions, compare=False)
    planner: str = ""
    plan: GroupPlan | None = None
    exploration: Exploration = field(default_factory=Exploration)
    decided_at_s: float | None = None
    estimate: Estimate | None = field(default=None, compare=False)
    within: Mapping[float, Estimate] = field(default_factory=dict, compare=False)
    restarts: GroupRestarts = field(default_factory=GroupRestarts)
    off_steps: tuple[OffStep, ...] = ()
    imported: Imported = field(default_factory=Imported)
    is_remembered: bool = False

    @property
    def estimated_at_s(self) -> float:
        """When it was last planned; before all others if it never was."""
        return self.estimate.at_s if self.estimate is not None else float("-inf")

    def apart(self, replica: ReplicaState) -> Estimate | None:
        """What a replica runs that is not the group's plan (None: it is): its own estimate, or either within its limit."""
        if replica.own is not None:
            return replica.own_within if replica.limit is not None and replica.own_within is not None else replica.own
        return self.within.get(replica.limit.max_step_ms) if replica.limit is not None else None

    def plan_of(self, replica: ReplicaState) -> GroupPlan | None:
        """The plan that one of its replicas runs."""
        apart = self.apart(replica)
        return self.plan if apart is None else apart.plan

    def limit_decides(self, replica: ReplicaState) -> bool:
        """Whether a replica is busy, and runs another K at its batch than it would without its limit."""
        batch, within = replica.report.snapshot.load.decode_batch_size, self.apart(replica)
        without = replica.own.plan if replica.own is not None else self.plan
        if not batch or within is None or replica.limit is None or without is None:
            return False
        return within.plan.num_speculative_tokens(batch) != without.num_speculative_tokens(batch)

    def may_measure(self, replica: ReplicaState, cell: Cell) -> bool:
        """Whether a replica may be asked to run a cell's K: one that is expected to keep its limit, if it has one."""
        within = self.apart(replica) if replica.limit is not None else None
        if within is None or cell[1] not in within.goodput_model.arms:
            return True
        return bool(within.goodput_model.may_be_tried[cell[0], within.goodput_model.arms.index(cell[1])])


@dataclass(frozen=True, slots=True)
class FleetState:
    """The whole fleet as a value. `observe` shares all but one replica's entry with the state before it.

    `quiet_since_s` is when this policy began, if leases of a predecessor may still be in use after it (INV-6).
    `waiting` are seeds whose group has no replica yet (policy.seeding). `departed` are replicas that fell silent, the latest last,
    with the ids of the engines that were counted of each: they may come back. `freeze` is an operator's, in force or over.
    """

    replicas: PersistentMap[ReplicaState] = field(default_factory=PersistentMap)
    groups: Mapping[str, GroupState] = field(default_factory=dict)
    next_segment_id: int = 1
    quiet_since_s: float | None = None
    waiting: Mapping[str, SeedGroup] = field(default_factory=dict)
    departed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    freeze: Freeze | None = None


def empty_fleet() -> FleetState:
    """A fleet nobody has reported to yet."""
    return FleetState()


def without_grants(state: FleetState, now_s: float) -> FleetState:
    """The state of a policy that begins at `now_s` and cannot know what another granted before: a new incarnation, or one that
    rose above another's. It grants nothing until every such lease has ended (INV-6).
    """
    return replace(state, quiet_since_s=now_s)


def learned(state: FleetState) -> LearnedTables:
    """What is worth storing; the groups with the most evidence where not all fit."""
    ranked = sorted(
        ((group_id, group) for group_id, group in state.groups.items() if group.evidence.cells),
        key=lambda item: (-sum(cell.steps for cell in item[1].evidence.cells.values()), item[0]),
    )
    stored, cells = [], 0
    for _, group in ranked[:MAX_LEARNED_GROUPS]:
        cells += len(group.evidence.cells)
        if cells > MAX_LEARNED_CELLS:
            break
        stored.append(LearnedGroup.of(group.key, group.evidence, group.restarts.catch_up))
    return LearnedTables(next_segment_id=state.next_segment_id, groups=tuple(stored))


def forgotten(state: FleetState) -> FleetState:
    """The state of a fleet that has learned nothing: evidence, plans and measurements of every group are gone, and what replicas
    reported and nobody merged yet. Leases stay open, and engines' steps until now stay counted: none is learned from again.
    """
    groups = {
        group_id: GroupState(group.key, restarts=replace(group.restarts, catch_up=CatchUpEvidence()))
        for group_id, group in state.groups.items()
    }
    replicas = {
        replica_id: replace(
            replica, new_evidence=NewEvidence(), mixed_share=MixedShare(), new_restarts=NewRestarts(), own=None, own_within=None
        )
        for replica_id, replica in state.replicas.items()
    }
    return replace(state, groups=groups, replicas=PersistentMap(replicas))


def with_learned(state: FleetState, tables: LearnedTables) -> FleetState:
    """The state with the stored prior: for groups that have learned nothing themselves yet."""
    groups = dict(state.groups)
    for stored in tables.groups:
        group_id = stored.key.group_id
        group = groups.get(group_id, GroupState(stored.key))
        if not group.evidence.cells:
            restarts = replace(group.restarts, catch_up=stored.catch_up_evidence())
            groups[group_id] = replace(group, evidence=stored.evidence(), restarts=restarts, is_remembered=True)
    return replace(state, groups=groups, next_segment_id=max(state.next_segment_id, tables.next_segment_id))
