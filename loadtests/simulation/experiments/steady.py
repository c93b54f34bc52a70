"""Steady closed loops: once the fleet has learned, how near is it to the oracle, and is it ever below off?

Users stay with their replica and ask again at once, so each engine holds its batch. All are measured over the same stretch of
time, after the fleet has had time to learn: requests of the same ages stand side by side then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, held_scene, nominal_of, timing
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE

FULL: Final = 0.85
"""Share of the requests that fit into the KV cache: above it the cache's ups and downs hide what K does."""

LEAST_REPLICAS: Final = 2
LEAST_USERS: Final = 8
"""Users of the whole service at least: their requests differ in what is accepted, and a mean needs some."""


def batches(nominal: Nominal) -> list[int]:
    """From one request to a full engine, with the crossover between."""
    cross, full = nominal.crossover_rows, max(round(FULL * nominal.max_rows), 1)
    return sorted({min(max(rows, 1), full) for rows in (1, 4, cross // 2, round(1.5 * cross), full)})


def scenes(choice: Choice) -> list[Scene]:
    """Every chosen profile at every batch."""
    return [
        held_scene(choice.effort, nominal, rows, max(LEAST_REPLICAS, math.ceil(LEAST_USERS / rows)), choice.effort.steady_s)
        for nominal in map(nominal_of, choice.profiles)
        for rows in batches(nominal)
    ]


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The fleet, the oracle and off."""
    effort = choice.effort
    return [
        cell(
            "steady",
            scene,
            Contestant(planner),
            seed,
            basic,
            router="sticky",
            track_regret=planner == FLEET,
            **timing(effort, scene, planner),
        )
        for scene in scenes(choice)
        for planner in (FLEET, ORACLE, OFF)
        if choice.wants(planner)
        for seed in effort.bars
    ]


STEADY = Experiment(
    "steady",
    "closed loop: near the oracle, never below off",
    (runs,),
    bars=("fleet_over_oracle_mean", "fleet_over_oracle_min", "fleet_over_off_min", "false_alarms_per_day"),
)
