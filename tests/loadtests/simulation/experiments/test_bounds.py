"""A small fixed campaign in virtual time holds bounds: what a change of the planner must not break unseen (`make test-slow`).

One engine profile with few steps a second, the seeds named here, the lengths of `make bench-policy`. The same code gives the same
numbers, so a bound that breaks tells of a change in what is decided. Bounds of ratios lie a little below the bars where one seed
scatters more than ten; those of counts are the bars'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from nightjar.loadtests.simulation.campaign.efforts import BENCH, PICK_SEED
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.evidence.bar_list import compute_bars
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, run_cells, without_repeats
from nightjar.loadtests.simulation.profiles import read_profile
from tests.benchmarks.policy.suite import SUITE

pytestmark = pytest.mark.heavy

PROFILE = "cpu-smollm2"
SEEDS = 4
"""Where a bound is the bar's own: a single seed scatters by a percent at one batch size."""
EFFORT = replace(BENCH, picks=BENCH.picks[:1], storm_replicas=32, storm_profiles=1)


def ran(experiment: str, *loads: str, seeds: int = 1, only: Callable[[Cell], bool] = lambda _: True) -> list[RunRow]:
    """Rows of an experiment's runs that are wanted, wave by wave."""
    choice = Choice((read_profile(PROFILE),), loads, replace(EFFORT, bars=range(seeds), storms=range(seeds)))
    rows: list[RunRow] = []
    for wave in SUITE.experiments[experiment].waves:
        rows += run_cells([cell for cell in without_repeats(wave(choice, rows)) if only(cell)], jobs=1)
    assert [row.error for row in rows if row.error] == []
    assert {row.seed for row in rows} <= {*range(seeds), PICK_SEED}
    return rows


def value(name: str, rows: list[RunRow]) -> float:
    found: Bar = next(bar for bar in compute_bars(rows, SUITE.bars) if bar.name == name)
    assert found.value is not None, found
    return found.value


def false_alarms(rows: list[RunRow]) -> float:
    """Of guards, in runs in which nothing drifts."""
    watched = [row.measures for row in rows if row.planner == "fleet" and "false_alarms" in row.measures]
    assert math.fsum(measures["watched_s"] for measures in watched) > 600.0
    return math.fsum(measures["false_alarms"] for measures in watched)


def test_in_a_closed_loop_the_fleet_is_never_below_off_by_more_than_noise() -> None:
    rows = ran("steady", "surge", seeds=SEEDS, only=lambda cell: cell.planner in {"fleet", "off"})
    assert value("fleet_over_off_min", rows) >= 0.99
    assert false_alarms(rows) == 0


def test_under_quiet_and_surging_load_the_fleet_is_near_the_best_static_planner() -> None:
    rows = ran("open-loop", "poisson-quiet", "surge")
    assert value("fleet_over_static_min", rows) >= 0.975
    assert false_alarms(rows) == 0


def test_when_all_replicas_want_to_restart_no_more_do_than_the_budget_allows_and_nothing_is_lost() -> None:
    rows = ran("storm", seeds=SEEDS, only=lambda cell: cell.load == "storm" and not cell.variant.startswith("one-shot"))
    leased = {(row.who, row.seed): row.measures["max_leases_in_flight"] for row in rows}
    for seed in range(SEEDS):
        assert 1 < leased["fleet (chunked, coordinated)", seed] < leased["fleet (chunked, uncoordinated)", seed]
    assert value("budget_violations", rows) == 0
    assert value("storm_floor", rows) >= 0.95
    assert value("storm_total", rows) >= 0.98
