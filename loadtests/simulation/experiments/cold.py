"""Cold starts: does the planner lose against plain decoding while it learns? The paper's 480 requests on its three pairs.

The runs are those of the paper's comparison, without its rivals and without the pass that warms up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nightjar.loadtests.load.regimes import Phase, Regime, repeated
from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import until_the_last_answer
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import cell, nominal_of, open_scene
from nightjar.loadtests.simulation.evidence.bar_list import COLD, PAPER_PROFILES, WARM
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from nightjar.loadtests.simulation.service.lengths import ALPACA, SHAREGPT, SPEC_BENCH

REQUESTS: Final = 480
DRAIN: Final = 4.0
"""How long all requests may take at most, as a multiple of what a full engine takes for them at the best K."""
LAST_ANSWER_S: Final = 150.0
"""How long the last request may take in an engine that is not full."""
DATASETS: Final = (SHAREGPT, ALPACA, SPEC_BENCH)

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


def comparison(
    kind: str,
    choice: Choice,
    nominal: Nominal,
    contestants: Sequence[Contestant],
    place: str = "",
    *,
    warm_too: bool = True,
    **different: Any,
) -> list[Cell]:
    """One pair of models and one data set at every rate. `place` goes before the name of the place in the rows; what is `different`
    goes to scenes.cell."""
    cells = []
    for rate in choice.effort.paper_rates:
        asked_s = REQUESTS / rate
        pass_s = asked_s + drain_s(nominal, asked_s)
        one_pass = (Phase("poisson", asked_s, requests_per_s=float(rate)), Phase("drain", pass_s - asked_s, requests_per_s=0.0))
        for passes, warm in ((1, ""), (2, WARM))[: 1 + warm_too]:
            scene = open_scene(nominal, f"{nominal.dataset.name} {rate}/s", repeated(Regime(one_pass), passes), 1)
            first_s = (passes - 1) * pass_s
            cells += [
                cell(
                    kind, scene, contestant, seed, until_the_last_answer,
                    duration_s=first_s + pass_s, warm_up_s=first_s, until_answered=True,
                    variant=warm, place=f"{place}{scene.place}", **different,
                )
                for contestant in contestants
                if choice.wants(contestant.name)
                for seed in choice.effort.others
            ]  # fmt: skip
    return cells


def drain_s(nominal: Nominal, asked_s: float) -> float:
    """Seconds after which the last of REQUESTS, asked for `asked_s`, has been answered in any case."""
    return max(DRAIN * REQUESTS / nominal.capacity - asked_s, 0.0) + LAST_ANSWER_S


COLD_START: Final = Experiment(
    "cold", "from a cold start, does it lose against off?", (runs,), bars=("cold_over_off_min", "cold_over_off_mean")
)
