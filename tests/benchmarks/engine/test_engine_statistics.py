"""The arithmetic of `make bench-engine`: what the bars are computed with, on numbers made up, without an engine."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import median
from typing import cast

import pytest

from nightjar.loadtests.arms.statistics import Interval
from nightjar.policy.evidence.catch_up import CatchUpCost
from tests.benchmarks.engine.effort import FULL, Load
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import ARMS, DISTINCT_QUESTIONS
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.measured import (
    AUTO,
    Segment,
    acceptance_counts,
    arm_name,
    expected_speed,
    speed,
    speed_ratio,
    step_seconds,
)
from tests.benchmarks.engine.sections import changing_load
from tests.benchmarks.engine.sections.changing_load import (
    BURST_ROWS,
    LONG_ROWS,
    ChangingLoad,
    Run,
    planner_over,
    play,
    ratios_by_round,
    speed_of,
)
from tests.benchmarks.engine.sections.crossover import Cells, crossover_bars, over_best
from tests.benchmarks.engine.sections.off import OffTimes
from tests.benchmarks.engine.sections.restart_cost import cost_errors, fitted
from tests.benchmarks.engine.sections.restart_record import Restart
from tests.benchmarks.engine.sections.restarts import cost_bars
from tests.benchmarks.engine.sections.simulator import fitted_profile, steady_speed
from tests.benchmarks.engine.sections.step_times import fitted_step_times
from tests.benchmarks.engine.step_record import RowStep, Step, core_share, tokens_per_second
from tests.benchmarks.measuring import statistics
from tests.benchmarks.measuring.repeats import Repeats

LINE = CatchUpCost(step_seconds=0.02, token_seconds=0.001)
OFF_SECONDS = 0.2


def step(
    seconds: float = OFF_SECONDS, rows: int = 1, drafted: int = 0, accepted: int = 0, recomputed: int = 0, core: float = 1.0
) -> Step:
    row = RowStep(row=0, is_prefill=False, scheduled_tokens=1 + drafted, position=0, drafted=drafted, generated=1 + accepted)
    return Step(seconds, seconds * core, drafted, recomputed, 0, (row,) * rows)


def restart(batch: int, off_steps: int, chunk_tokens: int, line: CatchUpCost = LINE) -> Restart:
    """One that costs exactly what the line says."""
    left = lag = batch * off_steps
    catching_up = []
    while left > 0:
        tokens = min(left, chunk_tokens)
        catching_up.append(step(OFF_SECONDS + line.of_chunk(tokens), rows=batch, recomputed=tokens))
        left -= tokens - (batch if left > tokens else 0)
    before, drafting = (step(rows=batch),) * 3, (step(2 * OFF_SECONDS, rows=batch, drafted=2),)
    return Restart("bounded", batch, off_steps, lag, chunk_tokens, before, tuple(catching_up), drafting, before)


class CountingEngine:
    """Answers a load at one token a step and row, and counts who is in it."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.most_rows = 0

    def submit(self, numbers: range, max_tokens: int) -> None:
        self.left += [max_tokens] * len(numbers)

    def step(self) -> tuple[float, int] | None:
        rows = len(self.left)
        self.most_rows = max(self.most_rows, rows)
        self.left = [left - 1 for left in self.left if left > 1]
        return (0.5, rows) if rows else None


def test_every_batch_weighs_the_same_however_many_pairs_it_has() -> None:
    groups = {1: [2.0], 4: [0.5, 0.5, 0.5]}
    assert statistics.geometric_mean_of_groups(groups) == pytest.approx(1.0)


def test_an_interval_of_groups_holds_the_truth_and_narrows_with_more_pairs() -> None:
    rng = random.Random(1)

    def groups(pairs: int) -> dict[int, list[float]]:
        return {batch: [0.98 * rng.lognormvariate(0.0, 0.05) for _ in range(pairs)] for batch in (1, 4, 16)}

    few, many = (statistics.interval_of_groups(groups(pairs), 0, "pairs") for pairs in (8, 200))
    assert many.low < 0.98 < many.high
    assert many.width < few.width


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = {1: [0.9, 1.0, 1.1], 4: [1.0, 1.05, 1.2]}
    assert statistics.interval_of_groups(groups, 7, "pairs") == statistics.interval_of_groups(groups, 7, "pairs")


def test_a_ratio_of_two_samples_is_resampled_around_its_value() -> None:
    one, other = [2.0, 2.2, 1.8, 2.0], [1.0, 1.1, 0.9, 1.0]
    interval = statistics.resampled(one, other, lambda one, other: sum(one) / sum(other), 0, "4 and 4 segments")
    assert interval.low < 2.0 < interval.high
    assert interval.kind == "95 % by resampling 4 and 4 segments"


def test_the_ends_of_a_few_rounds_are_told_as_their_range_and_not_as_an_interval_of_95_percent() -> None:
    assert statistics.range_of([1.02, 0.99, 1.1], "rounds") == Interval(low=0.99, high=1.1, kind="range of 3 rounds")


def test_survival_never_rises_and_goes_on_where_nothing_was_seen() -> None:
    assert statistics.survival([4, 2, 1, 0], [3, 1, 1, 0]) == (0.75, 0.5, 0.5, 0.5)


def test_the_width_of_an_interval_is_from_end_to_end() -> None:
    assert Interval(low=0.96, high=1.01, kind="range of 2 rounds").width == pytest.approx(0.05)


def test_speed_is_tokens_over_time_and_not_a_mean_of_speeds() -> None:
    slow = Segment(1, "K=0", "even", (step(1.0),))
    fast = Segment(1, "K=0", "even", (step(0.1),) * 9)
    assert speed([slow, fast]) == pytest.approx(10 / 1.9)
    assert speed_ratio([fast], [slow]) == pytest.approx(10.0)
    assert step_seconds([slow, fast]) == pytest.approx(0.1)
    assert tokens_per_second(fast.steps) == pytest.approx(10.0)


def test_acceptance_is_counted_position_by_position() -> None:
    steps = [step(drafted=3, accepted=2), step(drafted=3, accepted=0), step(drafted=1, accepted=1), step()]
    assert acceptance_counts(steps, 3) == ([3, 2, 2], [2, 1, 0])


def test_at_an_acceptance_for_all_a_segment_counts_what_it_verified_and_not_what_it_got() -> None:
    lucky = Segment(1, "K=3", "even", (step(0.5, drafted=3, accepted=3), step(0.5, drafted=1, accepted=1)))
    unlucky = Segment(1, "K=3", "even", (step(0.5, drafted=3), step(0.5, drafted=1)))
    expected = (1 + 0.5 + 0.25 + 0.125) + (1 + 0.5)
    assert expected_speed([lucky], (0.5, 0.25, 0.125)) == pytest.approx(expected)
    assert expected_speed([unlucky], (0.5, 0.25, 0.125)) == pytest.approx(expected)
    assert expected_speed([Segment(1, "K=0", "even", (step(0.5),))], (0.5,)) == pytest.approx(2.0)


def test_the_core_share_is_processor_time_over_time() -> None:
    assert core_share([step(1.0, core=1.0), step(3.0, core=0.6)]) == pytest.approx(0.7)


def test_the_policys_line_is_found_again_in_restarts_that_follow_it() -> None:
    restarts = [restart(batch, off, 64) for batch in (4, 16) for off in (5, 20, 60) for _ in range(4)]
    cost = fitted(restarts, OFF_SECONDS)
    assert cost.of_chunk(64) == pytest.approx(LINE.of_chunk(64), rel=0.03)
    assert cost.of_chunk(20) == pytest.approx(LINE.of_chunk(20), rel=0.1)


def test_the_cost_of_restarts_is_predicted_for_the_half_that_did_not_teach() -> None:
    dear = CatchUpCost(2 * LINE.step_seconds, 2 * LINE.token_seconds)
    alike = [restart(batch, off, 64) for batch in (4, 16) for off in (5, 20, 60) for _ in range(4)]
    changed = [restart(batch, off, 64, line) for batch in (4, 16) for off in (5, 20, 60) for line in (LINE, dear)]
    for trimmed in (True, False):
        assert len(cost_errors(alike, trimmed=trimmed)) == 6
        assert median(cost_errors(alike, trimmed=trimmed).values()) < 0.2
        assert median(cost_errors(changed, trimmed=trimmed).values()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("slow", [0, 3, 7])
def test_a_machine_that_is_slow_for_a_while_and_bursts_in_a_restart_are_no_error_of_the_middle_half(slow: int) -> None:
    rounds = []
    for number in range(8):
        for batch in (4, 16):
            for off in (5, 20, 60):
                one = restart(batch, off, 64).times(1.8 if number == slow else 1.0)
                burst = tuple(step._replace(seconds=3.0 * step.seconds) for step in one.catching_up)
                rounds.append(replace(one, catching_up=burst) if number in {2, 5} else one)
    assert max(cost_errors(rounds, trimmed=True).values()) < 0.2


def test_a_burst_in_a_restart_is_in_the_error_of_all_restarts() -> None:
    rounds = []
    for number in range(8):
        one = restart(4, 20, 64)
        burst = tuple(step._replace(seconds=3.0 * step.seconds) for step in one.catching_up)
        rounds.append(replace(one, catching_up=burst) if number == 3 else one)
    (error,), (error_of_all,) = (cost_errors(rounds, trimmed=trimmed).values() for trimmed in (True, False))
    assert error < 0.1
    assert error_of_all > 0.5


def test_the_error_of_a_restarts_price_has_a_limit_where_it_is_trimmed_and_stands_beside_that_of_all() -> None:
    trimmed, of_all = cost_bars({(4, 5): 0.1, (4, 20): 0.3}, {(4, 5): 0.4, (4, 20): 0.6})
    assert (trimmed.name, trimmed.value, trimmed.verdict) == ("restart_cost_error", 0.2, "reached")
    assert (of_all.name, of_all.value, of_all.verdict) == ("restart_cost_error_of_all", 0.5, "stated")
    assert of_all.interval == Interval(low=0.4, high=0.6, kind="range of 2 cells of lag and batch")


def test_the_planner_over_the_best_k_is_told_at_the_acceptance_of_all_and_in_the_tokens_that_each_made() -> None:
    cells = Cells()
    for half in ("odd", "even"):
        for _ in range(3):
            lucky, unlucky = step(0.1, drafted=1, accepted=1), step(0.1, drafted=1)
            cells.segments.append(Segment(8, AUTO, half, (lucky,) * 10))
            cells.segments.append(Segment(8, "K=1", half, (lucky, unlucky) * 5))
            cells.segments.append(Segment(8, "K=0", half, (step(0.1),) * 10))
    found = over_best(cells, 8, ["K=0", "K=1"], seed=0)
    assert found.best == "K=1"
    expected, true = crossover_bars({8: found}, {8: 1})
    assert [expected.name, true.name] == ["adaptive_over_best_min", "adaptive_over_best_min_true"]
    assert expected.value == pytest.approx(1.0)
    assert true.value == pytest.approx(2.0 / 1.5)
    assert true.verdict == "stated"
    assert expected.interval is not None
    assert expected.interval.kind == "95 % by resampling 3 and 3 segments of that batch"


def test_the_planner_over_the_best_single_k_has_the_range_of_its_rounds() -> None:
    rounds = [(0, {"K=0": 10.0, "K=1": 20.0, "auto": 21.0}), (1, {"K=1": 10.0, "auto": 12.0})]
    runs = [Run(number, arm, 10.0, int(10.0 * speed), 0, 1.0) for number, speeds in rounds for arm, speed in speeds.items()]
    assert ratios_by_round(runs, "K=1") == pytest.approx([1.05, 1.2])
    assert ratios_by_round(runs, "K=0") == pytest.approx([2.1])


def test_step_times_between_the_measured_batches_follow_from_what_a_step_does() -> None:
    def truth(rows: int, length: int) -> float:
        return max(120.0, 60.0 + 9.0 * rows * (length + 1)) + length * (20.0 + 3.0 * rows) + (10.0 if length else 0.0)

    arms = (0, 1, 2, 3, 5)
    fit = fitted_step_times({(rows, length): truth(rows, length) for rows in (1, 4, 16, 32) for length in arms})
    for rows in (2, 8, 24):
        for length in arms:
            assert fit.of(rows, length) == pytest.approx(truth(rows, length), rel=0.06)


def test_two_tokens_may_take_longer_than_one_and_than_four() -> None:
    """As with oneDNN where there is no AMX: 2 rows without drafts were measured as 1 row with K=1, not between 1 and 4 rows."""
    by_tokens = {1: 130.0, 2: 145.0, 3: 136.0, 4: 127.0, 6: 141.0}

    def truth(rows: int, length: int) -> float:
        tokens = rows * (length + 1)
        return by_tokens.get(tokens, 127.0 + 7.0 * (tokens - 4)) + 25.0 * length

    fit = fitted_step_times({(rows, length): truth(rows, length) for rows in (1, 4, 16, 32) for length in (0, 1, 2, 3, 5)})
    assert fit.of(2, 0) == pytest.approx(145.0, rel=0.01)


def test_step_times_of_a_noisy_machine_never_fall_with_tokens_or_rows_from_four_tokens_on() -> None:
    arms, noise = (0, 1, 2, 3, 5), random.Random(0)
    for _ in range(50):
        measured = {(rows, length): noise.lognormvariate(5.0, 0.5) for rows in (1, 4, 16, 32) for length in arms}
        fit = fitted_step_times(measured)
        for values in (fit.by_tokens[2:], fit.by_rows):
            assert list(values) == sorted(values)
        assert min(fit.by_tokens) > 0.0
        assert min(*fit.by_rows, fit.drafting) >= 0.0


def test_too_few_step_times_determine_nothing() -> None:
    with pytest.raises(ValueError, match="measure more"):
        fitted_step_times({(1, 0): 100.0, (4, 2): 200.0})


def test_the_changing_load_is_the_same_work_for_every_engine() -> None:
    engine = CountingEngine()
    _, tokens = play(engine, Load(long_tokens=80, burst_at_tokens=20, burst_tokens=30), 0)
    assert tokens == LONG_ROWS * 80 + BURST_ROWS * 30
    assert engine.most_rows == LONG_ROWS + BURST_ROWS


def test_the_planner_is_held_against_each_k_in_the_rounds_that_had_both() -> None:
    rounds = [(0, {"K=0": 10.0, "K=3": 20.0, "auto": 15.0}), (1, {"K=3": 5.0, "auto": 10.0})]
    runs = [Run(number, arm, 10.0, int(10.0 * speed), 0, 1.0) for number, speeds in rounds for arm, speed in speeds.items()]
    assert speed_of(runs, "K=3") == pytest.approx(12.5)
    assert planner_over(runs, "K=0") == pytest.approx(1.5)
    assert planner_over(runs, "K=3") == pytest.approx(1.0)


@pytest.mark.parametrize(("seconds", "rounds"), [(10.0, 3), (30.0, 2)])
def test_the_changing_load_goes_on_with_its_two_fastest_k_and_those_wanted_while_its_own_time_lasts(
    seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"K=0": 10, "K=1": 30, "K=2": 20, "K=3": 15, "K=5": 5, "auto": 25}
    told: list[str] = []

    def played(_engine: object, _link: object, number: int, arm: str, _load: Load) -> Run:
        return Run(number, arm, seconds, int(seconds * speeds[arm]), 0, 1.0)

    monkeypatch.setattr(changing_load, "_run", played)
    effort = replace(FULL, loads=Repeats(2, 3, 150.0))
    load = ChangingLoad(cast("Engine", None), cast("FleetLink", None), effort, random.Random(0), told.append, ("K=2", "K=3"))
    assert load.play_round()
    assert {run.arm for run in load.runs} == speeds.keys()
    load.outcome()
    assert not load.play_round()
    assert [{run.arm for run in load.runs if run.round_number == number} for number in range(1, rounds)] == [
        {"K=1", "K=2", "K=3", "auto"}
    ] * (rounds - 1)
    assert {run.round_number for run in load.runs} == set(range(rounds))
    assert sum("not scored" in line for line in told) == 1


def test_the_simulator_gives_back_the_speed_of_the_steps_that_it_was_fitted_to() -> None:
    def milliseconds(rows: int, length: int) -> float:
        return 60.0 + 9.0 * rows * (length + 1) + length * (20.0 + 3.0 * rows)

    cells = Cells(prefills=[Step(0.5, 0.5, 0, 0, 0, (RowStep(0, True, 50, 0, 0, 1),))])
    for rows in (1, 4, 16, 32):
        for length in ARMS:
            for first in (0, rows):
                in_flight = tuple(RowStep(100 + row, False, 1 + length, 10, length, 1 + length) for row in range(rows))
                steps = (Step(milliseconds(rows, length) / 1e3, 1.0, length, 0, 0, in_flight),) * 30
                cells.segments.append(Segment(rows, arm_name(length), "odd", steps, first))
    times = OffTimes({1: [0.1], 16: [0.2]}, {1: [0.12], 16: [0.25]})
    prompt_tokens = [20] * (2 * DISTINCT_QUESTIONS + 64)
    profile = fitted_profile(cells, times, LINE, prompt_tokens)
    assert len(profile.acceptance_classes) == DISTINCT_QUESTIONS
    for rows, length in ((2, 0), (8, 3), (24, 1)):
        speed_of = steady_speed(profile, prompt_tokens, 2 * DISTINCT_QUESTIONS + rows, rows, length, seed=0)
        assert speed_of == pytest.approx(1e3 * rows * (1 + length) / milliseconds(rows, length), rel=0.1)
