"""The paper's own comparison, redone on its three pairs of models: ShareGPT, Poisson arrivals from 1 to 35 requests a second.

One engine of each profile, 480 requests as in the paper, until the last is answered. Planners run as published: AR is plain
decoding without a drafter (off, dormant), SD a chain of three, DSD is TurboSpec's rule, BanditSpec has no context; Nightjar's
drafter sleeps at K = 0. The oracle, which knows the truth, says how much any planner could win on such an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.scenes import nominal_of
from nightjar.loadtests.simulation.evidence.bar_list import PAPER_PROFILES
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.cold import DATASETS, comparison
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF, ORACLE

PLANNERS: Final = (
    Contestant(OFF),
    Contestant("fixed-3", as_published=True),
    Contestant("turbospec", as_published=True),
    Contestant("banditspec", as_published=True),
    Contestant(NIGHTJAR),
    Contestant(FLEET),
    Contestant(ORACLE),
)


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every data set, rate and planner, from a cold start, and once more after a first pass that is dropped.

    Each run goes on until the last request is answered, as the paper's do. The authors' driver can run a first pass and keep what
    the bandit learned; which one the paper's tables show is not known.
    """
    return [
        run
        for profile in choice.profiles
        if profile.name in PAPER_PROFILES
        for nominal in (nominal_of(profile, dataset) for dataset in DATASETS)
        for run in comparison("paper", choice, nominal, PLANNERS)
    ]


PAPER = Experiment("paper", "the paper's own comparison on its three pairs", (runs,))
