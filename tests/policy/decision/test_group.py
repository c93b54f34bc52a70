"""One group's decision: a function of its replicas and of what groups share, whatever other groups there are."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import MOST_REPLANS, decide
from nightjar.policy.decision.group import Context, GroupOutcome, Shared, decide_group
from nightjar.policy.decision.restarts import MayGrant
from nightjar.policy.operator.overrides import ModeOverride, ReplicaLimit
from nightjar.policy.state import Apart, FleetState, PlanVariant, ReplicaState
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.mode import Mode
from tests.policy.engines import AUTO, KEY, Fleet, Replica

OTHER = KEY.model_copy(update={"target": "another"})


def learned(seconds: float) -> Fleet:
    fleet = Fleet([Replica(f"r{number}", batch=4) for number in range(3)])
    fleet.run(seconds)
    return fleet


@cache
def warm() -> Fleet:
    """For tests that do not change it."""
    return learned(5.0)


def shared(state: FleetState, replans: int = MOST_REPLANS, now_s: float = 0.0) -> Shared:
    return Shared(replans, state.next_segment_id, MayGrant.of(state, AUTO, now_s))


def members(state: FleetState, group_id: str) -> Mapping[str, ReplicaState]:
    return {name: replica for name, replica in sorted(state.replicas.items()) if replica.group_id == group_id}


def decided(fleet: Fleet, overrides: tuple[ModeOverride, ...] = (), *, replans: int = MOST_REPLANS, seed: int = 7) -> GroupOutcome:
    """The outcome of the fleet's one group, a period later."""
    now_s = fleet.now_s + 0.5
    context = Context.of(fleet.state, AUTO, overrides, now_s)
    ((group_id, group),) = fleet.state.groups.items()
    replicas = members(fleet.state, group_id)
    return decide_group(group_id, group, replicas, context, shared(fleet.state, replans, now_s), random.Random(seed))


@given(seed=st.integers(0, 9), mode=st.sampled_from(["auto", "shadow", "off", "pin=3"]))
def test_the_same_values_come_to_the_same_outcome_and_stay_as_they_were(seed: int, mode: str) -> None:
    fleet, overrides = warm(), (ModeOverride(scope="replica", name="r1", mode=Mode.parse(mode)),)
    before = fleet.state
    first = decided(fleet, overrides, seed=seed)
    again = decided(fleet, overrides, seed=seed)
    assert (first.group, first.replicas, first.decisions, first.shared) == (
        again.group,
        again.replicas,
        again.decisions,
        again.shared,
    )
    assert fleet.state is before
    assert first.decisions["r1"].mode == Mode.parse(mode)


def test_the_fleets_decision_is_its_groups_outcomes_joined() -> None:
    decisions, after = decide(warm().state, AUTO, (), warm().now_s + 0.5, random.Random(7))
    outcome = decided(warm())
    assert decisions == outcome.decisions
    assert list(after.groups.values()) == [outcome.group]
    assert (dict(after.replicas), after.next_segment_id) == (outcome.replicas, outcome.shared.next_segment_id)


def test_a_group_of_which_nothing_is_asked_decides_the_same_beside_another() -> None:
    alone, beside = learned(5.0), learned(5.0)
    beside.observe(Replica("other").report(group=OTHER))
    for fleet in (alone, beside):
        fleet.overrides = (ModeOverride(scope="fleet", mode=Mode.parse("shadow")),)
        fleet.now_s += 0.5
        fleet.decide_only()
    assert {name: alone.decisions[name] for name in alone.decisions} == {name: beside.decisions[name] for name in alone.decisions}


def test_a_group_without_re_plans_left_keeps_its_plan_and_uses_none() -> None:
    fleet = learned(6.0)
    fleet.now_s += 60.0
    (group,) = fleet.state.groups.values()
    kept, planned = decided(fleet, replans=0), decided(fleet)
    assert (kept.group.plan, kept.shared.replans) == (group.plan, 0)
    assert planned.shared.replans == MOST_REPLANS - 1


def test_a_replica_that_cannot_be_steered_is_decided_for_and_teaches_nothing() -> None:
    fleet = learned(6.0)
    told = fleet.replicas[0]
    told.run_until(fleet.now_s + 1.0, fleet.rng)
    fleet.observe(told.report(serving_plainly="suffix drafters assert K"))
    outcome = decided(fleet)
    assert outcome.decisions["r0"].allowed_num_speculative_tokens[0] == 0
    assert outcome.replicas["r0"].new_evidence == fleet.state.replicas["r0"].new_evidence


def test_what_a_replica_runs_comes_from_one_place() -> None:
    (group,) = warm().state.groups.values()
    replica, estimate, limit = warm().state.replicas["r0"], warm().state.groups[KEY.group_id].estimate, ReplicaLimit(9.0, "a test")
    assert estimate is not None
    own = replace(estimate, at_s=1.0)
    tight = replace(estimate, at_s=2.0)
    assert group.variant(replica) == PlanVariant(group.plan, group.estimate)
    assert group.variant(replace(replica, limit=limit)) == PlanVariant(group.plan, group.estimate)
    within = replace(group, apart={Apart(max_step_ms=9.0): tight})
    assert within.variant(replace(replica, limit=limit)) == PlanVariant(tight.plan, tight, (limit.cause(Code.WITHIN),))
    assert within.variant(replace(replica, own=own)) == PlanVariant(own.plan, own, (because(Code.OWN_EVIDENCE),))
    both = replace(replica, own=own, own_within=tight, limit=limit)
    assert within.variant(both) == PlanVariant(tight.plan, tight, (because(Code.OWN_EVIDENCE), limit.cause(Code.WITHIN)))
