"""The experiments of `nightjar simulate` by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nightjar.loadtests.simulation.campaign.experiment import Experiment, Suite
from nightjar.loadtests.simulation.evidence.bar_list import BARS
from nightjar.loadtests.simulation.evidence.policy_report import CHARTS
from nightjar.loadtests.simulation.evidence.tables import all_grids
from nightjar.loadtests.simulation.experiments.ablation import ABLATION
from nightjar.loadtests.simulation.experiments.cold import COLD_START
from nightjar.loadtests.simulation.experiments.goodput import UNDER_TARGET
from nightjar.loadtests.simulation.experiments.limit import STEP_LIMIT
from nightjar.loadtests.simulation.experiments.open_loop import CHANGING, OPEN_LOOP, RIVAL
from nightjar.loadtests.simulation.experiments.pooling import NEWCOMER, POOLING
from nightjar.loadtests.simulation.experiments.prefill import PREFILL_STEPS
from nightjar.loadtests.simulation.experiments.steady import STEADY

EXPERIMENTS: Final[Mapping[str, Experiment]] = {
    experiment.name: experiment
    for experiment in (
        STEADY,
        OPEN_LOOP,
        RIVAL,
        PREFILL_STEPS,
        STEP_LIMIT,
        COLD_START,
        UNDER_TARGET,
        CHANGING,
        POOLING,
        NEWCOMER,
        ABLATION,
    )
}
OF_THE_BENCH: Final = (
    "heads", "storm", "drift", "liar", "faulty", "lossy", "uneven", "regret", "paper", "paper-offload", "paper-assumptions",
    "transition", "adaptive", "context", "constants",
)  # fmt: skip
"""They are this project's evidence, and are not in the package."""
SUITE: Final = Suite(
    EXPERIMENTS, BARS, all_grids, CHARTS, {name: f'make bench-policy ARGS="--only {name}"' for name in OF_THE_BENCH}
)
