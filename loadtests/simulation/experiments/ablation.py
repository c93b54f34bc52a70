"""What each part of the planner is worth: the same runs with one part switched off at a time.

A part is switched off by its setting, or by putting the simplest thing in its place while the run lasts; production code has
no switches for this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from nightjar.loadtests.simulation.bar_list import ALL_PARTS
from nightjar.loadtests.simulation.experiments.contestants import FLEET, Contestant
from nightjar.loadtests.simulation.experiments.experiment import Choice, Experiment
from nightjar.loadtests.simulation.experiments.measuring import basic
from nightjar.loadtests.simulation.experiments.scenes import cell, open_loop_s, open_scenes
from nightjar.loadtests.simulation.rows import RunRow
from nightjar.loadtests.simulation.runner import Cell, Job, Outcome

LOADS: Final = ("poisson-60%", "surge", "oscillation")
REPLICAS: Final = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the planner and how it is switched off: by settings, or by names of functions and what stands in for them."""

    name: str
    settings: Mapping[str, object]
    stand_ins: Mapping[str, Callable[..., Any]]


PARTS: Final = (
    Part("dwell", {"dwell_steps": 0}, {}),
    Part("switch margin", {"switch_margin": 0.0}, {}),
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
            for target, stand_in in part.stand_ins.items():
                stack.enter_context(patch(target, stand_in))
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
                    duration_s=open_loop_s(effort, scene.nominal) / 2,
                    warm_up_s=0.0,
                    variant=part.name if part else ALL_PARTS,
                    settings=dict(part.settings) if part else None,
                )
                cells.append(replace(run, job=Without(run.job, part.name)) if part and part.stand_ins else run)
    return cells


ABLATION = Experiment("ablation", "each part of the planner switched off", (runs,))
