"""Goodput under the operator's target: the highest load at which 95 % of requests keep it, by planner.

Poisson arrivals at rising shares of what an engine carries; then, between the last load that was kept and the first that was not,
finer ones. All planners meet the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import TABLE, Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import under_target
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, nominal_of, pattern_s, poisson_scene, timing
from nightjar.loadtests.simulation.evidence.goodput_table import KIND, highest_kept, points
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF

COARSE_PERCENT: Final = (20, 40, 60, 80, 100, 120)
FINE_PERCENT: Final = 5
PLANNERS: Final = (FLEET, OFF, "fixed-3", TABLE, NIGHTJAR)
LEAST_REQUESTS: Final = 200
"""A share of 95 % is decided by every twentieth of them."""


def _coarse(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every planner at every coarse load."""
    return [
        run
        for nominal in map(nominal_of, choice.profiles)
        for percent in COARSE_PERCENT
        for planner in PLANNERS
        for run in _runs(choice, nominal, percent, planner)
    ]


def _fine(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """Every planner between its highest kept load and the next coarse one; nothing for one that kept all."""
    cells = []
    for nominal in map(nominal_of, choice.profiles):
        for planner in PLANNERS:
            best = highest_kept(points(rows, nominal.profile.name, planner))
            kept = next((percent for percent in COARSE_PERCENT if best and best.load == _name(percent)), 0)
            above = next((percent for percent in COARSE_PERCENT if percent > kept), kept)
            for percent in range(kept + FINE_PERCENT, above, FINE_PERCENT):
                cells += _runs(choice, nominal, percent, planner)
    return cells


def _runs(choice: Choice, nominal: Nominal, percent: int, planner: str) -> list[Cell]:
    if not choice.wants(planner):
        return []
    scene = _scene(choice, nominal, percent)
    when = timing(choice.effort, scene, planner)
    return [
        cell(KIND, scene, Contestant(planner), seed, under_target, variant=str(choice.goodput or ""), **when)
        for seed in choice.effort.rivals
    ]


def _scene(choice: Choice, nominal: Nominal, percent: int) -> Scene:
    rate = percent / 100 * nominal.capacity
    measured_s = max(pattern_s(choice.effort, nominal), LEAST_REQUESTS / rate)
    return poisson_scene(choice.effort, nominal, _name(percent), rate, measured_s)


def _name(percent: int) -> str:
    return f"poisson {percent}%"


UNDER_TARGET: Final = Experiment(
    "goodput",
    "the highest load at which 95 % of requests are within --goodput",
    (_coarse, _fine),
)
