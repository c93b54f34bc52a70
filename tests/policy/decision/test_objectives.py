"""What K is chosen by, latency or throughput, for the fleet and for single applications of a group that learns together."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
from pydantic import ValidationError

from nightjar.cluster.storage.plain_values import packed, restored, unpacked
from nightjar.policy.evidence.cells import Cell, CellEvidence
from nightjar.policy.evidence.mixed_steps import MixedShare
from nightjar.policy.evidence.waits import Waits
from nightjar.policy.operator.canary.order import CanaryOrder, arms_of
from nightjar.policy.operator.canary.trial import begin
from nightjar.policy.operator.freeze import Freeze, HeldPlan
from nightjar.policy.operator.overrides import ModeOverride, objective_of
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.planners.base import GroupPlan
from nightjar.policy.planners.estimates import REFRESH_S
from nightjar.policy.state import Apart, FleetState
from nightjar.policy.status.explanation import explain
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, Fleet, Replica, table

BATCH = 16
WAITS = Waits(looks=100.0, busy=60.0, decoding=60.0, beside_prefill=55.0, waiting=60.0, prefilling=60.0)
BATCH_JOBS = AUTO.model_copy(update={"objective_per_application": {"jobs": "throughput"}})


def crowded(settings: OperatorSettings, overrides: tuple[ModeOverride, ...] = ()) -> Fleet:
    """Replicas of two applications that learned their step times, and in whose steps prompts are computed from then on: drafts cost
    so much there that the most tokens per second come without."""
    applications = ("chat", "jobs")
    made = Fleet([Replica(f"{name}-{number}", BATCH, application=name) for name in applications for number in (1, 2, 3)])
    made.run(15.0)
    made.settings, made.overrides = settings, overrides
    bucket = batch_bucket(BATCH)
    cells = {
        Cell(bucket, k, prefill=True): CellEvidence(
            400.0, seconds=400.0 * seconds, rows=400.0 * BATCH, prefill_tokens=400.0 * 500, draft_tokens=400.0 * BATCH * k
        )
        for k, seconds in ((0, 0.05), (1, 0.054), (3, 0.058), (5, 0.062))
    }
    groups = {
        name: replace(group, evidence=replace(group.evidence, mixed_cells=cells)) for name, group in made.state.groups.items()
    }
    share = MixedShare(steps=1000.0, prefill_tokens=500_000.0, tokens=10_000.0)
    waiting = {name: replace(replica, waits=WAITS, mixed_share=share) for name, replica in made.state.replicas.items()}
    made.state = replace(made.state, groups=groups, replicas=PersistentMap(waiting))
    later(made)
    return made


def later(seen: Fleet) -> None:
    """The next decision with a new estimate."""
    seen.now_s += REFRESH_S
    seen.decide_only()


def runs(seen: Fleet, name: str) -> int:
    """K of a replica at BATCH."""
    return next(row.num_speculative_tokens for row in table(seen.decisions[name]).rows if row.last_batch_size >= BATCH)


@pytest.fixture(scope="module")
def seen() -> Fleet:
    return crowded(BATCH_JOBS)


def test_an_applications_replicas_run_for_its_objective_and_the_others_of_their_group_for_the_fleets(seen: Fleet) -> None:
    assert len(seen.state.groups) == 1
    assert {runs(seen, f"chat-{number}") for number in (1, 2, 3)} == {5}
    assert {runs(seen, f"jobs-{number}") for number in (1, 2, 3)} == {0}
    assert "objective throughput of its application" in in_words(seen.decisions["jobs-1"].causes)
    assert "objective" not in in_words(seen.decisions["chat-1"].causes)


def test_explain_says_for_which_objective_and_what_the_other_would_run(seen: Fleet) -> None:
    chat, jobs = (explain(seen.state, seen.decisions, seen.settings, (), name, seen.now_s) for name in ("chat-1", "jobs-1"))
    assert (chat.objective, jobs.objective) == ("latency", "throughput")
    assert "K=5 saves most of the time of all requests" in chat.summary
    assert "objective throughput would run off" in chat.summary
    assert "objective latency would run K=5" in jobs.summary


JOBS_BY_HAND = ModeOverride(
    scope="application", name="jobs", mode=Mode.parse("auto"), objective="throughput", expires_at_s=1000.0, reason="night"
)


def test_an_objective_by_hand_holds_for_its_application_until_it_expires() -> None:
    seen = crowded(AUTO, (JOBS_BY_HAND,))
    assert (runs(seen, "chat-1"), runs(seen, "jobs-1")) == (5, 0)
    assert "objective throughput by hand" in in_words(seen.decisions["jobs-1"].causes)
    assert explain(seen.state, seen.decisions, seen.settings, seen.overrides, "jobs-1", seen.now_s).objective == "throughput"
    seen.overrides = (JOBS_BY_HAND.model_copy(update={"expires_at_s": seen.now_s}),)
    later(seen)
    assert (runs(seen, "chat-1"), runs(seen, "jobs-1")) == (5, 5)


def test_an_objective_by_hand_for_the_fleet_makes_its_plan_and_explain_says_so() -> None:
    by_hand = ModeOverride(scope="fleet", mode=Mode.parse("auto"), objective="throughput")
    seen = crowded(AUTO, (by_hand,))
    (group,) = seen.state.groups.values()
    assert group.apart == {}
    assert {runs(seen, name) for name in ("chat-1", "jobs-1")} == {0}
    assert explain(seen.state, seen.decisions, seen.settings, seen.overrides, "chat-1", seen.now_s).objective == "throughput"


def test_of_what_is_said_of_a_replicas_objective_the_most_specific_holds_and_by_hand_wins_over_settings() -> None:
    fleet = ModeOverride(scope="fleet", mode=Mode.parse("auto"), objective="latency")
    replica = ModeOverride(scope="replica", name="r1", mode=Mode.parse("auto"), objective="throughput")
    assert objective_of("r1", "jobs", AUTO, (fleet, replica), 0.0) == ("throughput", True)
    assert objective_of("r2", "jobs", BATCH_JOBS, (fleet,), 0.0) == (None, False)
    assert objective_of("r2", "jobs", BATCH_JOBS, (), 0.0) == ("throughput", False)


@pytest.mark.parametrize("mode", ["off", "pin=3"])
def test_an_objective_beside_a_mode_that_plans_nothing_is_refused(mode: str) -> None:
    with pytest.raises(
        ValidationError, match=f"objective: latency with mode {mode}, which plans nothing; allowed are auto and shadow"
    ):
        ModeOverride(scope="fleet", mode=Mode.parse(mode), objective="latency")


def test_a_canary_tries_an_objective_against_the_groups() -> None:
    order = CanaryOrder(objective="throughput", share=0.34, application="jobs", since_s=0.0, over=Mode.parse("auto"))
    seen = crowded(AUTO)
    applications = {name: replica.report.application for name, replica in seen.state.replicas.items()}
    seen.state = replace(seen.state, canary=replace(begin(order, seen.now_s), phase="trial"))
    later(seen)
    (tries,) = arms_of(order, applications).canary
    assert {name: runs(seen, name) for name in applications} == {name: 0 if name == tries else 5 for name in applications}
    assert order.what() == "objective throughput"


def test_a_planner_that_learns_nothing_has_no_objective() -> None:
    seen = crowded(BATCH_JOBS.model_copy(update={"planner": "fixed"}))
    assert explain(seen.state, seen.decisions, seen.settings, (), "jobs-1", seen.now_s).objective == ""
    assert {replica.objective for _, replica in seen.state.replicas.items()} == {None}


@pytest.mark.parametrize("mode", ["off", "pin=5"])
def test_where_the_mode_plans_nothing_no_objective_is_applied(mode: str) -> None:
    seen = crowded(BATCH_JOBS.model_copy(update={"mode": Mode.parse(mode)}))
    assert {replica.objective for _, replica in seen.state.replicas.items()} == {None}


def test_an_application_with_the_fleets_own_objective_shares_the_groups_plan() -> None:
    seen = crowded(AUTO.model_copy(update={"objective_per_application": {"chat": "latency"}}))
    (group,) = seen.state.groups.values()
    assert group.apart == {}
    assert all(group.variant(replica).why_apart == () for _, replica in seen.state.replicas.items())


def test_a_limit_of_a_step_holds_within_an_objective_as_well() -> None:
    both = BATCH_JOBS.model_copy(
        update={
            "objective": "throughput",
            "objective_per_application": {"chat": "latency"},
            "max_step_ms_per_application": {"chat": 56.0},
        }
    )
    seen = crowded(both)
    (group,) = seen.state.groups.values()
    assert set(group.apart) == {Apart("latency"), Apart("latency", 56.0)}
    assert runs(seen, "chat-1") < 5
    assert runs(seen, "jobs-1") == 0


def test_a_freeze_keeps_the_plan_for_an_objective_as_it_was(seen: Fleet) -> None:
    (group,) = seen.state.groups.values()
    frozen = replace(seen, state=seen.state, rng=deepcopy(seen.rng))
    frozen.state = frozen_state(frozen)
    quiet = {name: replace(replica, waits=Waits()) for name, replica in frozen.state.replicas.items()}
    frozen.state = replace(frozen.state, replicas=PersistentMap(quiet))
    later(frozen)
    assert frozen.state.groups[group.key.group_id].apart[Apart("throughput")].plan == group.apart[Apart("throughput")].plan
    assert (runs(frozen, "chat-1"), runs(frozen, "jobs-1")) == (5, 0)


def frozen_state(seen: Fleet) -> FleetState:
    """Its state with a freeze that holds the plans in force."""

    def held(plan: GroupPlan | None) -> HeldPlan:
        assert plan is not None
        return HeldPlan.of(plan, "fleet")

    plans = {name: held(group.plan) for name, group in seen.state.groups.items()}
    return replace(seen.state, freeze=Freeze(since_s=seen.now_s, plans=plans))


def test_a_state_that_was_recorded_decides_the_same_for_its_objectives(seen: Fleet) -> None:
    again = replace(seen, state=restored(FleetState, unpacked(packed(seen.state))), rng=deepcopy(seen.rng))
    before = replace(seen, rng=deepcopy(seen.rng))
    for fleet in (again, before):
        later(fleet)
    assert again.decisions == before.decisions
    assert runs(again, "jobs-1") == 0


def test_an_objective_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="objective"):
        OperatorSettings.model_validate({"objective": "speed"})
    with pytest.raises(ValidationError, match=r"objective_per_application\.chat"):
        OperatorSettings.model_validate({"objective_per_application": {"chat": "fast"}})
