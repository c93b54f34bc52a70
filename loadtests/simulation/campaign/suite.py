"""What a command of the simulator can run, and how its rows are judged and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nightjar.loadtests.simulation.campaign.experiment import Experiment
from nightjar.loadtests.simulation.evidence.cells import BarsOf
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.policy_report import ChartsOf
from nightjar.loadtests.simulation.evidence.rows import RunRow


@dataclass(frozen=True, slots=True)
class Suite:
    """`experiments` by name, in the order in which they run.

    elsewhere  experiments of another command, by name, with what a person types for them
    bench      of which `make bench-NAME` a whole run of it is the evidence; empty where that is kept of none
    """

    experiments: Mapping[str, Experiment]
    bars: tuple[BarsOf, ...]
    grids: Callable[[Sequence[RunRow]], list[Grid]]
    charts: tuple[ChartsOf, ...]
    elsewhere: Mapping[str, str]
    bench: str = ""
