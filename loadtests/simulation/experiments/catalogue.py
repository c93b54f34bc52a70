"""All experiments by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nightjar.loadtests.simulation.experiments.ablation import ABLATION
from nightjar.loadtests.simulation.experiments.changing_texts import CHANGING
from nightjar.loadtests.simulation.experiments.cold import COLD_START
from nightjar.loadtests.simulation.experiments.experiment import Experiment
from nightjar.loadtests.simulation.experiments.goodput import UNDER_TARGET
from nightjar.loadtests.simulation.experiments.limit import STEP_LIMIT
from nightjar.loadtests.simulation.experiments.open_loop import OPEN_LOOP, RIVAL
from nightjar.loadtests.simulation.experiments.pooling import NEWCOMER, POOLING
from nightjar.loadtests.simulation.experiments.prefill import PREFILL_STEPS
from nightjar.loadtests.simulation.experiments.steady import STEADY
from tests.benchmarks.policy.experiments.heads import HEADS
from tests.benchmarks.policy.experiments.paper import PAPER
from tests.benchmarks.policy.experiments.paper_assumptions import PAPER_ASSUMPTIONS
from tests.benchmarks.policy.experiments.regret import REGRET
from tests.benchmarks.policy.experiments.robustness import DRIFT, FAULTY, LIAR, LOSSY
from tests.benchmarks.policy.experiments.storm import STORM
from tests.benchmarks.policy.experiments.uneven import UNEVEN

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
        HEADS,
        CHANGING,
        POOLING,
        NEWCOMER,
        STORM,
        DRIFT,
        LIAR,
        FAULTY,
        LOSSY,
        UNEVEN,
        REGRET,
        PAPER,
        PAPER_ASSUMPTIONS,
        ABLATION,
    )
}
