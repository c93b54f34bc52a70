"""Bars of `make bench-scale` and `make bench-model`, from numbers made up."""

from __future__ import annotations

import pytest

from nightjar.loadtests.simulation.profiles import PROFILE_NAMES
from tests.benchmarks.bench_model import MEASURED_CELLS, MODELS, PLANNERS, Score, judge
from tests.benchmarks.gain_intervals import Held
from tests.benchmarks.gain_intervals import judge as judge_intervals
from tests.benchmarks.scale.bench_scale import AIM_MS, judge_decisions, judge_learning, judge_memory


def ticks(*milliseconds: float) -> list[dict[str, float]]:
    return [{"observe_ms": 5.0, "decide_ms": decide} for decide in milliseconds]


def test_the_median_decision_of_each_number_of_groups_is_held_against_100_ms() -> None:
    bars = judge_decisions({1: ticks(50, 60, 400), 20: ticks(99, 100, 101), 1000: ticks(500, 100, 600)}, 1000).bars
    assert [(bar.name, bar.value, bar.verdict) for bar in bars] == [
        ("decision_ms_one_group", 60, "reached"),
        ("decision_ms_20_groups", AIM_MS, "reached"),
        ("decision_ms_own_groups", 500, "MISSED"),
    ]
    assert bars[0].interval is not None
    assert (bars[0].interval.low, bars[0].interval.high, bars[0].interval.kind) == (50, 400, "range of 3 ticks")


def test_a_replicas_memory_has_a_limit_of_20_kib_and_learning_is_stated() -> None:
    sizes = [
        {"replicas": size, "early_s": 10.0, "late_s": 40.0, "early_kib_per_replica": 10.0, "late_kib_per_replica": size / 50}
        for size in (500.0, 1000.0)
    ]
    learned = {"replicas": 2000.0, "groups": 20.0, "ticks": 60.0, "at_best": 0.99}
    learned |= {"observe_ms_median": 1.0, "decide_ms_median": 1.0, "took_s": 1.0}
    (memory,), (learning,) = judge_memory(sizes).bars, judge_learning(learned).bars
    assert (memory.value, memory.limit, memory.verdict) == (20.0, 20.0, "reached")
    assert "2.00 times that after 10 s" in memory.at
    assert (learning.value, learning.verdict) == (0.99, "stated")


@pytest.mark.parametrize(("of_planner", "verdict"), [(0.02, "reached"), (0.03, "reached"), (0.04, "MISSED")])
def test_the_planners_model_is_held_against_the_best_of_the_simpler_ones(of_planner: float, verdict: str) -> None:
    scores = [
        Score(model, profile, count, error=0.1, lost_share=of_planner if model == PLANNERS else 0.03 + 0.01 * place)
        for place, model in enumerate(MODELS, start=-1)
        for profile in PROFILE_NAMES
        for count in MEASURED_CELLS
    ]
    lost = [bar for bar in judge(scores).bars if bar.name.startswith("model_lost_share")]
    assert [(bar.limit, bar.verdict, bar.at) for bar in lost] == [
        (0.03, verdict, "the best simpler model: shape alone") for _ in MEASURED_CELLS
    ]


@pytest.mark.parametrize(("worst", "verdict"), [(0.9, "reached"), (0.89, "MISSED")])
def test_intervals_of_gains_as_told_must_hold_the_truth_in_nine_of_ten_on_every_profile(worst: float, verdict: str) -> None:
    found = [Held(state, profile, 100, 1.0, 0.7, 0.1) for state in ("off", "4 cells") for profile in PROFILE_NAMES]
    found.append(Held("16 cells", PROFILE_NAMES[0], 100, worst, 0.7, 0.1))
    told, planners = judge_intervals(found).bars
    assert (told.value, told.verdict, told.at) == (worst, verdict, f"{PROFILE_NAMES[0]}, which has seen 16 cells")
    assert planners.verdict == "stated"
