"""Limits of a step that concern some replicas: an application's and those by hand, within one group that learns together."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
from pydantic import ValidationError

from nightjar.cluster.storage.plain_values import packed, restored, unpacked
from nightjar.cluster.telemetry.policy_metrics import group_numbers
from nightjar.policy.operator.overrides import ModeOverride, ReplicaLimit, limit_of
from nightjar.policy.state import FleetState
from nightjar.policy.status.explanation import explain
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import ExplorationSegment, Table
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, STEP_MILLISECONDS, Fleet, Replica, table

BATCH = 16
CHAT_MS = 9.0
"""K = 1 takes 7.9 ms at BATCH, K = 3 9.5."""
LIMITED = AUTO.model_copy(update={"max_step_ms_per_application": {"chat": CHAT_MS}})
BY_HAND = ModeOverride(scope="replica", name="r1", mode=Mode.parse("auto"), max_step_ms=30.0, reason="trial", expires_at_s=50.0)


def fleet(settings: OperatorSettings = LIMITED, overrides: tuple[ModeOverride, ...] = ()) -> Fleet:
    """Three replicas of either application, so that each has a quorum of its own, after fifteen seconds."""
    applications = ("chat", "code")
    replicas = [Replica(f"{name}-{number}", BATCH, application=name) for name in applications for number in (1, 2, 3)]
    made = Fleet(replicas, settings=settings, overrides=overrides)
    made.run(15.0)
    return made


@pytest.fixture(scope="module")
def seen() -> Fleet:
    return fleet()


def runs(seen: Fleet) -> dict[str, int]:
    """K at BATCH by replica, as its plan says."""
    return {
        name: next(row.num_speculative_tokens for row in table(decision).rows if row.last_batch_size >= BATCH)
        for name, decision in seen.decisions.items()
    }


def test_an_applications_replicas_stay_within_its_limit_and_the_others_of_their_group_run_what_gives_most(seen: Fleet) -> None:
    assert len(seen.state.groups) == 1
    assert {(name[:4], k) for name, k in runs(seen).items()} == {("chat", 1), ("code", 3)}
    assert seen.planned(BATCH) == 3


def test_what_the_limited_measure_serves_the_others_and_theirs_serves_them(seen: Fleet) -> None:
    (group,) = seen.state.groups.values()
    measured = {k for (_, k, _), cell in group.evidence.cells.items() if cell.steps > 4}
    assert {0, 1, 3} <= measured


def test_no_replica_is_asked_to_measure_a_k_beyond_its_limit(seen: Fleet) -> None:
    asked = {k for replica_id, _, k in seen.dealt.values() if replica_id.startswith("chat")}
    assert asked <= {k for k, step_ms in STEP_MILLISECONDS[BATCH].items() if step_ms < CHAT_MS}
    assert asked | {k for replica_id, _, k in seen.dealt.values() if replica_id.startswith("code")} > asked


def test_a_measurement_under_way_that_a_new_limit_forbids_is_sent_no_more() -> None:
    seen = Fleet([Replica("chat-1", BATCH)])
    while not any(segment.num_speculative_tokens > 1 for segment in segments(seen)):
        seen.run(0.5)
        assert seen.now_s < 30.0
    seen.settings = AUTO.model_copy(update={"max_step_ms_per_application": {"chat": 1.0}})
    seen.decide_only()
    assert all(segment.num_speculative_tokens == 0 for segment in segments(seen))
    assert set(runs(seen).values()) == {0}


def segments(seen: Fleet) -> tuple[ExplorationSegment, ...]:
    plans = [decision.plan for decision in seen.decisions.values()]
    return tuple(segment for plan in plans if isinstance(plan, Table) for segment in plan.segments)


def test_status_says_whose_limit_decides_and_a_metric_counts_it(seen: Fleet) -> None:
    _, replicas = fleet_status(seen.state, seen.decisions, seen.now_s)
    told = {replica.replica_id: replica for replica in replicas}
    assert (told["chat-1"].max_step_ms, told["chat-1"].limit_decides) == (CHAT_MS, True)
    assert "K=3 would give more, but max_step_ms 9 forbids its steps" in told["chat-1"].reason
    assert told["chat-1"].warning == "K limited by max_step_ms 9 of application chat"
    assert (told["code-1"].max_step_ms, told["code-1"].limit_decides) == (None, False)
    assert "max_step_ms" not in told["code-1"].reason
    (group,) = group_numbers(seen.state, 5.0, seen.now_s).values()
    assert (group.limited_replicas, group.limited_buckets) == (3, 0)
    assert "within max_step_ms 9 of application chat" in in_words(seen.decisions["chat-1"].causes)


def test_explain_names_the_limit_as_what_decides_and_marks_the_k_that_it_forbids(seen: Fleet) -> None:
    explained = explain(seen.state, seen.decisions, seen.settings, (), "chat-1", seen.now_s)
    assert explained.decided_by == "step limit"
    assert "max_step_ms 9 of application chat allows K=1 where K=3 would run" in explained.summary
    assert [one.num_speculative_tokens for one in explained.arms if one.exceeds_limit] == [3, 5]
    free = explain(seen.state, seen.decisions, seen.settings, (), "code-1", seen.now_s)
    assert free.decided_by == "planner fleet"
    assert not any(one.exceeds_limit for one in free.arms)


def test_a_limit_that_is_taken_back_gives_the_groups_plan_at_once(seen: Fleet) -> None:
    free = replace(seen, settings=AUTO)
    free.decide_only()
    assert set(runs(free).values()) == {3}


@pytest.mark.parametrize(("planner", "mode"), [("fixed", "auto"), ("fleet", "pin=5"), ("fleet", "off")])
def test_where_nobody_plans_by_what_is_known_no_limit_is_applied_or_told(planner: str, mode: str) -> None:
    seen = fleet(LIMITED.model_copy(update={"planner": planner, "mode": Mode.parse(mode)}))
    _, replicas = fleet_status(seen.state, seen.decisions, seen.now_s)
    assert {replica.max_step_ms for replica in replicas} == {None}


def test_a_limit_by_hand_wins_over_the_applications_and_ends_with_its_override() -> None:
    by_hand = limit_of("r1", "chat", LIMITED, (BY_HAND,), 49.0)
    assert by_hand == ReplicaLimit(30.0, "replica r1 by hand (trial)")
    assert limit_of("r1", "chat", LIMITED, (BY_HAND,), 50.0) == ReplicaLimit(9.0, "application chat")
    assert limit_of("r2", "chat", LIMITED, (BY_HAND,), 49.0) == ReplicaLimit(9.0, "application chat")
    assert limit_of("r3", "code", LIMITED, (BY_HAND,), 49.0) is None


def test_a_more_specific_override_without_a_limit_leaves_the_less_specific_ones() -> None:
    chat = ModeOverride(scope="application", name="chat", mode=Mode.parse("auto"), max_step_ms=20.0)
    plain = ModeOverride(scope="replica", name="r1", mode=Mode.parse("shadow"))
    limit = limit_of("r1", "chat", AUTO, (chat, plain), 0.0)
    assert limit is not None
    assert limit.max_step_ms == 20.0


def test_no_limit_of_its_own_loosens_the_fleets() -> None:
    settings = LIMITED.model_copy(update={"max_step_ms": 5.0})
    assert limit_of("r1", "chat", settings, (BY_HAND,), 0.0) is None


@pytest.mark.parametrize("mode", ["off", "pin=3"])
def test_a_limit_beside_a_mode_that_plans_nothing_is_refused(mode: str) -> None:
    with pytest.raises(ValidationError, match=f"40 with mode {mode}, which plans nothing; allowed are auto and shadow"):
        ModeOverride.model_validate({"scope": "fleet", "mode": mode, "max_step_ms": 40.0})


def test_a_state_that_was_recorded_decides_the_same_under_its_limits(seen: Fleet) -> None:
    again = replace(seen, state=restored(FleetState, unpacked(packed(seen.state))), rng=deepcopy(seen.rng))
    before = replace(seen, rng=deepcopy(seen.rng))
    for fleet_ in (again, before):
        fleet_.now_s += 1.0
        fleet_.decide_only()
    assert again.decisions == before.decisions
    assert {name: replica.limit for name, replica in again.state.replicas.items()}["chat-1"] is not None
