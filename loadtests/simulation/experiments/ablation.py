"""What each part of the planner is worth: the same runs with one part switched off at a time.

A part is switched off by its setting, or by putting the simplest thing in the place of a public name of the policy while the run
lasts; production code has no switches for this. A run has its process to itself meanwhile, and the name is put back however the run
ends. Fails closed: a name that the policy does not have ends the import of this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import cell, open_scenes, pattern_s
from nightjar.loadtests.simulation.evidence.bar_list import ALL_PARTS
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Job, Outcome
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.policy import exploration
from nightjar.policy.decision import learning
from nightjar.policy.evidence import step_time
from nightjar.policy.evidence.contributions import Contributions
from nightjar.policy.evidence.goodput import Floats, GoodputModel
from nightjar.policy.planners import base, fleet
from nightjar.policy.restarts.price import Price
from nightjar.policy.step import guard

LOADS: Final = ("surge", "oscillation")
REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class StandIn:
    """What stands in for a public name of a module or class of policy/. Raises AttributeError for one that is not there."""

    home: object
    name: str
    value: object

    def __post_init__(self) -> None:
        getattr(self.home, self.name)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, whoever reads the name finds the value."""
        whole = vars(self.home)[self.name]
        setattr(self.home, self.name, self.value)
        try:
            yield
        finally:
            setattr(self.home, self.name, whole)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the planner and how it is switched off: by settings, or by what stands in for it."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    stand_ins: tuple[StandIn, ...] = ()


def _none(*_: object, **__: object) -> None:
    return None


def _off_until_measured(model: GoodputModel) -> npt.NDArray[np.int64]:
    return np.zeros(len(model.rows), dtype=np.int64)


def _everything_can_win(model: GoodputModel) -> Floats:
    return np.full(model.log_goodput.shape, np.inf)


def _all_alike(contributions: Contributions, *_: object) -> Contributions:
    return contributions


PARTS: Final = (
    Part("dwell", {"dwell_steps": 0}),
    Part("switch margin", {"switch_margin": 0.0}),
    Part("doubt", stand_ins=(StandIn(fleet, "DOUBT_DEVIATIONS", 0.0),)),
    Part("odds before off is known", stand_ins=(StandIn(fleet, "favourites", _off_until_measured),)),
    Part("what neighbours tell", stand_ins=(StandIn(step_time, "ROWS_DEVIATION", 1.0), StandIn(step_time, "K_DEVIATION", 1.0))),
    Part("bound on what can win", stand_ins=(StandIn(GoodputModel, "upper_bound", _everything_can_win),)),
    Part(
        "allowance of exploration",
        stand_ins=(StandIn(exploration, "OUTPUT_SHARE", 1.0), StandIn(exploration, "COLD_START_TOKENS_PER_ROW", 1e9)),
    ),
    Part("patience", stand_ins=(StandIn(exploration, "HORIZON_S", 1e9),)),
    Part("replica effects", stand_ins=(StandIn(learning, "with_effects", _all_alike),)),
    Part("steps with prefill", stand_ins=(StandIn(base, "mixed_costs", _none),)),
    Part("single replicas' own plans", stand_ins=(StandIn(learning, "own_evidence", _none),)),
    Part("price of a restart", stand_ins=(StandIn(Price, "pays", True),)),
    Part("guard", stand_ins=(StandIn(guard, "SUSPICION", math.inf),)),
)


@dataclass(frozen=True, slots=True)
class Without:
    """A cell's job with stand-ins in place while it runs."""

    job: Job
    part: str

    def __call__(self) -> Outcome:
        """Simulate and measure without the part."""
        part = next(part for part in PARTS if part.name == self.part)
        with ExitStack() as stack:
            for stand_in in part.stand_ins:
                stack.enter_context(stand_in.in_place())
            return self.job()


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The whole planner, and the planner without each part."""
    effort, cells = choice.effort, []
    loads = [name for name in LOADS if name in choice.loads]
    for scene in open_scenes(replace(choice, profiles=choice.few(2), regimes=(), trace=None), REPLICAS, loads):
        for part in (None, *PARTS):
            for seed in effort.others if choice.wants(FLEET) else ():
                run = cell(
                    "ablation",
                    scene,
                    Contestant(FLEET),
                    seed,
                    basic,
                    duration_s=(effort.warm_up_s + pattern_s(effort, scene.nominal)) / 2,
                    warm_up_s=0.0,
                    variant=part.name if part else ALL_PARTS,
                    settings=dict(part.settings) if part else None,
                )
                cells.append(replace(run, job=Without(run.job, part.name)) if part and part.stand_ins else run)
    return cells


ABLATION = Experiment("ablation", "each part of the planner switched off", (runs,))
