"""A canary under real decisions: who tries, when it begins, that it goes back where it loses and stays where it wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.operator.canary.order import CanaryOrder, arms_of
from nightjar.policy.operator.canary.trial import MAX_PAST, begin, resumed
from nightjar.policy.operator.canary.verdict import GoodputRatio, Sample
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.status.explanation import explain
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.settings import OffloadRules
from nightjar.policy.wire.status import in_utc
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, Fleet, Replica
from tests.policy.operator.test_freeze import frozen

BLOCK_S = 2.0
BASELINE_S = 20.0
"""Settling and eight blocks, and what rounding to ticks adds."""
OFF = AUTO.model_copy(update={"mode": Mode.parse("off")})


def order(mode: str = "", *, share: float | None = 0.25, over: str = "auto", **others: object) -> CanaryOrder:
    wanted = {
        "mode": Mode.parse(mode) if mode else None,
        "share": share,
        "since_s": 0.0,
        "block_s": BLOCK_S,
        "over": Mode.parse(over),
    }
    return CanaryOrder.model_validate(wanted | others)


def fleet_with(wanted: CanaryOrder, replicas: int = 4, batch: int = 1, settings: object = AUTO) -> Fleet:
    """A warm fleet in which the canary begins now."""
    fleet = Fleet([Replica(f"r{number}", batch) for number in range(replicas)], settings=settings)  # type: ignore[arg-type]
    fleet.run(6.0)
    fleet.state = replace(fleet.state, canary=begin(wanted, fleet.now_s))
    return fleet


def canary_of(fleet: Fleet) -> tuple[str, tuple[str, ...]]:
    assert fleet.state.canary is not None
    return fleet.state.canary.phase, fleet.state.canary.members


def modes(fleet: Fleet) -> dict[str, str]:
    return {name: str(decision.mode) for name, decision in fleet.decisions.items()}


def test_a_canary_runs_as_its_control_for_a_baseline_then_tries_and_goes_back_where_it_is_worse() -> None:
    fleet = fleet_with(order("off"))
    fleet.run(BASELINE_S - 4.0)
    phase, members = canary_of(fleet)
    assert (phase, len(members), set(modes(fleet).values())) == ("baseline", 1, {"auto"})
    fleet.run(6.0)
    assert canary_of(fleet) == ("trial", members)
    assert [name for name, mode in modes(fleet).items() if mode == "off"] == list(members)
    assert in_words(fleet.decisions[members[0]].causes) == "mode off set by the canary"
    fleet.run(12.0)
    assert canary_of(fleet) == ("rolled back", ())
    assert set(modes(fleet).values()) == {"auto"}
    (told,) = fleet.state.past_canaries
    assert told.startswith("canary mode off on 25 % of the replicas: rolled back 1970-01-01 00:00:33 UTC, goodput 0.")


def test_a_canary_that_is_better_stays_and_waits_for_the_operator() -> None:
    fleet = fleet_with(order("pin=3", over="off"), settings=OFF)
    fleet.run(BASELINE_S + 60.0)
    phase, members = canary_of(fleet)
    assert (phase, len(members)) == ("better", 1)
    assert modes(fleet)[members[0]] == "pin=3"
    assert fleet.state.past_canaries == ()
    assert fleet.state.canary is not None
    assert fleet.state.canary.in_words().endswith("`nightjar canary --promote` or `--end`")


def test_a_limit_of_a_step_is_tried_by_the_canary_alone() -> None:
    fleet = fleet_with(order(max_step_ms=5.0))
    fleet.run(BASELINE_S + 2.0)
    phase, members = canary_of(fleet)
    assert phase == "trial"
    assert {replica.replica_id: replica.k for replica in fleet.replicas} == {
        f"r{number}": 0 if f"r{number}" in members else 3 for number in range(4)
    }


def test_settings_that_go_to_each_engine_are_tried_by_the_canary_alone() -> None:
    fleet = fleet_with(order(settings={"dwell_steps": 9, "draft_offload": "under_memory_pressure", "offload_after_s": 3.0}))
    fleet.run(BASELINE_S + 2.0)
    _, (member,) = canary_of(fleet)
    mine, others = fleet.decisions.pop(member), fleet.decisions.values()
    assert (mine.dwell_steps, {other.dwell_steps for other in others}) == (9, {4})
    assert mine.offload == OffloadRules(free_share_below=0.1, pressure_s=3.0, reload_free_share=0.3)
    assert {other.offload for other in others} == {None}


def test_a_canary_with_a_slower_card_is_not_rolled_back_for_its_card() -> None:
    fleet = fleet_with(order("auto"))
    (slow,) = arms_of(order("auto"), {replica.replica_id: "chat" for replica in fleet.replicas}).canary
    next(replica for replica in fleet.replicas if replica.replica_id == slow).speed = 0.7
    fleet.run(BASELINE_S + 30.0)
    assert fleet.state.canary is not None
    assert fleet.state.canary.phase == "trial"
    assert fleet.state.canary.before.mean == pytest.approx(-0.36, abs=0.05)


def test_one_application_tries_against_the_others_of_its_group() -> None:
    fleet = Fleet([Replica(f"r{number}", application="mail" if number else "chat") for number in range(3)])
    fleet.run(6.0)
    fleet.state = replace(fleet.state, canary=begin(order("off", share=None, application="chat"), fleet.now_s))
    fleet.run(BASELINE_S + 2.0)
    assert canary_of(fleet) == ("trial", ("r0",))


@pytest.mark.parametrize(
    "override",
    [
        ModeOverride(scope="fleet", mode=Mode.parse("off")),
        ModeOverride(scope="application", name="chat", mode=Mode.parse("off")),
    ],
)
def test_off_by_hand_is_stronger_than_a_canary(override: ModeOverride) -> None:
    fleet = fleet_with(order("pin=5"))
    fleet.run(BASELINE_S + 1.0)
    assert "pin=5" in modes(fleet).values()
    fleet.overrides = (override,)
    fleet.run(1.0)
    assert set(modes(fleet).values()) == {"off"}


def test_off_in_settings_is_stronger_than_a_canary_that_began_over_another_mode_and_not_than_one_that_began_over_off() -> None:
    killed, over_off = fleet_with(order("pin=5")), fleet_with(order("pin=3", over="off"), settings=OFF)
    for fleet in (killed, over_off):
        fleet.run(BASELINE_S + 1.0)
        fleet.settings = OFF
        fleet.run(1.0)
    assert set(modes(killed).values()) == {"off"}
    assert sorted(modes(over_off).values()) == ["off", "off", "off", "pin=3"]


def test_a_replica_that_has_a_mode_of_its_own_by_hand_is_neither_canary_nor_control() -> None:
    fleet = fleet_with(order("pin=5"))
    fleet.run(1.0)
    _, (member,) = canary_of(fleet)
    fleet.overrides = (ModeOverride(scope="replica", name=member, mode=Mode.parse("pin=1")),)
    fleet.run(1.0)
    assert fleet.state.canary is not None
    assert member not in fleet.state.canary.members
    assert (len(fleet.state.canary.members), fleet.state.canary.controls) == (1, 2)


def test_what_was_counted_before_the_controls_settings_changed_counts_no_more_and_the_baseline_stays() -> None:
    fleet = fleet_with(order("pin=3"))
    fleet.run(BASELINE_S + 8.0)
    before = fleet.state.canary
    assert before is not None
    assert before.at_best.count
    fleet.state = replace(fleet.state, canary=replace(before, last=GoodputRatio(0.948, 0.399, 2.255)))
    fleet.settings = AUTO.model_copy(update={"dwell_steps": 0})
    fleet.run(0.5)
    after = fleet.state.canary
    assert after is not None
    assert after.in_words().endswith("runs, no difference known yet after 0 blocks"), (
        "an old result is not shown as the present one"
    )
    assert (after.at_best.count, after.settling, after.before, after.looks) == (0, True, before.before, before.looks)


def test_a_result_that_a_release_before_stored_without_a_block_behind_it_is_none_to_the_next_policy() -> None:
    stored = replace(begin(order("pin=3"), 0.0), phase="trial", controls=3, last=GoodputRatio(0.948, 0.399, 2.255))
    assert resumed(stored, 9.0).status(9.0).ratio is None
    assert "no difference known yet after 0 blocks" in resumed(stored, 9.0).in_words()
    counted = replace(stored, at_best=Sample().plus(-0.05))
    assert resumed(counted, 9.0).last == stored.last


def test_a_canary_that_has_lost_its_controls_says_that_nothing_is_compared_now() -> None:
    alone = replace(begin(order("pin=3"), 0.0), phase="trial", at_best=Sample().plus(-0.05), last=GoodputRatio(0.948, 0.399, 2.255))
    assert "runs, nothing is compared now, no group has both a canary and a control; before, goodput 0.948" in alone.in_words()
    assert "nothing is compared" not in replace(alone, controls=2).in_words()
    assert "nothing is compared" not in alone.ended("ended", 9.0).in_words()


def test_a_canary_ends_at_its_time() -> None:
    fleet = fleet_with(order("pin=3", expires_at_s=34.0))
    fleet.run(26.0)
    assert canary_of(fleet)[0] == "trial"
    fleet.run(4.0)
    assert canary_of(fleet) == ("expired", ())
    assert fleet.state.canary is not None
    assert f": expired {in_utc(34.0)}, " in fleet.state.canary.in_words()
    assert set(modes(fleet).values()) == {"auto"}
    assert len(fleet.state.past_canaries) == 1


def test_in_a_frozen_fleet_no_canary_begins_and_one_that_is_worse_goes_back_all_the_same() -> None:
    waiting, running = fleet_with(order("pin=3")), fleet_with(order("off"))
    running.run(BASELINE_S + 1.0)
    for fleet in (waiting, running):
        fleet.state = frozen(fleet.state, fleet.now_s)
    waiting.run(BASELINE_S + 10.0)
    running.run(14.0)
    assert canary_of(waiting)[0] == "baseline"
    assert canary_of(running)[0] == "rolled back"


def test_a_policy_that_begins_anew_goes_on_where_the_canary_was() -> None:
    fleet = fleet_with(order("pin=3"))
    fleet.run(BASELINE_S + 8.0)
    trial = fleet.state.canary
    assert trial is not None
    after = resumed(trial, fleet.now_s)
    assert (after.phase, after.before, after.at_best, after.settling) == (trial.phase, trial.before, trial.at_best, True)
    assert (after.canary_work, after.control_work) == ({}, {})


def test_explain_says_what_the_canary_has_a_replica_run() -> None:
    fleet = fleet_with(order("off"))
    fleet.run(BASELINE_S + 1.0)
    _, (member,) = canary_of(fleet)
    told = explain(fleet.state, fleet.decisions, fleet.settings, (), member, fleet.now_s)
    assert (str(told.mode), told.decided_by) == ("off", "mode")
    assert told.summary.endswith("mode off set by the canary")
    assert [one.words for one in told.statements if one.who == "canary"] == [
        "canary mode off on 25 % of the replicas: runs, no difference known yet after 0 blocks"
    ]


def test_a_group_without_a_control_has_no_canary() -> None:
    fleet = fleet_with(order("off"), replicas=1)
    fleet.run(BASELINE_S + 10.0)
    assert canary_of(fleet) == ("baseline", ())


def test_the_canaries_that_are_remembered_are_bounded() -> None:
    fleet = fleet_with(order("off"), replicas=2)
    for number in range(MAX_PAST + 3):
        trial = begin(order("off", expires_at_s=fleet.now_s + 0.1, reason=str(number)), fleet.now_s)
        fleet.state = replace(fleet.state, canary=trial)
        fleet.run(0.5)
    assert len(fleet.state.past_canaries) == MAX_PAST


REPLICAS = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.sampled_from(["chat", "mail"]), max_size=12)


@given(REPLICAS, st.floats(0.01, 0.5), st.sampled_from(["", "chat"]))
def test_arms_are_apart_lie_in_the_group_and_follow_from_ids_alone(
    replicas: dict[str, str], share: float, application: str
) -> None:
    wanted = order("off", share=share, application=application)
    arms = arms_of(wanted, replicas)
    named = {name for name, of in replicas.items() if application in {"", of}}
    assert not arms.canary & arms.control
    assert arms.canary | arms.control == (named if len(named) > 1 else set())
    assert bool(arms.canary) == bool(arms.control) == (len(named) > 1)
    assert arms == arms_of(wanted, dict(reversed(replicas.items())))
    assert len(arms.canary) <= max(round(share * len(named)), 1)


@given(REPLICAS, st.floats(0.01, 0.5))
def test_a_replica_that_leaves_moves_at_most_one_other_between_the_arms(replicas: dict[str, str], share: float) -> None:
    wanted = order("off", share=share)
    arms = arms_of(wanted, replicas)
    for name in replicas:
        fewer = arms_of(wanted, {other: of for other, of in replicas.items() if other != name})
        if fewer.canary:
            assert len((arms.canary - {name}) ^ fewer.canary) <= 1


def test_a_planner_whose_settings_say_nothing_of_learning_can_have_a_canary() -> None:
    fixed = parse_operator_settings({"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3})
    fleet = fleet_with(order("off"), settings=fixed)
    fleet.run(BASELINE_S + 12.0)
    assert canary_of(fleet)[0] == "rolled back"
