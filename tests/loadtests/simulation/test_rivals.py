"""Rivals do what their sources say: each test is one sharp behaviour of a published rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.arms.stock_table import tuned_table
from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, Mechanics, read_profile
from nightjar.loadtests.simulation.rivals import (
    DRAFTS_MORE,
    ENTRIES,
    FOR_COMPARISON,
    RIVALS,
    inputs,
    rival_plan,
    tables,
)
from nightjar.loadtests.simulation.rivals.prior import CONTEXTS, StepSeconds, StepTimes, StepTimesLookup, measure
from nightjar.loadtests.simulation.rivals.turbo_spec import TurboSpec
from nightjar.loadtests.simulation.step_cost import prepared_cost
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalOptionsError,
    LocalPlanner,
    StepOutcome,
    StepView,
)
from nightjar.policy.planners.nightjar import AdaBinGreedy
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Local, Plan
from nightjar.policy.wire.switch_cost import SwitchCost
from tests.loadtests.simulation.engine.engines import PAIR, engine, held, keep_busy

CONTEXT = LocalContext(max_num_speculative_tokens=7, max_num_seqs=256, allowed=(0, 1, 2, 3, 5, 7), seed=1)
NEVER_OFF = {"banditspec", "sglang"}


def profiled(step_seconds: StepSeconds) -> StepTimes:
    return measure(step_seconds, max_num_seqs=256, max_num_speculative_tokens=7)


MEMORY_BOUND = profiled(lambda rows, context, length: 0.010 + 1e-7 * context + 0.0001 * length)
COMPUTE_BOUND = profiled(lambda rows, context, length: 0.001 * rows * (1 + length))


def make(name: str, **options: float | str | bool) -> LocalPlanner:
    return FOR_COMPARISON[name](options, CONTEXT)


def view(batch: int, context: int = 100) -> StepView:
    return StepView(batch, batch * context, 0, 0, 0, 0.0)


def outcome(length: int, rows: int, kept: Sequence[int] = (), seconds: float = 0.01, *, settled: bool = True) -> StepOutcome:
    """A step of `rows` that verified `length` drafts; kept[i] rows accepted more than i."""
    accepted = [*kept, *[0] * (7 - len(kept))]
    reached = [rows] * length + [0] * (7 - length)
    return StepOutcome(length, rows, 100 * rows, rows + sum(accepted), seconds, reached, accepted, settled)


class TestTurboSpec:
    def test_it_speculates_far_where_steps_are_bound_by_memory_and_not_at_all_where_by_compute(self) -> None:
        far, none = make("turbospec", step_times=MEMORY_BOUND.to_text()), make("turbospec", step_times=COMPUTE_BOUND.to_text())
        assert far.choose(view(8)) == 7
        assert none.choose(view(8)) == 0

    def test_acceptance_is_of_tokens_tried_within_a_moving_window(self) -> None:
        planner = TurboSpec(CONTEXT.allowed, MEMORY_BOUND, window_steps=2, first_acceptance=0.7)
        assert planner.acceptance == 0.7
        planner.learn(outcome(0, 8))
        assert planner.acceptance == 0.7
        planner.learn(outcome(3, 8, (4, 2, 1)))  # tried 8 + 4 + 2, accepted 4 + 2 + 1
        assert planner.acceptance == 0.5
        planner.learn(outcome(1, 8, (8,)))
        planner.learn(outcome(1, 8, (8,)))
        assert planner.acceptance == 1.0

    def test_low_acceptance_switches_it_off(self) -> None:
        planner = make("turbospec", step_times=MEMORY_BOUND.to_text())
        for _ in range(10):
            planner.learn(outcome(3, 8, (0, 0, 0)))
        assert planner.choose(view(8)) == 0

    def test_the_profile_is_a_wrong_one_and_it_believes_it(self) -> None:
        costs_nothing = profiled(lambda rows, context, length: 0.01)
        planner = make("turbospec", step_times=costs_nothing.to_text())
        for _ in range(50):
            planner.learn(outcome(7, 64, (32, 16, 8, 4, 2, 1), seconds=1.0))
        assert planner.choose(view(64)) == 7

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "option step_times: no grid of step times"),
            ({"step_times": MEMORY_BOUND.to_text(), "window_steps": 0}, "option window_steps is 0; allowed is a number from 1"),
            ({"step_times": StepTimes((1,), (1,), (((0.1, 0.2),),)).to_text()}, "option step_times ends at K=1, K=7 may run"),
        ],
    )
    def test_wrong_options_are_named(self, options: LocalOptions, message: str) -> None:
        with pytest.raises(LocalOptionsError, match=message):
            RIVALS["turbospec"](options, CONTEXT)


class TestBanditSpec:
    SPEEDS = (0.0, 50.0, 60.0, 90.0, 0.0, 40.0, 0.0, 30.0)

    def run(self, planner: LocalPlanner, steps: int, batch: int = 4) -> list[int]:
        """Run steps whose K decides the speed; a step's K is settled once it is held."""
        chosen: list[int] = []
        for _ in range(steps):
            chosen.append(planner.choose(view(batch)))
            settled = chosen[-2:-1] == chosen[-1:]
            planner.learn(outcome(chosen[-1], batch, seconds=batch / max(self.SPEEDS[chosen[-1]], 1.0), settled=settled))
        return chosen

    def test_the_release_tries_each_arm_in_two_rounds_and_is_greedy_after(self) -> None:
        chosen = self.run(make("banditspec"), 40)
        assert chosen[:18] == [1, 1, 2, 2, 3, 3, 5, 5, 7, 7, 1, 1, 2, 2, 3, 3, 5, 5]  # seven pulls less one: t < 2 * arms
        assert set(chosen[18:]) == {3}

    def test_it_never_runs_off(self) -> None:
        assert 0 not in self.run(make("banditspec"), 60)

    def test_by_batch_it_may_run_off_and_learns_each_bucket_by_itself(self) -> None:
        planner = make("banditspec", by_batch=True)
        assert 0 in self.run(planner, 30)
        assert self.run(planner, 2, batch=64) == [0, 0]

    def test_a_bonus_for_each_arm_keeps_exploring(self) -> None:
        assert set(self.run(make("banditspec", per_arm_bonus=True), 200)[100:]) > {3}


class TestSGLang:
    def test_tiers_begin_at_the_longest_and_do_not_move_in_the_warm_up(self) -> None:
        planner = make("sglang")
        for _ in range(14):
            planner.learn(outcome(7, 2, (0,)))
        assert planner.choose(view(2)) == 7
        planner.learn(outcome(7, 2, (0,)))
        assert planner.choose(view(2)) < 7

    def test_the_present_tier_is_kept_within_the_hysteresis(self) -> None:
        planner = make("sglang")
        for _ in range(100):
            planner.learn(outcome(7, 2, (2, 2, 1)))  # 2.5: not below 2.25
        assert planner.choose(view(2)) == 7
        for _ in range(100):
            planner.learn(outcome(7, 2, (2, 2)))  # 2.0
        assert planner.choose(view(2)) == 3
        for _ in range(100):
            planner.learn(outcome(3, 2, (2, 2, 1)))  # 2.5: not above 2.5
        assert planner.choose(view(2)) == 3
        for _ in range(100):
            planner.learn(outcome(3, 2, (2, 2, 2)))
        assert planner.choose(view(2)) == 7

    def test_ranges_of_batches_have_tiers_and_averages_of_their_own(self) -> None:
        planner = make("sglang")
        for _ in range(100):
            planner.learn(outcome(3, 8, (8, 8, 8)))
        assert [planner.choose(view(batch)) for batch in (1, 7, 8, 31, 32, 256)] == [7, 7, 3, 3, 1, 1]

    @given(st.lists(st.tuples(st.integers(1, 256), st.integers(0, 7)), max_size=60))
    def test_it_never_runs_off(self, steps: list[tuple[int, int]]) -> None:
        planner = make("sglang")
        for batch, kept in steps:
            chosen = planner.choose(view(batch))
            assert chosen in {1, 3, 7}
            planner.learn(outcome(chosen, batch, [batch] * min(kept, chosen)))

    def test_later_defaults_drop_to_off_and_probe_again(self) -> None:
        planner, chosen = make("sglang", zero_tier=True), []
        for _ in range(60):
            chosen.append(planner.choose(view(40)))
            planner.learn(outcome(chosen[-1], 40, (0,)))
        assert re.fullmatch(r"1{15}(0{5}1{5})*0*1*", "".join(map(str, chosen)))
        assert make("sglang", zero_tier=True).choose(view(64)) == 0


class TestTables:
    def test_tensorrt_llm_is_off_above_its_last_batch(self) -> None:
        planner = make("tensorrt-llm", draft_len_schedule="4=5,8=2,32=1")
        assert [planner.choose(view(batch)) for batch in (1, 4, 5, 8, 9, 32, 33, 999)] == [5, 5, 2, 2, 1, 1, 0, 0]

    def test_vllm_fills_gaps_with_the_row_before_and_keeps_the_last_row_above(self) -> None:
        planner = make("vllm-table", num_speculative_tokens_per_batch_size="1-4=5,9-16=1")
        assert [planner.choose(view(batch)) for batch in (1, 4, 5, 8, 9, 16, 17, 999)] == [5, 5, 5, 5, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("tensorrt-llm", {"draft_len_schedule": "8=1,4=2"}),
            ("tensorrt-llm", {"draft_len_schedule": "8"}),
            ("vllm-table", {"num_speculative_tokens_per_batch_size": "2-4=1"}),
            ("vllm-table", {"num_speculative_tokens_per_batch_size": "1-4=1,3-9=0"}),
        ],
    )
    def test_what_is_no_table_is_refused(self, name: str, options: LocalOptions) -> None:
        with pytest.raises(LocalOptionsError, match=f"option {next(iter(options))}"):
            RIVALS[name](options, CONTEXT)

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=64))
    def test_a_tuned_table_reads_the_same_in_both_engines(self, lengths: list[int]) -> None:
        speeds = {batch: {k: float(k == fastest) for k in range(8)} for batch, fastest in enumerate(lengths, start=1)}
        rows = tuned_table(speeds, len(lengths))
        trt = make("tensorrt-llm", draft_len_schedule=tables.tensorrt_llm_text(rows))
        vllm = make("vllm-table", num_speculative_tokens_per_batch_size=tables.vllm_text(rows))
        for planner in (trt, vllm):
            assert [planner.choose(view(batch)) for batch in range(1, len(lengths) + 1)] == lengths


class TestPairs:
    def test_each_kind_of_step_has_its_length(self) -> None:
        planner = make("pair", pure_k=3, mixed_k=5)
        assert planner.plans_mixed_steps
        assert [planner.choose(view(8)), planner.choose(view(8)._replace(prefill_tokens=100))] == [3, 5]

    @pytest.mark.parametrize("options", [{"pure_k": 8}, {"mixed_k": -1}, {"pure": 3}])
    def test_what_the_engine_cannot_run_is_refused(self, options: LocalOptions) -> None:
        with pytest.raises(LocalOptionsError):
            FOR_COMPARISON["pair"](options, CONTEXT)


class TestAdaptiveVerification:
    def start(self, times: StepTimes) -> LocalPlanner:
        return make("vllm-adaptive-verification", step_times=times.to_text(), survival="0.8,0.6,0.5,0.4,0.3,0.2,0.1")

    def test_what_is_not_accepted_is_trimmed(self) -> None:
        planner = self.start(MEMORY_BOUND)
        assert planner.choose(view(8)) == 7
        for _ in range(200):
            planner.learn(outcome(7, 8, (8, 8)))
        assert planner.choose(view(8)) == 2

    def test_a_full_engine_verifies_less_than_an_empty_one_at_the_same_acceptance(self) -> None:
        planner = self.start(profiled(lambda rows, context, length: max(0.01, 0.0001 * rows * (1 + length))))
        assert [planner.choose(view(batch)) for batch in (4, 25, 250)] == [7, 3, 0]

    def test_a_profile_in_which_more_is_cheaper_is_levelled(self) -> None:
        wrong = profiled(lambda rows, context, length: (0.009, 0.020, 0.018, 0.016, 0.014, 0.012, 0.011, 0.030)[length])
        planner = self.start(wrong)
        for _ in range(200):
            planner.learn(outcome(7, 8, (8,)))
        assert planner.choose(view(8)) == 0  # 2 tokens in 20 ms against 1 in 9; the 11 ms of K = 6 are not believed

    def test_positions_that_are_not_verified_come_back_to_be_tried(self) -> None:
        planner = self.start(MEMORY_BOUND)
        for _ in range(200):
            planner.learn(outcome(7, 8))
        trimmed = planner.choose(view(8))
        for _ in range(500):
            planner.learn(outcome(trimmed, 8))
        assert trimmed == 0
        assert planner.choose(view(8)) == 7

    @pytest.mark.parametrize("survival", ["", "0.5", "0.1,0.2,0.3,0.4,0.5,0.6,0.7", "1.1,0.2,0.1,0.1,0.1,0.1,0.1"])
    def test_survival_must_be_the_engines(self, survival: str) -> None:
        with pytest.raises(LocalOptionsError, match="option survival"):
            make("vllm-adaptive-verification", step_times=MEMORY_BOUND.to_text(), survival=survival)


class TestPrior:
    def test_it_is_right_at_its_points_and_level_outside(self) -> None:
        times = measure(
            lambda rows, context, length: rows + context / 1e6 + length / 10, max_num_seqs=40, max_num_speculative_tokens=2
        )
        assert times.batch_sizes == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
        for rows in times.batch_sizes:
            for context in CONTEXTS:
                assert times.at(rows, rows * context) == pytest.approx([rows + rows * context / 1e6 + k / 10 for k in range(3)])
        assert times.at(40, 40 * 64) == times.at(40, 1)
        assert times.at(5, 5 * 64)[0] == pytest.approx(5 + 5 * 64 / 1e6)

    @given(st.integers(0, 2**32), st.floats(0.0, 0.5))
    def test_its_errors_are_seeded_bounded_and_the_same_at_all_contexts(self, seed: int, most: float) -> None:
        off = MEMORY_BOUND.with_errors(seed, most)
        assert off == MEMORY_BOUND.with_errors(seed, most)
        for right, wrong in zip(MEMORY_BOUND.seconds, off.seconds, strict=True):
            factors = [[b / a for a, b in zip(*pair, strict=True)] for pair in zip(right, wrong, strict=True)]
            assert all(factor == pytest.approx(factors[0]) for factor in factors)
            assert all(1 - most - 1e-9 <= factor <= 1 + most + 1e-9 for factor in factors[0])

    def test_text_and_lookup_keep_the_times(self) -> None:
        assert StepTimes.from_text(MEMORY_BOUND.to_text()).seconds[3][1] == pytest.approx(MEMORY_BOUND.seconds[3][1], rel=1e-5)
        lookup = StepTimesLookup(MEMORY_BOUND)
        assert lookup.at(5, 5 * 100) == MEMORY_BOUND.at(5, 5 * 96)
        assert lookup.at(5, 5 * 100) is lookup.at(5, 5 * 70)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"batch_sizes":[2,1],"contexts":[1],"microseconds":[[[1]],[[1]]]}'])
    def test_text_that_is_no_grid_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"grid|ascend"):
            StepTimes.from_text(text)


@pytest.mark.parametrize("name", PROFILE_NAMES)
@pytest.mark.parametrize("mechanics", [Mechanics.STOCK, Mechanics.DORMANT])
def test_every_rival_runs_on_every_profile_and_answers_with_a_length_of_the_engine(name: str, mechanics: Mechanics) -> None:
    profile = read_profile(name)
    known = inputs(profile, mechanics, seed=3)
    context = LocalContext(profile.max_num_speculative_tokens, profile.limits.max_num_seqs, profile.drafter.arms, 1)
    for entry in ENTRIES:
        plan = rival_plan(entry, known)
        planner = RIVALS[plan.planner](plan.options, context)
        off = 0
        for batch in (1, 2, 8, 16, profile.limits.max_num_seqs):
            for _ in range(40):
                chosen = planner.choose(view(batch))
                assert chosen in profile.drafter.arms
                off += chosen == 0
                planner.learn(outcome(chosen, batch, [batch // 2] * chosen, 0.01 * (1 + chosen)))
        assert not off or entry.name not in NEVER_OFF, entry.name


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_a_table_is_tuned_to_the_best_length_of_the_profile(name: str) -> None:
    profile = read_profile(name)
    cost, survival = prepared_cost(profile, profile.mechanics(Mechanics.STOCK)), profile.mean_survival()
    for first, last, length in inputs(profile, Mechanics.STOCK, seed=1).table:
        for rows in {first, last}:
            goodput = {arm: (1 + sum(survival[:arm])) / cost.steady_seconds(rows, rows * 512, arm) for arm in profile.drafter.arms}
            assert goodput[length] == max(goodput.values())


def test_rivals_have_names_of_their_own() -> None:
    assert not RIVALS.keys() & LOCAL_PLANNERS.keys()
    assert {entry.planner for entry in ENTRIES} == RIVALS.keys()
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


def test_adaptive_verification_pays_for_the_longest_draft_whatever_it_verifies_and_never_rests() -> None:
    known = inputs(PAIR, Mechanics.DORMANT, seed=1, most_error=0.0)
    entry = next(entry for entry in ENTRIES if entry.planner in DRAFTS_MORE)
    plan = rival_plan(entry, known)
    plan.options["survival"] = "0,0,0,0,0"
    seconds = {}
    plans: dict[str, Plan] = {"trimmed to nothing": plan, "off": held(0), "longest": held(5)}
    for name, chosen in plans.items():
        busy = engine(PAIR, chosen, local_planners=RIVALS)
        keep_busy(busy, users=16, steps=300)
        seconds[name] = busy.totals.busy_s / busy.totals.steps
        if name == "trimmed to nothing":
            assert busy.drafter_state is DrafterState.ACTIVE
            assert busy.totals.catch_up_tokens == 0
            assert busy.totals.k_sum < 0.1 * busy.totals.decode_steps
    assert 2.0 * seconds["off"] < seconds["trimmed to nothing"] <= seconds["longest"]


def test_tetris_drafts_one_more_than_it_verifies_of_a_row() -> None:
    longer, chain, four = (
        engine(PAIR, plan, local_planners=FOR_COMPARISON) for plan in (Local(planner="tetris"), held(3), held(4))
    )
    for busy in (longer, chain, four):
        keep_busy(busy, users=16, steps=600)
    per_step = [busy.totals.tokens / busy.totals.steps for busy in (longer, chain, four)]
    seconds = [busy.totals.busy_s / busy.totals.steps for busy in (longer, chain, four)]
    assert per_step[1] < per_step[0]
    assert seconds[1] < seconds[0] < seconds[2]
    assert longer.totals.k_sum / longer.totals.decode_steps == pytest.approx(3, rel=0.01)


def test_bandits_learn_from_steps_whose_length_was_held() -> None:
    told: list[StepOutcome] = []

    class Alternating(AdaBinGreedy):
        def learn(self, outcome: StepOutcome) -> None:
            told.append(outcome)

    busy = engine(
        PAIR,
        Local(planner="alternating"),
        local_planners={"alternating": lambda options, context: Alternating((3, 5), SwitchCost(()), Random(2))},
    )
    keep_busy(busy, users=2, steps=300)
    assert {outcome.settled for outcome in told} == {True, False}
    assert all(step.reached == [step.decode_rows] * step.num_speculative_tokens for step in told if step.settled)
