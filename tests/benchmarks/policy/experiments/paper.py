"""The paper's own comparison, redone on its three pairs of models: ShareGPT, Poisson arrivals from 1 to 35 requests a second.

One engine of each profile, 480 requests as in the paper, until the last is answered. Planners run as published: AR is plain
decoding without a drafter (off, dormant), SD a chain of three, DSD is TurboSpec's rule, BanditSpec has no context; Nightjar's
drafter sleeps at K = 0. The oracle, which knows the truth, says how much any planner could win on such an engine.
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
from nightjar.loadtests.simulation.experiments.measuring import until_the_last_answer
from nightjar.loadtests.simulation.experiments.nominal import Nominal
from nightjar.loadtests.simulation.experiments.scenes import cell, nominal_of, open_scene
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF, ORACLE
from nightjar.loadtests.simulation.service.lengths import ALPACA, SHAREGPT, SPEC_BENCH

REQUESTS: Final = 480
DRAIN: Final = 4.0
"""How long all requests may take at most, as a multiple of what a full engine takes for them at the best K."""
LAST_ANSWER_S: Final = 150.0
"""How long the last request may take in an engine that is not full."""
DATASETS: Final = (SHAREGPT, ALPACA, SPEC_BENCH)

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


def comparison(
    kind: str, choice: Choice, nominal: Nominal, contestants: Sequence[Contestant], place: str = "", *, warm_too: bool = True
) -> list[Cell]:
    """One pair of models and one data set at every rate. `place` goes before the name of the place in the rows."""
    cells = []
    for rate in choice.effort.paper_rates:
        asked_s = REQUESTS / rate
        drain_s = max(DRAIN * REQUESTS / nominal.capacity - asked_s, 0.0) + LAST_ANSWER_S
        one_pass = (Phase("poisson", asked_s, requests_per_s=float(rate)), Phase("drain", drain_s, requests_per_s=0.0))
        for passes, warm in ((1, ""), (2, WARM))[: 1 + warm_too]:
            scene = open_scene(nominal, f"{nominal.dataset.name} {rate}/s", repeated(Regime(one_pass), passes), 1)
            first_s = (passes - 1) * (asked_s + drain_s)
            cells += [
                cell(
                    kind, scene, contestant, seed, until_the_last_answer,
                    duration_s=first_s + asked_s + drain_s, warm_up_s=first_s, until_answered=True,
                    variant=warm, place=f"{place}{scene.place}",
                )
                for contestant in contestants
                if choice.wants(contestant.name)
                for seed in choice.effort.others
            ]  # fmt: skip
    return cells


PAPER = Experiment("paper", "the paper's own comparison on its three pairs", (runs,))
