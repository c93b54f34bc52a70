"""A frozen fleet runs the plans that it had: it neither plans, measures nor grants, and obeys people, guards and kill switches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.cells import Cell
from nightjar.policy.operator.freeze import Freeze, HeldPlan
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.planners.base import GroupPlan, one_k, rows_of
from nightjar.policy.state import FleetState, GroupState, learned, with_learned
from nightjar.policy.status.explanation import explain
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.settings import Local, Table
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, KEY, Fleet, Replica, best_k, table
from tests.policy.restarting import Policy, RestartingReplica

NO_DRAFT_IS_ACCEPTED = (0.0, 0.0, 0.0, 0.0, 0.0)


def freeze(fleet: Fleet, for_s: float | None = None) -> None:
    """Freeze it as the actor does: with the plans in force."""
    ends_s = None if for_s is None else fleet.now_s + for_s
    fleet.state = frozen(fleet.state, fleet.now_s, ends_s)


def frozen(state: FleetState, now_s: float, ends_s: float | None = None) -> FleetState:
    plans = {name: HeldPlan.of(group.plan, group.planner) for name, group in state.groups.items() if group.plan is not None}
    return replace(state, freeze=Freeze(since_s=now_s, expires_at_s=ends_s, plans=plans))


def warm_fleet() -> Fleet:
    """Two replicas that have found K = 3 at batch 1."""
    fleet = Fleet([Replica("a"), Replica("b")])
    fleet.run(8.0)
    assert fleet.planned(1) == best_k(1) == 3
    return fleet


def lengths_run(fleet: Fleet) -> list[int]:
    return [replica.k for replica in fleet.replicas]


def test_a_plan_that_no_longer_pays_stays_while_frozen_and_gives_way_when_the_freeze_ends() -> None:
    fleet = warm_fleet()
    freeze(fleet, for_s=20.0)
    rows = table(fleet.decisions["a"]).rows
    for replica in fleet.replicas:
        replica.acceptance = NO_DRAFT_IS_ACCEPTED
    fleet.run(19.5)
    assert table(fleet.decisions["a"]).rows == rows
    assert lengths_run(fleet) == [3, 3]
    fleet.run(10.0)
    assert fleet.planned(1) == 0


def test_nothing_is_measured_while_frozen_and_measurements_under_way_are_taken_back() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(1.0)
    dealt = len(fleet.dealt)
    assert dealt
    freeze(fleet)
    fleet.run(10.0)
    assert len(fleet.dealt) == dealt
    assert table(fleet.decisions["a"]).segments == ()


def test_a_frozen_group_goes_on_counting_what_its_replicas_report() -> None:
    fleet = warm_fleet()
    freeze(fleet)
    (before,) = fleet.state.groups.values()
    fleet.run(5.0)
    (after,) = fleet.state.groups.values()
    assert after.evidence.cells[Cell(0, 3)].steps > before.evidence.cells[Cell(0, 3)].steps
    assert after.plan is before.plan
    assert after.estimate is not None
    assert before.estimate is not None
    assert after.estimate.at_s == before.estimate.at_s, "nobody planned"


def test_a_newcomer_runs_the_frozen_plan_and_a_group_without_one_runs_off() -> None:
    fleet = warm_fleet()
    freeze(fleet)
    other = KEY.model_copy(update={"target": "llama-70b"})
    fleet.replicas = [*fleet.replicas, Replica("c", now_s=fleet.now_s)]
    fleet.observe(Replica("stranger").report(group=other))
    fleet.run(3.0)
    assert fleet.replicas[2].k == 3
    stranger = fleet.decisions["stranger"]
    assert [row.num_speculative_tokens for row in table(stranger).rows] == [0]
    assert "frozen before this group had a plan" in in_words(stranger.causes)


def test_a_policy_that_begins_anew_goes_on_with_the_frozen_plan_and_what_guards_compare_with() -> None:
    fleet = warm_fleet()
    rows = table(fleet.decisions["a"]).rows
    freeze(fleet)
    stored = learned(fleet.state)
    restarted = replace(with_learned(FleetState(), stored), freeze=fleet.state.freeze)
    fleet.state = replace(restarted, quiet_since_s=fleet.now_s)
    for replica in fleet.replicas:
        replica.acceptance = NO_DRAFT_IS_ACCEPTED
    fleet.run(5.0)
    assert table(fleet.decisions["b"]).rows == rows
    assert table(fleet.decisions["b"]).off_steps
    assert lengths_run(fleet) == [3, 3]


def test_a_held_plan_is_stored_without_words_that_its_rows_say_and_one_stored_in_words_keeps_them() -> None:
    plan = GroupPlan(rows_of((3, 0), 2))
    held = HeldPlan.of(plan, "fleet")
    assert (held.why, held.summary, held.group_plan().summary) == ((), "", plan.summary)
    old = held.model_copy(update={"summary": "off: the fleet was frozen"})
    assert in_words(old.group_plan().summary) == "off: the fleet was frozen"


def test_a_plan_that_an_engine_makes_itself_is_held_as_that() -> None:
    fleet = Fleet([Replica("a")], settings=parse_operator_settings({"mode": "auto", "planner": "nightjar"}))
    fleet.observe(Replica("a").report())
    fleet.decide_only()
    plan = fleet.decisions["a"].plan
    assert isinstance(plan, Local)
    freeze(fleet)
    assert Freeze.from_wire(fleet.state.freeze.to_wire() if fleet.state.freeze else b"") == fleet.state.freeze
    fleet.state = replace(fleet.state, groups={name: GroupState(KEY) for name in fleet.state.groups})
    fleet.decide_only()
    assert fleet.decisions["a"].plan == plan


@pytest.mark.parametrize("mode", ["off", "pin=5"])
def test_a_persons_mode_acts_while_frozen(mode: str) -> None:
    fleet = warm_fleet()
    freeze(fleet)
    fleet.overrides = (ModeOverride(scope="replica", name="a", mode=Mode.parse(mode)),)
    fleet.run(2.0)
    assert lengths_run(fleet) == [Mode.parse(mode).num_speculative_tokens or 0, 3]


def test_a_limit_of_a_step_that_comes_while_frozen_is_kept() -> None:
    fleet = warm_fleet()
    freeze(fleet)
    fleet.overrides = (ModeOverride(scope="replica", name="a", mode=Mode.parse("auto"), max_step_ms=5.0),)
    fleet.run(2.0)
    assert lengths_run(fleet) == [0, 3]


def test_another_planner_waits_until_the_freeze_ends() -> None:
    fleet = warm_fleet()
    freeze(fleet, for_s=5.0)
    fleet.settings = AUTO.model_copy(update={"planner": "off", "dwell_steps": 9})
    fleet.run(4.5)
    assert lengths_run(fleet) == [3, 3]
    assert fleet.decisions["a"].dwell_steps == 9, "what is no plan is taken up at once"
    fleet.run(2.0)
    assert lengths_run(fleet) == [0, 0]


def test_no_lease_is_granted_while_frozen_and_replicas_are_told_why() -> None:
    policy, replicas = Policy(), [RestartingReplica(f"r{number}") for number in range(3)]
    for second in range(1, 30):
        for replica in replicas:
            replica.run_until(float(second))
            policy.take(replica.report(), float(second))
        told = policy.decide(float(second))
        for replica in replicas:
            replica.adopt(told[replica.replica_id])
        if second == 1:
            (group,) = policy.state.groups.values()
            assert len(group.restarts.open_leases) == 1
            policy.state = frozen(policy.state, 1.0)
    (group,) = policy.state.groups.values()
    assert group.restarts.open_leases == (), "the one in flight was used"
    assert sum(replica.life.restarts for replica in replicas) == 1
    decisions, _ = decide(policy.state, policy.settings, (), 30.0, policy.rng)
    waits = "waits for a lease: none is granted while the fleet is frozen"
    assert sorted(in_words(settings.restarts.causes) for settings in decisions.values()) == ["", waits, waits]


def test_explain_says_since_when_by_whom_and_for_how_long() -> None:
    fleet = warm_fleet()
    fleet.state = replace(fleet.state, freeze=Freeze(since_s=0.0, expires_at_s=fleet.now_s + 60.0, reason="release"))
    told = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s)
    (voice,) = (voice for voice in told.statements if voice.who == "freeze")
    assert voice.words == (
        "frozen since 1970-01-01 00:00:00 UTC by hand (release), for 60 s more: no new plan, measurement or lease"
    )
    later = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s + 61.0)
    assert not [voice for voice in later.statements if voice.who == "freeze"]


@pytest.mark.heavy
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0, 1, 3, 5]),
    st.lists(st.sampled_from(["step", "join", "leave", "batch", "slow"]), min_size=1, max_size=8),
)
def test_whatever_happens_to_a_frozen_fleet_its_tables_stay(k: int, events: list[str]) -> None:
    fleet = Fleet([Replica("a", 4), Replica("b", 4)])
    fleet.run(1.0)
    plan = GroupPlan(one_k(k, KEY.max_num_seqs), (because(Code.OTHER, "held"),))
    fleet.state = replace(
        fleet.state, freeze=Freeze(since_s=fleet.now_s, plans={name: HeldPlan.of(plan, "fleet") for name in fleet.state.groups})
    )
    for number, event in enumerate(events):
        if event == "join":
            fleet.replicas = [*fleet.replicas, Replica(f"n{number}", 4, now_s=fleet.now_s)]
        elif event == "leave" and len(fleet.replicas) > 1:
            fleet.replicas = fleet.replicas[1:]
        elif event == "batch":
            fleet.replicas[0].batch = 64
        elif event == "slow":
            fleet.replicas[-1].speed = 0.3
        fleet.run(1.0)
        for decision in fleet.decisions.values():
            assert isinstance(decision.plan, Table)
            assert (decision.plan.rows, decision.plan.segments) == (plan.rows, ())


@pytest.mark.parametrize("has_plan", [False, True], ids=["a group without a plan", "a plan that a policy before made"])
def test_a_frozen_fleet_keeps_a_limit_of_a_step_also_over_a_plan_of_which_no_reasons_are_known(has_plan: bool) -> None:
    limited = parse_operator_settings({"mode": "auto", "max_step_ms_per_application": {"chat": 8.0}})
    fleet = Fleet([Replica("a")], settings=limited)
    if has_plan:
        fleet.run(1.5)
    freeze(fleet)
    held = fleet.state.freeze
    fleet.state = replace(with_learned(FleetState(), learned(fleet.state)), freeze=held)
    fleet.run(1.0)
    assert isinstance(fleet.decisions["a"].plan, Table)
