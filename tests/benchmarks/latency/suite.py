"""All experiments of `make bench-latency`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.experiment import Suite
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.rows import RunRow
from tests.benchmarks.latency.bars import latency_bars, latency_grid
from tests.benchmarks.latency.bursts import BURSTS_OF_PROMPTS
from tests.benchmarks.latency.in_time import in_time_bars, in_time_grid


def _grids(rows: Sequence[RunRow]) -> list[Grid]:
    return [latency_grid(rows), in_time_grid(rows)]


SUITE: Final = Suite(
    experiments={experiment.name: experiment for experiment in (BURSTS_OF_PROMPTS,)},
    bars=(latency_bars, in_time_bars),
    grids=_grids,
    charts=(),
    elsewhere={},
    bench="latency",
)
