"""Plans that an engine makes itself: the planner is asked and told, Steering bounds what it answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.planners.local import LocalContext, LocalOptions, LocalOptionsError, StepOutcome, StepView
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import Local, OffStep
from nightjar.policy.words import in_words
from tests.policy.engines import Fleet, Replica
from tests.policy.step.steering_settings import MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS, settings, table

OUTCOME = StepOutcome(3, 2, 200, 5, 0.01, (2, 2, 2), (2, 1, 0))


class Scripted:
    """Answers what the test says and remembers what it was shown."""

    plans_mixed_steps = False

    def __init__(self, context: LocalContext, answers: Iterator[int]) -> None:
        self.context = context
        self.views: list[StepView] = []
        self.outcomes: list[StepOutcome] = []
        self._answers = answers
        self.in_mixed = 1

    def choose(self, view: StepView) -> int:
        self.views.append(view)
        return next(self._answers)

    def in_mixed_step(self, view: StepView) -> int:
        return self.in_mixed

    def learn(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)


class Engine:
    """Steering with a scripted planner under the name `scripted`; `built` are the planners made so far."""

    def __init__(self, *answers: int) -> None:
        self.built: list[Scripted] = []
        self._answers = answers
        self.steering = Steering(
            max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
            max_num_seqs=MAX_NUM_SEQS,
            local_planners={"scripted": self._build},
            seed=11,
        )

    def _build(self, options: LocalOptions, context: LocalContext) -> Scripted:
        if options.get("broken"):
            raise LocalOptionsError("option broken is True; allowed is nothing of the kind")
        self.built.append(Scripted(context, iter(self._answers)))
        return self.built[-1]

    def adopt(self, sequence: int = 1, *, allowed: tuple[int, ...] = (0, 1, 3, 5), **options: bool | int) -> str:
        return self.steering.adopt(settings(Local(planner="scripted", options=options), sequence=sequence, allowed=allowed), 0.0)


def test_the_planner_sees_the_step_and_what_ran_before() -> None:
    engine = Engine(3, 1, 5)
    assert engine.adopt() == ""
    steering = engine.steering
    assert [
        steering.choose(4, False, 0.5, 400),
        steering.choose(5, False, 0.6, 500),
        steering.choose(5, False, 0.7, 501, 60, 20),
    ] == [3, 1, 5]
    assert engine.built[0].views == [
        StepView(4, 400, 0, 0, 0, 0.5),
        StepView(5, 500, 3, 0, 0, 0.6),
        StepView(5, 501, 0, 60, 20, 0.7),  # a lag: no drafter ran in the step before
    ]
    assert engine.built[0].context == LocalContext(MAX_NUM_SPECULATIVE_TOKENS, MAX_NUM_SEQS, (0, 1, 3, 5), 11)


@given(st.lists(st.tuples(st.integers(-5, 40), st.booleans(), st.integers(0, 2 * MAX_NUM_SEQS)), min_size=1, max_size=40))
def test_whatever_a_planner_answers_only_an_allowed_k_runs_and_prefill_never_raises_it(
    steps: list[tuple[int, bool, int]],
) -> None:
    engine = Engine(*(answer for answer, _, _ in steps))
    engine.adopt(allowed=(0, 1, 3))
    previous = 0
    for _, has_prefill, batch in steps:
        chosen = engine.steering.choose(batch, has_prefill, 0.0)
        assert chosen in {0, 1, 3}
        assert not has_prefill or chosen <= previous
        previous = chosen


def test_in_a_step_with_prefill_the_k_falls_to_what_the_planner_would_keep() -> None:
    engine = Engine(5)
    engine.adopt()
    assert [engine.steering.choose(4, False, 0.0), engine.steering.choose(4, True, 0.0)] == [5, 1]


@pytest.mark.parametrize(
    ("answer", "in_mixed", "ks", "reason"),
    [
        (5, 3, [5, 3], "the engine's own planner chose it"),
        (5, 5, [5, 5], "a step with prefill keeps the last K and never raises it"),
        (3, 5, [3, 3], "a step with prefill keeps the last K and never raises it"),
        (5, -7, [5, 0], "the engine's own planner chose it"),
        (-7, 5, [0, 0], "a step with prefill keeps the last K and never raises it"),
        (4, 2, [3, 1], "the engine's own planner chose it"),
    ],
)
def test_a_planners_answer_is_bound_from_both_sides_and_a_step_says_who_chose(
    answer: int, in_mixed: int, ks: list[int], reason: str
) -> None:
    engine = Engine(answer)
    engine.adopt()
    engine.built[0].in_mixed = in_mixed
    assert [engine.steering.choose(4, False, 0.0), engine.steering.choose(4, True, 0.0)] == ks
    assert in_words(engine.steering.causes) == reason


def test_a_planner_that_plans_mixed_steps_is_asked_in_them_and_may_raise_the_k() -> None:
    engine = Engine(1, 5)
    engine.adopt()
    engine.built[0].plans_mixed_steps = True
    assert [engine.steering.choose(4, False, 0.0), engine.steering.choose(4, True, 0.0, prefill_tokens=700)] == [1, 5]
    assert [view.prefill_tokens for view in engine.built[0].views] == [0, 700]


def test_a_first_step_with_prefill_does_not_ask_the_planner_and_drafts_nothing() -> None:
    engine = Engine()
    engine.adopt()
    assert engine.steering.choose(4, True, 0.0) == 0


def test_the_most_that_a_step_may_get_is_the_highest_allowed_k() -> None:
    engine = Engine()
    engine.adopt(allowed=(0, 1, 3))
    assert engine.steering.most(4, 0.0) == 3


def test_a_planner_draws_from_seed_0_and_is_shown_no_context_where_nobody_says_otherwise() -> None:
    built: list[Scripted] = []

    def build(options: LocalOptions, context: LocalContext) -> Scripted:
        built.append(Scripted(context, iter([1])))
        return built[0]

    steering = Steering(max_num_speculative_tokens=5, max_num_seqs=MAX_NUM_SEQS, local_planners={"scripted": build})
    steering.adopt(settings(Local(planner="scripted")), 0.0)
    assert steering.choose(2, False, 0.0) == 1
    assert built[0].context.seed == 0
    assert built[0].views == [StepView(2, 0, 0, 0, 0, 0.0)]


def test_what_the_guard_suspected_of_a_table_is_forgotten_when_an_engine_plans_for_itself() -> None:
    engine, off_steps = Engine(), (OffStep(decode_rows=4, step_seconds=0.01),)
    plan = table((1, 16, 1)).model_copy(update={"off_steps": off_steps})

    def steps_until_held(sequence: int) -> int:
        engine.steering.adopt(settings(plan, sequence=sequence), 0.0)
        for number in range(500):
            engine.steering.count_clean_step(4, 1, 4, 0.02, float(number))
            if engine.steering.choose(4, False, float(number)) == 0:
                return number
        raise AssertionError("the loss was never suspected")

    anew = steps_until_held(1)
    engine = Engine()
    engine.steering.adopt(settings(plan, sequence=1), 0.0)
    for number in range(anew // 2):
        engine.steering.count_clean_step(4, 1, 4, 0.02, float(number))
    engine.adopt(2)
    assert steps_until_held(3) == anew


def test_a_step_of_prefill_alone_keeps_the_k() -> None:
    engine = Engine(5)
    engine.adopt()
    assert [engine.steering.choose(4, False, 0.0), engine.steering.choose(0, True, 0.0)] == [5, 5]


def test_the_same_plan_again_keeps_what_was_learned_and_another_one_starts_anew() -> None:
    engine = Engine(1)
    engine.adopt(1)
    engine.steering.learn(OUTCOME)
    engine.adopt(2)
    assert [planner.outcomes for planner in engine.built] == [[OUTCOME]]
    engine.adopt(3, window=2)
    engine.adopt(4, window=2, allowed=(0, 1))
    assert len(engine.built) == 3


def test_a_table_after_a_local_plan_ends_the_planner() -> None:
    engine = Engine(5)
    engine.adopt()
    plans_locally = [engine.steering.plans_locally]
    engine.steering.adopt(settings(table((1, 16, 1)), sequence=2), 0.0)
    engine.steering.learn(OUTCOME)
    plans_locally.append(engine.steering.plans_locally)
    assert plans_locally == [True, False]
    assert engine.steering.choose(4, False, 0.0) == 1
    assert engine.built[0].outcomes == []


def test_a_local_plan_that_comes_back_after_a_table_goes_on_from_what_its_planner_had_learned() -> None:
    engine = Engine(5, 5)
    engine.adopt()
    engine.steering.learn(OUTCOME)
    engine.steering.adopt(settings(table((1, 16, 1)), sequence=2), 0.0)
    engine.adopt(3)
    assert engine.steering.plans_locally
    assert [planner.outcomes for planner in engine.built] == [[OUTCOME]]


def test_a_plan_that_began_anew_since_has_a_planner_that_knows_nothing() -> None:
    engine = Engine(5)
    plan = Local(planner="scripted")
    engine.steering.adopt(settings(plan), 0.0)
    engine.steering.learn(OUTCOME)
    engine.steering.adopt(settings(plan.begun_anew(7.0), sequence=2), 0.0)
    engine.steering.adopt(settings(plan.begun_anew(7.0), sequence=3), 0.0)
    assert [planner.outcomes for planner in engine.built] == [[OUTCOME], []]
    assert plan.begun_anew(None) is plan


def test_options_that_are_wrong_are_refused_and_the_settings_in_force_stay() -> None:
    engine = Engine(3)
    engine.adopt()
    assert engine.adopt(2, broken=True) == "plan.planner 'scripted': option broken is True; allowed is nothing of the kind"
    assert engine.steering.choose(1, False, 0.0) == 3


@pytest.mark.parametrize("cause", ["local mode", "mode", "age"])
def test_off_overrides_a_planner_in_the_very_next_step(cause: str) -> None:
    engine = Engine(5, 5)
    engine.adopt()
    engine.steering.choose(1, False, 0.0)
    now_s = 0.0
    if cause == "local mode":
        engine.steering.override_mode(Mode.parse("off"))
    elif cause == "mode":
        engine.steering.adopt(settings(Local(planner="scripted"), mode="off", sequence=2), 0.0)
    else:
        now_s = 1000.0
    assert engine.steering.choose(1, False, now_s) == 0


def test_a_planner_set_by_hand_decides_in_place_of_the_settings_one_and_each_goes_on_from_what_it_knew() -> None:
    fleet = Fleet([Replica("a", batch=4), Replica("b", batch=64)])
    fleet.run(20.0)
    learned, (group,) = fleet.decisions, fleet.state.groups.values()
    fleet.overrides = (ModeOverride(scope="fleet", mode=Mode.parse("auto"), planner="nightjar"),)
    fleet.run(5.0)
    assert {decision.plan.kind for decision in fleet.decisions.values()} == {"local"}
    fleet.overrides = (fleet.overrides[0].model_copy(update={"anew_at_s": 30.0}),)
    fleet.run(5.0)
    for decision in fleet.decisions.values():
        assert isinstance(decision.plan, Local)
        assert decision.plan.anew_at_s == 30.0
    assert all(replica.steering.plans_locally for replica in fleet.replicas)
    fleet.overrides = ()
    fleet.run(1.0)
    assert {decision.plan.kind for decision in fleet.decisions.values()} == {"table"}
    (after,) = fleet.state.groups.values()
    assert after.planner == "fleet"
    assert set(after.evidence.cells) >= set(group.evidence.cells)
    assert len(learned) == 2


def test_a_planner_of_which_the_options_alone_change_is_built_with_the_one_before_at_hand() -> None:
    engine = Engine(1)
    engine.adopt(1)
    engine.adopt(2, window=2)
    engine.adopt(3, allowed=(0, 1), window=2)
    assert [planner.context.before for planner in engine.built] == [None, engine.built[0], None]


def test_the_fleet_sends_the_papers_planner_to_every_replica_without_dwell() -> None:
    fleet = Fleet([Replica("a", batch=4), Replica("b", batch=64)])
    fleet.settings = fleet.settings.model_copy(update={"planner": "nightjar", "switch_cost_table": ((10, 4, 0.5),)})
    fleet.run(20.0)
    for decision in fleet.decisions.values():
        assert decision.plan == Local(planner="nightjar", options={"switch_cost": "10x4=0.5"})
        assert decision.dwell_steps == 0
        assert decision.allowed_num_speculative_tokens == (0, 1, 3, 5)
        assert in_words(decision.causes).startswith("nightjar: every engine plans for itself")
    assert all(replica.steering.plans_locally for replica in fleet.replicas)
