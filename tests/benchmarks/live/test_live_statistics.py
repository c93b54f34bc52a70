"""The arithmetic of `make bench-live`: what the bars are computed with, on numbers made up, without a system."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from nightjar.loadtests.arms.samples import Work
from nightjar.loadtests.arms.statistics import Interval, Speed, paired_ratio
from nightjar.loadtests.arms.stock_table import tuned_table
from nightjar.loadtests.load.prompts import PromptsError
from nightjar.loadtests.simulation.evidence.bars import Bar, Direction
from nightjar.policy.wire.status import ReplicaStatus
from tests.benchmarks.live.answers import Answer, Arrival, acceptance_seen
from tests.benchmarks.live.arms import AUTO, OFF, PAPER, STATIC, TABLE
from tests.benchmarks.live.effort import QUICK, SteadyLoad
from tests.benchmarks.live.playing import Window, window
from tests.benchmarks.live.sections import categories
from tests.benchmarks.live.sections.categories import acceptance_length, short_prompts
from tests.benchmarks.live.sections.changing import DRAFTER_TAX, Run, Runs
from tests.benchmarks.live.sections.cold import ALONE, TOGETHER, ColdRun, judge_cold
from tests.benchmarks.live.sections.learning_loss import Moment, lost_tokens, steady_from_s
from tests.benchmarks.live.sections.steady import Half, Segment, Segments, papers_findings
from tests.benchmarks.measuring.repeats import there_and_back
from tests.loadtests import recorded
from tests.loadtests.recorded import sample

LOAD = SteadyLoad("low", 1, 1.0, 10.0)
SPEEDS = {0: 30.0, 1: 40.0, 3: 36.0, 5: 20.0}


def replica(name: str, totals: dict[int, tuple[float, int]], *, catch_up_s: float = 0.0) -> ReplicaStatus:
    """As the policy sees it: engine seconds and generated tokens by K."""
    counted = (recorded.totals(k, tokens, step_seconds=seconds, tokens=tokens) for k, (seconds, tokens) in totals.items())
    return recorded.replica(name, *counted).model_copy(update={"application": name, "catch_up_seconds": catch_up_s})


def segment(half: Half, number: int, arm: str, tokens: int, seconds: float = 10.0) -> Segment:
    return Segment(LOAD, half, number, arm, Window(seconds, tokens, {}, float(tokens)))


def test_a_window_counts_what_arrived_in_it_of_answers_that_began_before_and_ended_after() -> None:
    whole = Answer("first", 0, [Arrival(1.0, 2), Arrival(9.0, 10), Arrival(11.0, 12)], is_whole=True)
    cut = Answer("first", 1, [Arrival(12.0, 1), Arrival(20.0, 5), Arrival(30.0, 9)])
    before, after = replica("first", {0: (4.0, 20)}), replica("first", {0: (8.0, 35), 3: (6.0, 12)})
    seen = window([whole, cut], sample(10.0, "", before), sample(20.0, "", after))
    assert seen.tokens == 2 + 5
    assert seen.speed == pytest.approx(0.7)
    assert seen.work == {0: Work(15, 4.0, 15, 15), 3: Work(12, 6.0, 12, 12, 36)}
    assert seen.steps_by_k == {"K=0": 15, "K=3": 12}


def test_what_two_arms_share_in_a_round_does_not_widen_their_ratio() -> None:
    shared = [(Speed(98 * luck, 10.0), Speed(100 * luck, 10.0)) for luck in (1, 3, 2, 5, 1, 4)]
    own = [
        (Speed(98 * luck, 10.0), Speed(100 * other, 10.0))
        for luck, other in zip((1, 3, 2, 5, 1, 4), (4, 1, 5, 2, 3, 1), strict=True)
    ]
    assert paired_ratio(shared, seed=0).value == pytest.approx(paired_ratio(own, seed=0).value) == pytest.approx(0.98)
    assert paired_ratio(shared, seed=0).interval.width == pytest.approx(0.0, abs=1e-9)
    assert paired_ratio(own, seed=0).interval.width > 0.5


def test_a_ratio_weighs_rounds_by_their_work_and_is_the_same_for_the_same_seed() -> None:
    pairs = [(Speed(10, 1.0), Speed(10, 1.0)), (Speed(300, 10.0), Speed(150, 10.0))]
    ratio = paired_ratio(pairs, seed=3)
    assert ratio.value == pytest.approx((310 / 11) / (160 / 11))
    assert ratio == paired_ratio(pairs, seed=3)
    assert ratio.interval.low == pytest.approx(1.0)
    assert ratio.interval.high == pytest.approx(2.0)
    assert ratio.interval.kind == "95 % by resampling 2 rounds, each with both arms, widened for so few"


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        ("at least", 0.97, 0.985, "not shown"),
        ("at least", 0.97, 0.979, "MISSED"),
        ("at least", 0.98, 1.01, "reached"),
        ("at most", 0.97, 0.98, "reached"),
        ("at most", 0.97, 0.985, "not shown"),
        ("at most", 0.981, 0.985, "MISSED"),
        ("above", 0.98, 1.01, "not shown"),
        ("above", 0.981, 1.01, "reached"),
    ],
)
def test_a_bar_is_reached_or_missed_by_its_whole_interval_and_not_shown_where_that_holds_the_limit(
    direction: Direction, low: float, high: float, verdict: str
) -> None:
    interval = Interval(low=low, high=high, kind="95 % by resampling 6 rounds")
    bar = Bar(name="b", meaning="m", direction=direction, limit=0.98, value=0.975, interval=interval, judged="interval")
    assert bar.verdict == verdict
    assert bar.is_missed == (verdict == "MISSED")
    kept = bar.model_dump() | {"judged": "upper end", "upper_end": high}
    assert Bar.model_validate(kept).verdict == verdict, "as the release before kept it"


@pytest.mark.parametrize(
    "changed",
    [{"judged": "value"}, {"interval": None}, {"interval": Interval(low=0.9, high=1.0, kind="range of 3 rounds")}],
    ids=["an interval of something else", "none", "a range"],
)
def test_a_bar_without_an_interval_of_its_value_is_judged_by_the_value(changed: dict[str, Any]) -> None:
    interval = Interval(low=0.9, high=1.0, kind="95 % by resampling 6 rounds")
    bar = Bar(name="b", meaning="m", direction="at least", limit=0.98, value=0.985, interval=interval, judged="interval")
    assert (bar.verdict, bar.model_copy(update=changed).verdict) == ("not shown", "reached")


def test_odd_rounds_pick_the_best_and_even_rounds_score_it() -> None:
    segments = Segments([segment("odd", 0, arm, tokens) for arm, tokens in zip(STATIC, (50, 80, 75, 70, 60), strict=True)])
    segments.played += [segment("even", number, arm, tokens) for number in (0, 1) for arm, tokens in ((AUTO, 78), ("K=1", 75))]
    segments.played.append(segment("even", 0, "K=3", 500))
    assert segments.best("low") == "K=1"
    assert paired_ratio(segments.pairs("low", AUTO, "K=1"), seed=0).value == pytest.approx(78 / 75)
    segments.played += [segment("odd", 1, arm, 40) for arm in (OFF, "K=1")]
    assert segments.speeds_by_k("low") == {0: 2.5, 1: 4.0, 2: 3.75, 3: 3.5, 5: 3.0}


def test_rounds_that_lack_one_of_two_arms_are_no_pair() -> None:
    segments = Segments([segment("even", 0, AUTO, 10), segment("even", 1, AUTO, 20), segment("even", 1, OFF, 30)])
    assert segments.pairs("low", AUTO, OFF) == [(Speed(20, 10.0), Speed(30, 10.0))]


def test_the_papers_planner_is_told_over_off_and_over_the_planner_and_wins_no_bar() -> None:
    segments = Segments([segment("odd", 0, arm, 50) for arm in STATIC])
    segments.played += [
        segment("even", number, arm, tokens) for number in (0, 1) for arm, tokens in ((AUTO, 80), (OFF, 50), (PAPER, 60))
    ]
    facts, table = papers_findings(segments, replace(QUICK, loads=(LOAD,)), seed=0)
    assert facts["low"]["tokens_per_s"] == 6.0
    assert (facts["low"]["over_off"]["value"], facts["low"]["over_auto"]["value"]) == (1.2, 0.75)
    assert dict(zip(table.columns, table.rows[0], strict=True))["over off"] == "1.200 (1.200 to 1.200)"


def test_the_first_round_of_the_changing_load_picks_and_later_ones_score() -> None:
    def run(number: int, arm: str, tokens: int) -> Run:
        phases = tuple(Window(seconds, tokens // 2, {}, tokens / 2) for seconds in (4.0, 6.0))
        return Run(number, arm, Window(10.0, tokens, {}, float(tokens)), phases, 0.0)

    runs = Runs([run(0, arm, tokens) for arm, tokens in zip((AUTO, TABLE, *STATIC), (110, 90, 80, 100, 85, 90, 70), strict=True)])
    assert runs.best_static() == "K=1"
    runs.played += [run(1, AUTO, 120), run(1, "K=1", 60)]
    assert runs.best_static() == "K=1"
    assert runs.phase_speed(AUTO, 0) == pytest.approx((55 + 60) / 8.0)
    assert runs.pairs(AUTO, "K=1") == [(Speed(120, 10.0), Speed(60, 10.0))]


def test_a_machine_that_slows_down_over_a_round_favours_no_arm() -> None:
    runs = Runs()
    for number, rival in enumerate((OFF, TABLE), start=1):
        for place, arm in enumerate(there_and_back((AUTO, rival), 1, random.Random(0))[0]):
            seconds = 60.0 * number + place
            runs.played.append(Run(number, arm, Window(seconds, 600, {}, 600.0), (), 0.0))
    assert [len(runs.pairs(AUTO, other)) for other in (TABLE, OFF)] == [2, 2]
    assert [paired_ratio(runs.pairs(AUTO, other), seed=0).value for other in (TABLE, OFF)] == pytest.approx([1.0, 1.0])


def test_the_stock_table_covers_every_batch_and_says_0_only_where_off_pays_its_tax() -> None:
    dear, cheap = {0: 119.0, 1: 100.0}, {0: 121.0, 1: 100.0}
    assert tuned_table({8: dear}, 32, DRAFTER_TAX) == ((1, 32, 1),)
    assert tuned_table({8: cheap}, 32, DRAFTER_TAX) == ((1, 32, 0),)
    rows = tuned_table({1: {5: 2.0, 0: 1.0}, 4: dear, 16: dear, 32: cheap}, 32, DRAFTER_TAX)
    assert [first for first, _, _ in rows] == [1, *(last + 1 for _, last, _ in rows[:-1])]
    assert rows[-1] == (23, 32, 0)


def test_learning_costs_what_the_seconds_at_each_length_would_have_given_at_the_best() -> None:
    assert lost_tokens({1: 100.0}, 0.0, SPEEDS) == 0.0
    assert lost_tokens({5: 3.0, 0: 2.0, 1: 20.0, 2: 1.0}, 0.5, SPEEDS) == pytest.approx(3 * 20 + 2 * 10 + 1 * 2 + 0.5 * 40)


def test_who_never_stops_losing_is_steady_at_the_end() -> None:
    assert steady_from_s([Moment(float(at_s), 10.0 * at_s) for at_s in range(5)], best_speed=40.0) == 4.0
    assert steady_from_s([Moment(float(at_s), 0.1 * at_s) for at_s in range(5)], best_speed=40.0) == 0.0


def cold_run(kind: str, name: str, slow_s: float, total_s: float = 20.0) -> ColdRun:
    """At the longest K for a while, at the best from then on."""

    def at(time_s: float) -> ReplicaStatus:
        return replica(name, {5: (7.0 + min(time_s, slow_s), 0), 1: (max(time_s - slow_s, 0.0), 0)}, catch_up_s=1.0)

    return ColdRun(kind, 0, name, tuple((float(time_s), at(time_s)) for time_s in range(int(total_s) + 1)))


def test_replicas_that_learn_together_are_held_against_one_alone_by_what_each_loses() -> None:
    runs = [cold_run(ALONE, "first", 8.0), cold_run(TOGETHER, "first", 4.0), cold_run(TOGETHER, "second", 5.0)]
    outcome = judge_cold(runs, SPEEDS, seed=0)
    (bar,) = outcome.bars
    assert bar.value == pytest.approx((4 * 20 + 5 * 20) / 2 / (8 * 20))
    assert bar.passed
    assert bar.interval is not None
    assert bar.interval.kind == "95 % by resampling 2 runs together and 1 alone"
    assert outcome.facts["lost_tokens_per_replica"] == {ALONE: [160.0], TOGETHER: [80.0, 100.0]}
    assert [row["steady_from_s"] for row in outcome.rows["cold"]] == [8.0, 4.0, 5.0]
    assert runs[0].seconds_by_k == {"K=1": 12.0, "K=5": 8.0}


def test_where_one_alone_loses_nothing_there_is_no_ratio() -> None:
    (bar,) = judge_cold([cold_run(ALONE, "first", 0.0), cold_run(TOGETHER, "first", 1.0)], SPEEDS, seed=0).bars
    assert (bar.value, bar.interval, bar.verdict) == (None, None, "no place")
    assert "one alone lost nothing" in bar.at


def test_events_that_hold_more_than_a_step_gives_are_left_out() -> None:
    answer = Answer("first", 0, [Arrival(float(at), tokens) for at, tokens in enumerate((0, 1, 3, 11, 12, 16, 17))])
    assert acceptance_seen([answer], 3) == ([3, 3, 3], [2, 1, 1])


def test_acceptance_length_is_over_all_steps_and_its_interval_over_answers() -> None:
    poor = Answer("first", 0, [Arrival(float(at), at) for at in range(1, 12)])
    rich = Answer("first", 1, [Arrival(float(at), 4 * at - 3) for at in range(1, 12)])
    length, interval = acceptance_length([poor, rich], seed=0)
    assert length == pytest.approx((1 + 4) / 2)
    assert interval == Interval(low=1.0, high=4.0, kind="95 % by resampling 2 answers")
    assert acceptance_length([Answer("first", 0)], seed=0)[0] == 1.0


def test_categories_are_read_with_first_turns_and_without_long_ones(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    long = "x" * (categories.MAX_PROMPT_CHARACTERS + 1)
    rows = [
        {"category": "math", "turns": ["1 + 1?", "And 2?"]},
        {"category": "qa", "turns": [long]},
        {"category": "math", "turns": ["2 + 2?"]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert short_prompts(file) == {"math": ["1 + 1?", "2 + 2?"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no line"),
        ('{"category": "a", "turns": ["b"]}\n{"turns": ["c"]}\n', "prompts.jsonl:2: no 'category' is there; allowed is a text"),
        (json.dumps({"category": "a", "turns": ["x" * 2000]}), "holds no prompt of at most 1600 characters"),
    ],
)
def test_a_file_that_holds_no_categories_is_refused_by_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(PromptsError, match=says):
        short_prompts(file)
