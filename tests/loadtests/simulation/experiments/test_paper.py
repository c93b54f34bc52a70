"""The paper's comparison counts all requests until the last answer, and the other engines differ in what they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.campaign.measures import Simulate
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.cold import REQUESTS
from nightjar.loadtests.simulation.profiles import Profile, read_profile
from nightjar.loadtests.simulation.service.simulate import simulate
from tests.benchmarks.policy.experiments.paper import offload_runs, runs, trace_runs
from tests.benchmarks.policy.experiments.paper_assumptions import CHANGES, better_drafts
from tests.benchmarks.policy.experiments.paper_assumptions import runs as assumption_runs
from tests.benchmarks.policy.paper_table import ASSUMPTIONS, OFFLOAD, paper_grids
from tests.loadtests.simulation.evidence.run_rows import row

PAIR: Final = read_profile("vicuna-13b-68m-a100")
CHOICE: Final = Choice((PAIR,), (), replace(QUICK, paper_rates=(35,)), planners=frozenset({"off"}))


@pytest.mark.parametrize("cell", runs(CHOICE, ()), ids=lambda cell: f"{cell.load} {cell.variant}")
def test_every_request_is_answered_and_the_time_ends_with_the_last_answer(cell: Cell) -> None:
    job = cell.job
    assert isinstance(job, Simulate)
    result = simulate(job.scenario)
    assert result.unfinished == 0
    assert result.answered == pytest.approx(REQUESTS, rel=0.2)
    took_s = result.last_answer_s - job.scenario.warm_up_s
    assert 0 < took_s < result.measured_s
    assert job.measure(job.scenario, result).measures["tokens_per_s"] == pytest.approx(result.totals.tokens / took_s)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_profile_is_one_that_could_be_read_from_a_file(name: str) -> None:
    changed = CHANGES[name](PAIR)
    assert Profile.model_validate(changed.model_dump(exclude_unset=True)) == changed
    same_for_this_pair = {"as the profiles ship", "AR runs the drafter at K = 0", "717 KV blocks for every pair"}
    assert (changed == PAIR) == (name in same_for_this_pair)


def test_better_drafts_halve_what_is_rejected_at_each_position() -> None:
    for before, after in zip(PAIR.acceptance_classes, better_drafts(PAIR).acceptance_classes, strict=True):
        for (one, two), (one_after, two_after) in zip(
            pairwise((1.0, *before.survival)), pairwise((1.0, *after.survival)), strict=True
        ):
            assert 1 - two_after / one_after == pytest.approx((1 - two / one) / 2)


def test_each_assumption_is_a_place_of_its_own() -> None:
    cells = assumption_runs(CHOICE, ())
    assert {cell.place.partition(": ")[0] for cell in cells} == set(CHANGES)
    assert {cell.seed for cell in cells} == {0}
    assert not any(cell.variant for cell in cells)


def test_the_table_of_assumptions_has_the_oracle_over_plain_decoding_by_pair() -> None:
    place = "some change: p/alpaca 35/s"
    rows = [
        row(ASSUMPTIONS, planner, place, tokens_per_s=speed)
        for planner, speed in (("off", 10.0), ("oracle", 12.0), ("nightjar", 11.0))
    ]
    (grid,) = paper_grids(rows)
    assert grid.rows == (("some change", "1.200", "1.100", "-", "1.200"),)


def test_a_trace_is_played_from_its_beginning_at_two_paces_by_every_planner(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("".join(f"{second},{90 + second},{5 + second % 7}\n" for second in range(600)))
    cells = trace_runs(replace(CHOICE, trace=trace), ())
    assert [(cell.load, cell.planner) for cell in cells] == [("trace 1x", "off"), ("trace 3x", "off")]
    results = [simulate(cell.job.scenario) for cell in cells if isinstance(cell.job, Simulate)]
    assert [(result.answered, result.unfinished) for result in results] == [(REQUESTS, 0), (REQUESTS, 0)]
    assert results[0].last_answer_s == pytest.approx(REQUESTS - 1, abs=5)
    assert results[1].last_answer_s == pytest.approx((REQUESTS - 1) / 3, abs=5)


def test_without_a_trace_none_is_played() -> None:
    assert trace_runs(CHOICE, ()) == []


def test_the_offload_runs_on_the_small_pair_alone_without_it_and_by_threshold() -> None:
    choice = replace(CHOICE, profiles=(PAIR, read_profile("qwen-7b-0.5b-rtx4090")), planners=frozenset({"nightjar"}))
    cells = offload_runs(choice, ())
    assert {cell.profile for cell in cells} == {"qwen-7b-0.5b-rtx4090"}
    scenarios = {cell.variant: cell.job.scenario for cell in cells if isinstance(cell.job, Simulate)}
    rules = {
        variant: one.planner.operator.offload_rules() for variant, one in scenarios.items() if one.planner.operator is not None
    }
    assert rules.pop("never") is None
    assert not scenarios["never"].offload
    assert [rule.free_share_below for rule in rules.values() if rule is not None] == sorted(
        rule.free_share_below for rule in rules.values() if rule is not None
    )
    assert all(one.offload for variant, one in scenarios.items() if variant != "never")
    assert len(scenarios) == 10


def test_the_table_of_the_offload_is_over_never_by_planner_and_rate() -> None:
    rows = [
        row(OFFLOAD, planner, f"p/sharegpt {rate}/s", variant=variant, tokens_per_s=speed)
        for planner, variant, rate, speed in (
            ("nightjar", "never", 30, 10.0),
            ("nightjar", "10%", 30, 11.0),
            ("fleet", "never", 30, 10.0),
            ("fleet", "10%", 30, 9.0),
        )
    ]
    (grid,) = paper_grids(rows)
    assert grid.columns == ("short below", "our nightjar, 30", "our fleet, 30")
    assert grid.rows == (("never", "1.000", "1.000"), ("10%", "1.100", "0.900"))
