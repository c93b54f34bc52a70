"""Restarts of the whole fleet in one decision: what each group's replicas reported, and what all groups share of a node.

Between `policy.decision.group`, which knows reports and modes, and `policy.restarts`, which knows one group's prices and leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.restarts.budget import reloads_by_node
from nightjar.policy.restarts.leases import Restarter, decide_restarts
from nightjar.policy.state import FleetState, GroupState, PlanVariant, ReplicaState
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import DELIVERY_S, RestartLimits


@dataclass(frozen=True, slots=True)
class MayGrant:
    """What groups that decide one after the other share: the nodes' reloads in flight, and whether anything may be granted."""

    why_none: Code | None
    """Why nothing may be granted; None where it may."""
    reloads_on_node: Mapping[str, int]

    @classmethod
    def of(cls, state: FleetState, settings: OperatorSettings, now_s: float) -> Self:
        """At the beginning of a decision."""
        leases = (held for group in state.groups.values() for held in group.restarts.open_leases if now_s < held.ends_at_s)
        why_none = None
        if state.quiet_since_s is not None and now_s - state.quiet_since_s < settings.max_lease_ttl_s:
            why_none = Code.NEW_POLICY
        elif state.freeze is not None and state.freeze.is_live(now_s):
            why_none = Code.FROZEN
        return cls(why_none, reloads_by_node(leases))

    def after(self, before: GroupState, now: GroupState, now_s: float) -> Self:
        """With the leases of one group as they are after its turn."""
        counts = dict(self.reloads_on_node)
        was = reloads_by_node(held for held in before.restarts.open_leases if now_s < held.ends_at_s)
        for node_id, reloads in was.items():
            counts[node_id] -= reloads
        for node_id, reloads in reloads_by_node(now.restarts.open_leases).items():
            counts[node_id] = counts.get(node_id, 0) + reloads
        return replace(self, reloads_on_node=counts)


def group_restarts(
    group: GroupState,
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    settings: OperatorSettings,
    may_grant: MayGrant,
    now_s: float,
) -> tuple[GroupState, dict[str, RestartLimits], MayGrant, dict[str, NewRestarts]]:
    """The group with its leases, every member's limits, what the groups after it may grant, and what members still have to tell.

    `group` holds the plan and the evidence of this decision; `members` are those that do not serve plainly.
    """
    measuring = {held.replica_id for held in group.exploration.segments if held.cell.num_speculative_tokens}
    restarters = {
        name: _restarter(group, replica, modes[name][0], settings, name in measuring, now_s) for name, replica in members.items()
    }
    plan_goodput = group.plan_goodput(PlanVariant(group.plan, group.estimate))
    restarts, limits, used = decide_restarts(
        group.restarts, restarters, plan_goodput, settings, may_grant.reloads_on_node, may_grant.why_none, now_s
    )
    after = replace(group, restarts=restarts)
    counted = {
        name: NewRestarts(CatchUpEvidence() if name in used else replica.new_restarts.catch_up)
        for name, replica in members.items()
        if replica.new_restarts.restarts or replica.new_restarts.failed_probes or name in used
    }
    return after, limits, may_grant.after(group, after, now_s), counted


def _restarter(
    group: GroupState, replica: ReplicaState, mode: Mode, settings: OperatorSettings, is_measuring: bool, now_s: float
) -> Restarter:
    """A measurement that the group dealt is an order: exploration has paid for its restart (policy.exploration)."""
    report, snapshot, wish = replica.report, replica.report.snapshot, replica.report.snapshot.restart_wish
    variant = group.variant(replica)
    return Restarter(
        engine_id=snapshot.counters.engine_id,
        node_id=report.node_id,
        decode_batch_size=snapshot.load.decode_batch_size,
        finished_wish_id=snapshot.finished_wish_id,
        wish=wish,
        is_steered=mode.kind in {"auto", "pin"},
        is_ordered=mode.kind == "pin" or settings.planner not in LEARNING_PLANNERS or is_measuring,
        new=replica.new_restarts,
        own=group.plan_goodput(variant) if wish is not None and variant.why_apart else None,
        is_silent=now_s - replica.heard_at_s >= _silent_after_s(settings),
    )


def _silent_after_s(settings: OperatorSettings) -> float:
    """Seconds without a report after which a wish is granted no more: what a lease has to spare for its travels, or where reports
    and decisions are rarer, one of each.
    """
    return max(DELIVERY_S, settings.exchange_period_s + settings.decision_period_s)
