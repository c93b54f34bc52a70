"""What users wait for: runs until the last answer, request-seconds, the best pair by measure, and what the bench runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.campaign import Campaign
from nightjar.loadtests.simulation.campaign.contestants import Contestant, choose
from nightjar.loadtests.simulation.campaign.efforts import BENCH, QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.campaign.loads import LOADS
from nightjar.loadtests.simulation.campaign.measures import Simulate
from nightjar.loadtests.simulation.campaign.scenes import nominal_of
from nightjar.loadtests.simulation.command import Asked, choose_experiments, effort_of
from nightjar.loadtests.simulation.evidence.bar_list import compute_bars
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, run_cell
from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, read_profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.service.workload import Workload
from tests.benchmarks.latency.bars import (
    LATENCY,
    LATENCY_COLD,
    LATENCY_PICK,
    MEASURES,
    TOKENS_FIRST,
    best_pairs,
    latency_bars,
    latency_grid,
    load_percent,
)
from tests.benchmarks.latency.bursts import (
    BURSTS,
    BURSTS_OF_PROMPTS,
    IN_TIME,
    LOAD_PERCENT,
    carried_by_off,
    in_time,
    long_prompts,
    scenes,
    waiting,
)
from tests.benchmarks.latency.in_time import in_time_bars, in_time_grid
from tests.benchmarks.latency.suite import SUITE
from tests.loadtests.simulation.evidence.run_rows import row

PAIR: Final = read_profile("qwen-7b-0.5b-rtx4090")
CHOICE: Final = Choice((PAIR,), tuple(LOADS), replace(QUICK, bars=range(1)))
ASKED: Final = Asked((), (), (), (), None, None, BENCH)
PLACE: Final = "p/long-prompts 80%"
FULL: Final = "p/long-prompts 110%"


def scenario(seed: int, planner: str, replicas: int, duration_s: float) -> Scenario:
    short = Dataset("short", Lognormal(900, 0.5, 10, 2000), Lognormal(15, 0.5, 1, 60))
    phases = (Phase("burst", 3.0, requests_per_s=5.0), Phase("quiet", 4.0, requests_per_s=0.5))
    workload = Workload(Regime(phases), short)
    choice = choose(Contestant(planner), nominal_of(PAIR), seed, {})
    return Scenario(PAIR, workload, choice, duration_s, warm_up_s=1.0, replicas=replicas, seed=seed, until_answered=duration_s > 50)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), planner=st.sampled_from(["off", "pair-3-1", "fleet"]), replicas=st.integers(1, 3))
def test_where_all_are_answered_request_seconds_are_the_sum_of_times_end_to_end(seed: int, planner: str, replicas: int) -> None:
    """Little's law: the mean number in the system, times the time, is the number of requests times their mean time in it."""
    result = simulate(scenario(seed, planner, replicas, 600.0))
    assert result.unfinished == 0
    assert result.request_seconds == pytest.approx(result.answered * result.e2e_s.mean, abs=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), cut_s=st.floats(1.5, 9.0))
def test_a_window_that_cuts_requests_off_counts_them_until_its_end(seed: int, cut_s: float) -> None:
    cut, whole = (simulate(scenario(seed, "off", 1, duration_s)) for duration_s in (cut_s, 600.0))
    assert cut.request_seconds <= whole.request_seconds + 1e-6
    if cut.unfinished:
        assert cut.request_seconds > cut.answered * cut.e2e_s.mean if cut.answered else cut.request_seconds >= 0.0
    else:
        assert cut.request_seconds == pytest.approx(cut.answered * cut.e2e_s.mean if cut.answered else 0.0, abs=1e-6)


def job(cell: Cell) -> Simulate:
    assert isinstance(cell.job, Simulate)
    return cell.job


def test_every_run_goes_on_until_the_last_answer_and_counts_all_requests() -> None:
    runs = [run for run in BURSTS_OF_PROMPTS.waves[0](CHOICE, ()) if run.kind == LATENCY_PICK and "110%" in run.place]
    for run in [run for run in runs if run.planner in {"pair-0-0", "pair-3-3"}]:
        made = run_cell(run)
        asked = sum(demand.due_s >= job(run).scenario.warm_up_s for demand in job(run).scenario.workload.open_demands(run.seed))
        assert not made.error
        assert (made.measures["answered"], made.measures["unfinished"]) == (asked, 0.0)
        assert made.measures["request_seconds"] == pytest.approx(asked * made.measures["e2e_mean_s"])


def test_a_run_that_does_not_reach_the_last_answer_is_an_error_and_no_row_of_numbers() -> None:
    short = scenario(0, "off", 1, 3.2)
    with pytest.raises(ValueError, match="were not answered in time"):
        waiting(short, simulate(short))


def test_all_profiles_meet_the_same_loads_in_shares_of_what_off_carries_of_them() -> None:
    found: dict[str, set[str]] = {}
    for waits in scenes(replace(CHOICE, profiles=tuple(map(read_profile, PROFILE_NAMES)))):
        load = waits.scene.workload.load
        assert isinstance(load, Regime)
        assert load.duration_s == pytest.approx(waits.warm_up_s + waits.measured_s)
        assert waits.measured_s == pytest.approx(BURSTS * waits.burst_s)
        found.setdefault(waits.scene.nominal.profile.name, set()).add(waits.scene.load)
    names = ("long-prompts", "long-prompts-80%-cached", "half-long-prompts")
    loads = {f"{name} {percent}%" for name in names for percent in LOAD_PERCENT} | {"long-prompts 200%", "two-tokens 20%"}
    assert found == dict.fromkeys(PROFILE_NAMES, loads)


def test_off_keeps_up_below_what_it_carries_and_falls_behind_above_it() -> None:
    nominal = nominal_of(PAIR, long_prompts(PAIR.limits.num_tokens))
    carried = carried_by_off(nominal)

    def behind_s(percent: float) -> float:
        """When the last answer to 200 seconds of requests comes, after these."""
        regime = Regime((Phase("even", 200.0, requests_per_s=percent / 100 * carried, evenly=True),))
        off = choose(Contestant("off"), nominal, 0, {})
        made = Scenario(PAIR, Workload(regime, nominal.dataset, max_model_len=8060), off, 2000.0, until_answered=True)
        return simulate(made).last_answer_s - 200.0

    assert behind_s(90) < 20.0
    assert behind_s(130) == pytest.approx(60.0, abs=20.0)


def seen(who: str, place: str = PLACE, kind: str = LATENCY, seed: int = 0, **measures: float) -> RunRow:
    made = row(kind, who, place, seed=seed)
    return made.model_copy(update={"measures": dict.fromkeys(MEASURES, 9.0) | measures})


def pick(who: str, place: str = PLACE, **measures: float) -> RunRow:
    return seen(who, place, LATENCY_PICK, 1000, **measures)


def bars(*rows: RunRow) -> dict[str, Bar]:
    return {bar.name: bar for bar in compute_bars(rows, (latency_bars,))}


def test_the_best_pair_is_picked_for_each_measure_on_other_seeds() -> None:
    rows = (
        pick("pair-0-0", e2e_mean_s=4.0, ttft_mean_s=1.0),
        pick("pair-3-3", e2e_mean_s=3.0, ttft_mean_s=2.0),
        pick("oracle-mixed-1", e2e_mean_s=1.0),
        seen("pair-5-5", e2e_mean_s=0.1),
    )
    best = best_pairs(rows, PLACE)
    assert (best["e2e_mean_s"], best["ttft_mean_s"]) == ("pair-3-3", "pair-0-0")
    assert best_pairs((), PLACE) == {}


def test_time_of_a_request_is_judged_up_to_80_percent_and_time_to_the_last_answer_from_90_on() -> None:
    rows = [
        *(pick("pair-3-3", place) for place in (PLACE, FULL)),
        seen("fleet", e2e_mean_s=5.0), seen("pair-3-3", e2e_mean_s=4.0),
        seen("fleet", FULL, took_s=10.0, e2e_mean_s=20.0), seen("pair-3-3", FULL, took_s=9.9, e2e_mean_s=10.0),
        seen("fleet", kind=LATENCY_COLD, e2e_mean_s=8.0), seen("pair-3-3", kind=LATENCY_COLD, e2e_mean_s=4.0),
    ]  # fmt: skip
    found = bars(*rows)
    assert (found["e2e_over_static_min"].value, found["e2e_over_static_min"].passed) == (0.8, False)
    assert (found["took_over_static_min"].value, found["took_over_static_min"].passed) == (0.99, True)
    assert found["full_e2e_over_static_min"].value == 0.5
    assert (found["cold_e2e_over_static_min"].value, found["cold_e2e_over_static_min"].passed) == (0.5, None)


def test_a_place_is_dominated_where_one_pair_is_better_by_2_percent_in_all_three_at_once() -> None:
    def times(who: str, kind: str, first_s: float, later_s: float, e2e_s: float) -> RunRow:
        return seen(who, kind=kind, ttft_mean_s=first_s, tpot_mean_s=later_s, e2e_mean_s=e2e_s)

    searched = [("fleet", 1.0, 1.0, 1.0), ("pair-1-1", 0.95, 0.95, 0.95), ("pair-2-2", 0.99, 0.9, 0.9)]
    picking = [times(who, LATENCY_PICK, *seconds) for who, *seconds in searched]
    fleet = times("fleet", LATENCY, 1.0, 1.0, 1.0)
    assert bars(*picking, fleet, times("pair-1-1", LATENCY, 0.95, 0.95, 0.95))["dominated"].value == 1.0
    assert bars(*picking, fleet, times("pair-1-1", LATENCY, 0.99, 0.95, 0.95))["dominated"].value == 0.0


def test_the_oracle_is_the_best_of_what_knows_and_of_the_pairs_that_ran() -> None:
    rows = [seen("fleet", e2e_mean_s=4.0), seen("oracle", e2e_mean_s=5.0), seen("pair-3-3", e2e_mean_s=3.0)]
    better_elsewhere = [seen("fleet", FULL, e2e_mean_s=1.0), seen("oracle", FULL, e2e_mean_s=2.0)]
    found = bars(*rows, *better_elsewhere)["e2e_over_oracle_min"]
    assert (found.value, found.verdict) == (0.75, "stated")
    assert latency_grid([pick("pair-3-3"), *rows]).rows[0][-1] == "0.750"


def test_the_fleet_under_throughput_stands_beside_the_one_that_is_judged_and_moves_no_bar() -> None:
    rows = [pick("pair-3-3"), seen("fleet", e2e_mean_s=4.0), seen("pair-3-3", e2e_mean_s=3.0)]
    other = seen("fleet", e2e_mean_s=6.0, tpot_mean_s=4.5).model_copy(update={"variant": TOKENS_FIRST})
    table = latency_grid([*rows, other])
    told = dict(zip(table.columns, table.rows[0], strict=True))
    assert (told["end to end over throughput's"], told["its later tokens"]) == ("1.500", "0.500")
    assert bars(*rows, other) == bars(*rows)
    beside = [run for run in BURSTS_OF_PROMPTS.waves[0](CHOICE, ()) if run.variant == TOKENS_FIRST]
    assert {run.planner for run in beside} == {"fleet"}
    assert {(planner := job(run).scenario.planner).operator and planner.operator.objective for run in beside} == {"throughput"}


def test_a_whole_run_is_its_bars() -> None:
    assert choose_experiments(ASKED, SUITE) == (BURSTS_OF_PROMPTS,)
    assert choose_experiments(replace(ASKED, effort=QUICK), SUITE) == (BURSTS_OF_PROMPTS,)
    assert effort_of(ASKED, SUITE) == "whole"
    judged = {bar.name for bar in compute_bars([], (latency_bars,)) if bar.direction != "stated"}
    assert Campaign((BURSTS_OF_PROMPTS,), CHOICE, 1, SUITE).due_bars() == judged


def test_the_fleet_runs_for_latency_here_and_for_throughput_where_tokens_are_compared() -> None:
    run = next(run for run in BURSTS_OF_PROMPTS.waves[0](CHOICE, ()) if run.planner == "fleet")
    assert isinstance(run.job, Simulate)
    objectives = [
        one.operator.objective for one in (run.job.scenario.planner, scenario(0, "fleet", 1, 9.0).planner) if one.operator
    ]
    assert objectives == ["latency", "throughput"]


def test_a_place_tells_its_load() -> None:
    assert load_percent(f"{PAIR.name}/long-prompts-80%-cached 110%") == 110


def test_requests_in_time_are_stated_beside_those_of_the_pair_with_most_of_them_picked_on_other_seeds() -> None:
    kept = {who: seen(who, within_target_share=share) for who, share in (("off", 0.5), ("fleet", 0.6), ("pair-3-3", 0.7))}
    rows = [pick("pair-1-1", within_target_share=0.4), pick("pair-3-3", within_target_share=0.8), *kept.values()]
    (bar,) = compute_bars(rows, (in_time_bars,))
    assert bar.value == pytest.approx(-0.1)
    assert (bar.verdict, bar.at) == ("stated", f"{PLACE}, fleet less pair-3-3")
    assert in_time_grid(rows).rows[0][-2:] == ("70%", "pair-3-3")


def test_a_target_is_a_few_times_what_off_takes_for_a_lone_request() -> None:
    nominal = nominal_of(PAIR, long_prompts(PAIR.limits.num_tokens))
    target = in_time(nominal)
    assert target.tpot_ms == pytest.approx(IN_TIME * 1e3 * nominal.step_seconds(1, 0), rel=0.2)
    assert target.ttft_ms == pytest.approx(IN_TIME * 1e3 * nominal.prefill_seconds, rel=0.5)
