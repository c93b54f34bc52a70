"""Cold starts: does the planner lose against plain decoding while it learns? The paper's 480 requests on its three pairs.

The runs are those of the paper's comparison, without its rivals and without the pass that warms up, so that a bar can look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.evidence.bar_list import PAPER_PROFILES
from nightjar.loadtests.simulation.evidence.cold_bars import COLD
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.contestants import Contestant
from nightjar.loadtests.simulation.experiments.experiment import Choice, Experiment
from nightjar.loadtests.simulation.experiments.scenes import nominal_of
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from tests.benchmarks.policy.experiments.paper import DATASETS, comparison

PLANNERS: Final = (Contestant(OFF), Contestant(FLEET))


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Off and the fleet on every pair, data set and rate, each from the first request to the last answer."""
    return [
        run
        for profile in choice.profiles
        if profile.name in PAPER_PROFILES
        for dataset in DATASETS
        for run in comparison(COLD, choice, nominal_of(profile, dataset), PLANNERS, warm_too=False)
    ]


COLD_START: Final = Experiment(
    "cold", "from a cold start, does it lose against off?", (runs,), bars=("cold_over_off_min", "cold_over_off_mean")
)
