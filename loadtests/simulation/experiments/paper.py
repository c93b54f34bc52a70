"""The paper's own comparison, redone on its three pairs of models: ShareGPT, Poisson arrivals from 1 to 35 requests a second.

One engine of each profile, 480 requests as in the paper. Planners run as published: AR is plain decoding without a drafter
(off, dormant), SD a chain of three, DSD is TurboSpec's rule, BanditSpec has no context; Nightjar's drafter sleeps at K = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.regimes import Phase, Regime, repeated
from nightjar.loadtests.simulation.evidence.bar_list import PAPER_PROFILES, WARM
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.contestants import Contestant
from nightjar.loadtests.simulation.experiments.experiment import Choice, Experiment
from nightjar.loadtests.simulation.experiments.measuring import basic
from nightjar.loadtests.simulation.experiments.scenes import cell, nominal_of, open_scene
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF
from nightjar.loadtests.simulation.service.lengths import ALPACA, SHAREGPT, SPEC_BENCH

REQUESTS: Final = 480
LEAST_S: Final = 30.0
DATASETS: Final = (SHAREGPT, ALPACA, SPEC_BENCH)

PLANNERS: Final = (
    Contestant(OFF),
    Contestant("fixed-3", as_published=True),
    Contestant("turbospec", as_published=True),
    Contestant("banditspec", as_published=True),
    Contestant(NIGHTJAR),
    Contestant(FLEET),
)


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every data set, rate and planner, from a cold start, and once more after a first pass that is dropped.

    The authors' driver can run such a pass and keep what the bandit learned; which one the paper's tables show is not known.
    """
    cells = []
    for profile in choice.profiles:
        if profile.name not in PAPER_PROFILES:
            continue
        for dataset in DATASETS:
            nominal = nominal_of(profile, dataset)
            for rate in choice.effort.paper_rates:
                duration_s = max(REQUESTS / rate, LEAST_S)
                regime = Regime((Phase("poisson", duration_s, requests_per_s=float(rate)),))
                scene = open_scene(nominal, f"{dataset.name} {rate}/s", regime, 1)
                twice = open_scene(nominal, scene.load, repeated(regime, 2), 1)
                cells += [
                    cell("paper", here, contestant, seed, basic, duration_s=first_s + duration_s, warm_up_s=first_s, variant=warm)
                    for here, first_s, warm in ((scene, 0.0, ""), (twice, duration_s, WARM))
                    for contestant in PLANNERS
                    if choice.wants(contestant.name)
                    for seed in choice.effort.others
                ]
    return cells


PAPER = Experiment("paper", "the paper's own comparison on its three pairs", (runs,))
