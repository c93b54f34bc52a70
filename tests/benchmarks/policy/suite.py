"""All experiments of `make bench-policy`: those of `nightjar simulate`, and this project's evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.experiment import Suite
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.experiments.catalogue import SUITE as OF_THE_PRODUCT
from tests.benchmarks.policy import tables
from tests.benchmarks.policy.bars import adaptive_bars, drift_bars, faulty_bars, liar_bars, lossy_bars, storm_bars
from tests.benchmarks.policy.experiments.adaptive import ADAPTIVE_VERIFICATION
from tests.benchmarks.policy.experiments.constants import CHANGED_NUMBERS
from tests.benchmarks.policy.experiments.context import CONTEXTS
from tests.benchmarks.policy.experiments.heads import HEADS
from tests.benchmarks.policy.experiments.paper import PAPER, PAPER_OFFLOAD
from tests.benchmarks.policy.experiments.paper_assumptions import PAPER_ASSUMPTIONS
from tests.benchmarks.policy.experiments.regret import REGRET
from tests.benchmarks.policy.experiments.robustness import DRIFT, FAULTY, LIAR, LOSSY
from tests.benchmarks.policy.experiments.storm import STORM
from tests.benchmarks.policy.experiments.transition import CHANGING_FAST
from tests.benchmarks.policy.experiments.uneven import UNEVEN

OF_THE_BENCH: Final = (
    HEADS,
    STORM,
    DRIFT,
    LIAR,
    FAULTY,
    LOSSY,
    UNEVEN,
    REGRET,
    PAPER,
    PAPER_OFFLOAD,
    PAPER_ASSUMPTIONS,
    CHANGING_FAST,
    ADAPTIVE_VERIFICATION,
    CONTEXTS,
    CHANGED_NUMBERS,
)


def _grids(rows: Sequence[RunRow]) -> list[Grid]:
    return [*OF_THE_PRODUCT.grids(rows), *tables.grids(rows)]


SUITE: Final = Suite(
    experiments={**OF_THE_PRODUCT.experiments, **{experiment.name: experiment for experiment in OF_THE_BENCH}},
    bars=(*OF_THE_PRODUCT.bars, storm_bars, drift_bars, liar_bars, faulty_bars, lossy_bars, adaptive_bars),
    grids=_grids,
    charts=(*OF_THE_PRODUCT.charts, tables.regret_charts, tables.storm_charts),
    elsewhere={},
    bench="policy",
)
