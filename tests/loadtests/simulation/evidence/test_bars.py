"""Each bar against rows whose result can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.campaign.measures import Simulate
from nightjar.loadtests.simulation.evidence.bar_list import best_static, compute_bars, losses
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.prefill_bars import best_pair, joined_pair, picked_oracle
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.experiments.cold import COLD_START
from nightjar.loadtests.simulation.experiments.limit import STEP_LIMIT
from nightjar.loadtests.simulation.profiles import read_profile
from tests.benchmarks.policy.suite import SUITE
from tests.loadtests.simulation.evidence.run_rows import row, summary_of

LIMIT_CHOICE = Choice((read_profile("cpu-smollm2"),), (), QUICK)
COLD_CHOICE = Choice((read_profile("cpu-smollm2"), read_profile("qwen-7b-0.5b-rtx4090")), (), QUICK)


def bar(name: str, rows: list[RunRow]) -> Bar:
    return next(found for found in compute_bars(rows, SUITE.bars) if found.name == name)


def value(name: str, rows: list[RunRow]) -> float:
    found = bar(name, rows).value
    assert found is not None
    return found


def test_without_rows_no_bar_has_a_value_and_none_has_passed() -> None:
    assert {(one.value, one.passed) for one in compute_bars([], SUITE.bars)} == {(None, None)}


def test_every_bar_that_the_project_states_is_there() -> None:
    assert [one.name for one in compute_bars([], SUITE.bars)] == [
        "fleet_over_oracle_mean", "fleet_over_oracle_min", "fleet_over_off_min", "fleet_headroom_min", "fleet_over_static_min",
        "fleet_over_rival_min", "fleet_over_rival_geomean_min", "other_texts_over_rival_geomean_min",
        "changing_texts_over_rival_geomean_min",
        "prefill_over_static_min", "prefill_over_off_min", "prefill_over_oracle_min",
        "limit_kept", "limit_cost_min", "limit_over_off_min", "cold_over_off_min", "cold_over_off_mean",
        "pooled4_loss_ratio", "pooled16_loss_ratio", "pooled16_done_s",
        "newcomer_loss", "false_alarms_per_day", "budget_violations", "storm_floor", "storm_total", "drift_recovery_s",
        "liar_changed", "sly_liar_changed", "faulty_goodput_ratio", "faulty_late_ratio", "lossy_goodput_ratio",
        "over_adaptive_min", "over_adaptive_mean",
    ]  # fmt: skip


def test_over_adaptive_verification_the_fleet_is_held_against_the_better_of_the_two_alone() -> None:
    rows = [
        row("adaptive", "fleet", "p/1", tokens_per_busy_s=100.0), row("adaptive", "fleet", "p/2", tokens_per_busy_s=100.0),
        row("adaptive", "fixed-5", "p/1", as_published=True, variant="adaptive verification, 0.6", tokens_per_busy_s=80.0),
        row("adaptive", "fixed-5", "p/2", as_published=True, variant="adaptive verification, 0.6", tokens_per_busy_s=125.0),
        row("adaptive", "fleet", "p/1", variant="over adaptive verification, 0.6", tokens_per_busy_s=101.0),
        row("adaptive", "fleet", "p/2", variant="over adaptive verification, 0.6", tokens_per_busy_s=120.0),
        row("adaptive", "fleet", "p/2", variant="over adaptive verification, 0", tokens_per_busy_s=1.0),
    ]  # fmt: skip
    worst = bar("over_adaptive_min", rows)
    assert worst.value == pytest.approx(0.96)
    assert worst.passed is False
    assert worst.at.startswith("p/2, fleet (over adaptive verification, 0.6) over fixed-5")
    assert value("over_adaptive_mean", rows) == pytest.approx((1.01 + 0.96) / 2)


def test_a_cell_is_the_mean_over_seeds_and_the_bar_its_minimum_over_cells() -> None:
    rows = [
        row("steady", "fleet", "p/1", 0, tokens_per_s=90.0), row("steady", "fleet", "p/1", 1, tokens_per_s=110.0),
        row("steady", "oracle", "p/1", 0, tokens_per_s=100.0), row("steady", "oracle", "p/1", 1, tokens_per_s=100.0),
        row("steady", "fleet", "p/8", 0, tokens_per_s=96.0), row("steady", "oracle", "p/8", 0, tokens_per_s=100.0),
    ]  # fmt: skip
    worst = bar("fleet_over_oracle_min", rows)
    assert worst.value == pytest.approx(0.96)
    assert (worst.cells, worst.seeds, worst.passed) == (2, 1, True)
    assert worst.at.startswith("p/8")
    assert value("fleet_over_oracle_mean", rows) == pytest.approx(0.98)


def test_only_seeds_that_both_planners_ran_are_compared() -> None:
    rows = [
        row("steady", "fleet", seed=0, tokens_per_s=50.0), row("steady", "fleet", seed=1, tokens_per_s=99.0),
        row("steady", "off", seed=1, tokens_per_s=100.0),
    ]  # fmt: skip
    assert value("fleet_over_off_min", rows) == pytest.approx(0.99)


def test_a_failed_run_counts_nowhere() -> None:
    rows = [
        row("steady", "fleet", seed=0, tokens_per_s=100.0), row("steady", "off", seed=0, tokens_per_s=100.0),
        row("steady", "fleet", seed=1, error="ValueError: no"), row("steady", "off", seed=1, tokens_per_s=500.0),
    ]  # fmt: skip
    assert value("fleet_over_off_min", rows) == pytest.approx(1.0)


def open_loop(place: str, **goodput: float) -> list[RunRow]:
    return [row("open_loop", who, place, tokens_per_busy_s=each) for who, each in goodput.items()]


def test_headroom_is_the_share_of_the_oracles_lead_and_only_where_the_lead_is_five_percent() -> None:
    rows = [
        row("pick", "fixed", "p/surge", 99, tokens_per_busy_s=100.0), row("pick", "off", "p/surge", 99, tokens_per_busy_s=90.0),
        row("pick", "off", "p/calm", 99, tokens_per_busy_s=100.0),
        *open_loop("p/surge", fleet=118.0, oracle=120.0, fixed=100.0, off=95.0),
        *open_loop("p/calm", fleet=99.5, oracle=101.0, off=100.0),
    ]  # fmt: skip
    assert value("fleet_headroom_min", rows) == pytest.approx(0.9)
    assert value("fleet_over_static_min", rows) == pytest.approx(0.995)


def test_headroom_that_no_place_has_is_no_place_and_says_how_far_the_oracle_leads() -> None:
    rows = [
        row("pick", "off", "p/calm", 99, tokens_per_busy_s=100.0), row("pick", "off", "p/surge", 99, tokens_per_busy_s=100.0),
        *open_loop("p/calm", fleet=99.5, oracle=101.0, off=100.0), *open_loop("p/surge", fleet=101.0, oracle=103.0, off=100.0),
    ]  # fmt: skip
    found = bar("fleet_headroom_min", rows)
    assert (found.verdict, found.at, found.cells) == ("no place", "the oracle leads by 3.0% at most: p/surge, best static off", 2)
    assert bar("fleet_headroom_min", []).verdict == "not run"
    assert "1 no place" in summary_of(rows).headline


def test_where_the_oracle_leads_everywhere_no_place_is_level() -> None:
    rows = [row("pick", "off", "p/surge", 99, tokens_per_busy_s=100.0), *open_loop("p/surge", fleet=118.0, oracle=120.0, off=100.0)]
    assert bar("fleet_over_static_min", rows).verdict == "no place"
    assert bar("fleet_headroom_min", rows).verdict == "reached"


def test_the_best_static_is_picked_on_other_seeds_even_where_another_won_on_these() -> None:
    rows = [
        row("pick", "fixed-3", "p/x", 99, tokens_per_busy_s=100.0), row("pick", "fixed-5", "p/x", 99, tokens_per_busy_s=99.0),
        *open_loop("p/x", **{"fleet": 100.0, "oracle": 100.0, "fixed-3": 100.0, "fixed-5": 200.0}),
    ]  # fmt: skip
    assert best_static(rows) == {"p/x": "fixed-3"}
    assert value("fleet_over_static_min", rows) == pytest.approx(1.0)


def test_a_rival_is_judged_by_its_worst_cell_and_by_its_geometric_mean() -> None:
    rows = [*open_loop("p/a", fleet=200.0, oracle=1e9, nightjar=100.0), *open_loop("p/b", fleet=98.0, nightjar=100.0)]
    assert value("fleet_over_rival_min", rows) == pytest.approx(0.98)
    assert value("fleet_over_rival_geomean_min", rows) == pytest.approx(math.sqrt(2.0 * 0.98))
    assert [(one.value, one.at) for one in losses(rows)] == [(0.98, "p/b, fleet over nightjar")]


def test_texts_that_no_table_was_tuned_for_have_a_mean_of_their_own_and_count_among_the_cells() -> None:
    rows = [
        *open_loop("p/surge", fleet=99.0, table=100.0),
        *open_loop("p/other-texts", fleet=104.0, table=100.0),
        *open_loop("p/changing-texts", fleet=106.0, table=100.0),
    ]
    assert value("fleet_over_rival_geomean_min", rows) == pytest.approx(0.99)
    assert value("other_texts_over_rival_geomean_min", rows) == pytest.approx(1.04)
    assert value("changing_texts_over_rival_geomean_min", rows) == pytest.approx(1.06)
    assert bar("fleet_over_rival_min", rows).cells == 3


def test_a_rival_as_published_is_not_compared_on_equal_mechanics() -> None:
    rows = [*open_loop("p/a", fleet=100.0), row("open_loop", "nightjar", "p/a", as_published=True, tokens_per_busy_s=200.0)]
    assert bar("fleet_over_rival_min", rows).value is None


def test_the_best_pair_is_searched_along_a_star_and_the_oracle_is_the_best_that_anybody_made() -> None:
    picks = {"pair-0-0": 5.0, "pair-3-3": 8.0, "pair-3-5": 8.5, "pair-2-3": 8.2, "pair-3-0": 6.0, "oracle-mixed-4": 9.5}
    rows = [row("prefill-pick", who, seed=1000, tokens_per_busy_s=made) for who, made in picks.items()]
    assert best_pair(rows, "p/steady") == (3, 5)
    assert joined_pair(rows, "p/steady") == (2, 5)
    assert picked_oracle(rows, "p/steady") == "oracle-mixed-4"
    made = {"fleet": 9.0, "off": 6.0, "oracle": 9.2, "oracle-mixed-4": 9.6, "pair-3-5": 10.0}
    rows += [row("prefill", who, tokens_per_busy_s=tokens) for who, tokens in made.items()]
    assert value("prefill_over_static_min", rows) == pytest.approx(0.9)
    assert value("prefill_over_off_min", rows) == pytest.approx(1.5)
    assert value("prefill_over_oracle_min", rows) == pytest.approx(0.9), "the pair beats both oracles"


def test_where_nothing_was_picked_yet_a_pair_is_off_in_both_kinds_of_steps() -> None:
    assert (best_pair([], "p/x"), joined_pair([], "p/x"), picked_oracle([], "p/x")) == ((0, 0), (0, 0), "oracle-mixed-0")


def test_pooling_compares_what_the_replicas_of_a_group_lose_each_with_what_one_loses_alone() -> None:
    lost = {"p/1": (1000.0, 600.0, 100.0), "p/2": (100.0, 20.0, 30.0)}
    rows = [
        row("pooling", "fleet", place, variant=variant, lost_tokens_per_replica_in_all=tokens, done_s=12.0)
        for place, of_place in lost.items()
        for variant, tokens in zip(("1 replica", "4 replicas", "16 replicas"), of_place, strict=True)
    ]
    assert value("pooled4_loss_ratio", rows) == pytest.approx(0.4)
    assert value("pooled16_loss_ratio", rows) == pytest.approx(0.2)
    assert value("pooled16_done_s", rows) == pytest.approx(12.0)


def test_a_faulty_replica_is_priced_by_what_the_others_give_in_the_same_run_without_it() -> None:
    rows = [
        row("faulty", "fleet", variant="none", others_share=0.98),
        row("faulty", "fleet", variant="NaN", others_share=0.98),
        row("faulty", "fleet", variant="times ten", others_share=0.97),
        row("faulty-late", "fleet", variant="none", others_share=1.0),
        row("faulty-late", "fleet", variant="times ten", others_share=0.999),
    ]
    assert value("faulty_goodput_ratio", rows) == pytest.approx(0.97 / 0.98)
    assert value("faulty_late_ratio", rows) == pytest.approx(0.999)


def test_the_storms_floor_is_its_worst_second_and_its_total_is_over_the_better_alternative() -> None:
    place = "p/storm"
    rows = [
        row("storm", "off", place, tokens=(100.0, 100.0, 100.0)),
        row("storm", "never-off", place, tokens=(100.0, 120.0, 120.0)),
        row("storm", "fleet", place, variant="chunked, coordinated", tokens=(96.0, 120.0, 130.0)),
        row("storm", "fleet", place, variant="chunked, uncoordinated", tokens=(40.0, 130.0, 130.0)),
    ]
    assert value("storm_floor", rows) == pytest.approx(0.96)
    assert value("storm_total", rows) == pytest.approx(346.0 / 340.0)


def test_false_alarms_are_counted_over_all_the_time_in_which_none_was_due() -> None:
    rows = [
        row("steady", "fleet", "p/1", false_alarms=1.0, watched_s=86_400.0),
        row("open_loop", "fleet", "p/2", false_alarms=2.0, watched_s=86_400.0),
        row("drift", "fleet", "p/3", recovery_s=20.0),
    ]
    assert value("false_alarms_per_day", rows) == pytest.approx(1.5)
    assert bar("false_alarms_per_day", rows).passed is False
    assert (bar("drift_recovery_s", rows).value, bar("drift_recovery_s", rows).passed) == (20.0, None)


def test_no_false_alarm_in_less_time_than_shows_one_a_day_is_no_bar_reached() -> None:
    rows = [
        row("steady", "fleet", "p/1", false_alarms=0.0, watched_s=600.0),
        row("steady", "fleet", "p/2", false_alarms=0.0, watched_s=120.0),
    ]
    found = bar("false_alarms_per_day", rows)
    assert (found.value, found.verdict, found.cells) == (None, "no place", 2)
    assert found.at.startswith("0 in 0.00833 group-days")
    assert bar("false_alarms_per_day", []).verdict == "not run"
    assert bar("false_alarms_per_day", [row("steady", "fleet", false_alarms=0.0, watched_s=3 * 86_400.0)]).verdict == "reached"


def test_a_false_alarm_counts_however_short_the_run_was() -> None:
    found = bar("false_alarms_per_day", [row("steady", "fleet", false_alarms=1.0, watched_s=600.0)])
    assert found.value == pytest.approx(144.0)
    assert found.verdict == "MISSED"


def test_a_bar_without_a_value_is_missed_only_where_the_run_was_to_give_it_one() -> None:
    verdicts = {one.name: (one.verdict, one.is_missed) for one in summary_of([], due={"storm_floor"}).bars.values()}
    assert verdicts.pop("storm_floor") == ("no value", True)
    assert set(verdicts.values()) == {("not run", False)}


def test_a_liar_is_counted_by_the_batch_sizes_whose_k_it_moved() -> None:
    rows = [
        row("liar", "fleet", variant="NaN", plan=(3.0, 3.0, 0.0), plan_without_liar=(3.0, 3.0, 0.0)),
        row("liar", "fleet", variant="times ten", plan=(5.0, 3.0, 1.0), plan_without_liar=(3.0, 3.0, 0.0)),
    ]
    found = bar("liar_changed", rows)
    assert (found.value, found.passed, found.cells) == (2.0, False, 2)
    assert bar("sly_liar_changed", rows).value is None


def test_a_lie_that_passes_for_the_truth_longest_is_counted_by_itself() -> None:
    rows = [
        row("liar", "fleet", variant="NaN", plan=(3.0, 0.0), plan_without_liar=(3.0, 0.0)),
        row("liar", "fleet", variant="a tenth", plan=(3.0, 1.0), plan_without_liar=(3.0, 0.0)),
    ]
    assert (value("liar_changed", rows), value("sly_liar_changed", rows)) == (0.0, 1.0)


def test_a_lossy_control_plane_is_compared_with_a_lossless_one_and_violations_are_summed_over_all_runs() -> None:
    rows = [
        row("lossy", "fleet", variant="lossless", tokens_per_busy_s=100.0, budget_violations=0.0),
        row("lossy", "fleet", variant="actor dies", tokens_per_busy_s=99.5, budget_violations=1.0),
        row("storm", "fleet", variant="chunked, coordinated", budget_violations=2.0),
    ]
    assert value("lossy_goodput_ratio", rows) == pytest.approx(0.995)
    assert value("budget_violations", rows) == 3.0


def limited(ratios: dict[str, float], profile: str = "p") -> list[RunRow]:
    """Off takes 97 ms at a profile's heaviest load and half of that elsewhere, so that its limit is 100 ms; the limited planner so
    much of it."""
    rows = []
    for number, (load, of_limit) in enumerate(ratios.items()):
        place, off_s = f"{profile}/{load}", 0.097 if number == 0 else 0.0485
        for who, variant, itl_s, made in (
            ("off", "", off_s, 100.0),
            ("fleet", "", 0.2, 150.0),
            ("fleet", "max_step_ms", 0.1 * of_limit, 120.0),
        ):
            made_row = row("limit", who, place, variant=variant, itl_p99_s=itl_s, tokens_per_busy_s=made)
            rows.append(made_row.model_copy(update={"profile": profile}))
    return rows


def test_a_limit_is_kept_where_the_planner_stays_below_what_off_keeps_by_3_percent_with_goodput_stated_beside_it() -> None:
    rows = limited({"heavy": 1.0, "middle": 0.9, "light": 0.5})
    kept = bar("limit_kept", rows)
    assert (kept.value, kept.passed, kept.cells) == (1.0, True, 3)
    assert kept.at == "p/heavy: 1.000 of the limit"
    assert value("limit_cost_min", rows) == pytest.approx(0.8)
    assert value("limit_over_off_min", rows) == pytest.approx(1.2)
    assert bar("limit_cost_min", rows).verdict == "stated"


def test_one_load_at_which_the_planner_exceeds_the_limit_fails_the_bar_and_is_named() -> None:
    kept = bar("limit_kept", limited({"heavy": 0.98, "middle": 1.02, "light": 0.5, "lighter": 0.5}))
    assert (kept.value, kept.passed) == (0.75, False)
    assert kept.at == "p/middle: 1.020 of the limit"


def test_a_profile_with_fewer_than_three_loads_counts_as_one_that_does_not_keep_its_limit() -> None:
    rows = limited({"heavy": 0.9, "light": 0.5}) + limited({"heavy": 0.9, "middle": 0.9, "light": 0.5}, "q")
    assert value("limit_kept", rows) == pytest.approx(3 / 5)


def test_the_limit_comes_from_off_at_its_heaviest_load_and_the_fleet_runs_again_with_it_on_the_same_seeds() -> None:
    choice = replace(LIMIT_CHOICE, effort=replace(QUICK, rivals=range(2)))
    free, again = STEP_LIMIT.waves
    loads = {cell.load for cell in free(choice, ())}
    assert len(loads) == 5
    off = [
        row("limit", "off", f"cpu-smollm2/{load}", seed, itl_p99_s=0.1 * (number + 1))
        for number, load in enumerate(loads)
        for seed in (0, 1)
    ]
    runs = again(choice, [one.model_copy(update={"profile": "cpu-smollm2"}) for one in off])
    limits = {
        cell.job.scenario.planner.operator.max_step_ms
        for cell in runs
        if isinstance(cell.job, Simulate) and cell.job.scenario.planner.operator
    }
    assert [round(limit, 6) for limit in limits if limit is not None] == [round(500.0 / 0.97, 6)]
    assert {(cell.load, cell.seed) for cell in runs} == {(load, seed) for load in loads for seed in (0, 1)}


def test_a_cold_start_is_judged_by_pair_and_data_set_with_all_their_rates_together() -> None:
    rows = []
    for load, made in (("alpaca 1/s", 110.0), ("alpaca 35/s", 85.0), ("sharegpt 1/s", 104.0)):
        for who, tokens in (("off", 100.0), ("fleet", made)):
            rows.append(row("cold", who, f"p/{load}", tokens_per_busy_s=tokens).model_copy(update={"load": load}))
    worst = bar("cold_over_off_min", rows)
    assert worst.value == pytest.approx(0.975)
    assert (worst.passed, worst.cells, worst.at) == (False, 2, "p, alpaca")
    assert value("cold_over_off_mean", rows) == pytest.approx((0.975 + 1.04) / 2)


def test_cold_starts_are_the_papers_requests_by_off_and_the_fleet_from_the_first_on() -> None:
    (wave,) = COLD_START.waves
    runs = wave(COLD_CHOICE, ())
    assert {(cell.planner, cell.variant) for cell in runs} == {("off", ""), ("fleet", "")}
    assert {cell.profile for cell in runs} == {"qwen-7b-0.5b-rtx4090"}
    assert {cell.load for cell in runs} == {
        f"{name} {rate}/s" for name in ("sharegpt", "alpaca", "spec-bench") for rate in (5, 15, 35)
    }
    assert all(isinstance(cell.job, Simulate) and cell.job.scenario.warm_up_s == 0.0 for cell in runs)
