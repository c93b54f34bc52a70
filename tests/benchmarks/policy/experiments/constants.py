"""What each tuned number of the planner is worth: the same runs with one of them halved, and doubled.

A number is found by its name in the source and changed in every module that imported it, while a run lasts, in a process that runs
nothing beside it. A row that stays the same to the last bit says that nothing in these loads reads the number, or that nothing
depends on it; which of the two, it does not say. Not looked at: bounds of what is kept or may be sent, which are for safety, and
numbers of the canary and of pages, which plan nothing. Fails closed: a name that a module does not have ends the run with its
error.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

import nightjar.policy
from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import cell, learn_s, named_scene, nominal_of, pattern_s
from nightjar.loadtests.simulation.evidence.bar_list import ALL_PARTS
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Job, Outcome
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled, Event, ReplicaLies
from tests.structure import numeric_constants

CONSTANTS: Final = "constants"
POLICY: Final = "nightjar.policy"
FACTORS: Final = {"halved": 0.5, "doubled": 2.0}

NOT_THE_PLANNERS: Final = ("wire", "operator", "status", "words", "persistent_map")
"""Parts of policy/ whose numbers plan nothing."""
BOUNDS: Final = (
    "MAX_",
    "MOST_REPLANS",
    "MOST_CHUNK",
    "MOST_CONTEXT",
    "REMEMBERED",
    "PROBES_REMEMBERED",
    "UNLIMITED",
    "IDLE",
    "ROUNDING",
)
"""Beginnings of names of what bounds memory, messages and what is believed, and of marks."""
READ_ONCE: Final = frozenset({"HALF_LIFE_ROWS", "PRIOR_ROWS", "ROWS_PER_INDEPENDENT_ROW", "HINGES_VERIFIED_TOKENS"})
"""Others are made of them when their module is imported, so that a change afterwards is half of one."""

REPLICAS: Final = 3
SHORT: Final = 0.5
"""Of a pattern's length: what is run of a load after the time that a fleet gets to learn, which is measured, too."""
EVENTS: Final[Mapping[str, tuple[Callable[[float], Event], ...]]] = {
    "hard prompts at one": (lambda _: AcceptanceScaled(0.0, 0.4, 0),),
    "acceptance halves": (lambda length_s: AcceptanceScaled(length_s / 2, 0.5),),
    "one lies": (lambda _: ReplicaLies(0.0, REPLICAS - 1, "times_ten"),),
}
"""What happens in a run of so many seconds under a load that stands still, by name."""


@dataclass(frozen=True, slots=True)
class Number:
    """A tuned number: its module below policy/, dots between, and its name there."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @contextmanager
    def times(self, factor: float) -> Iterator[None]:
        """While this lasts, whoever reads the name finds the number times the factor; of a whole one, at least 1."""
        whole = getattr(importlib.import_module(f"{POLICY}.{self.module}"), self.name)
        readers = [
            module
            for path, module in list(sys.modules.items())
            if path.startswith(POLICY) and vars(module).get(self.name) is whole and _owner(path, self) in {self.module, ""}
        ]
        for module in readers:
            setattr(module, self.name, scaled(whole, factor))
        try:
            yield
        finally:
            for module in readers:
                setattr(module, self.name, whole)


def scaled(value: Any, factor: float) -> Any:
    """A number, or each of several, times the factor.

    >>> scaled(3, 0.5), scaled(1, 0.5), scaled(0.3, 2.0), scaled((1.0, 4), 2.0)
    (2, 1, 0.6, (2.0, 8))
    """
    if isinstance(value, tuple):
        return tuple(scaled(part, factor) for part in value)
    if isinstance(value, int):
        return max(round(value * factor), 1)
    return value * factor if isinstance(value, np.ndarray) else float(value * factor)


def tuned() -> tuple[Number, ...]:
    """The tuned numbers of the planner, in the order of their modules."""
    return tuple(
        Number(module, name)
        for module, names in _names().items()
        if not module.startswith(NOT_THE_PLANNERS)
        for name in names
        if not name.startswith(BOUNDS) and name not in READ_ONCE
    )


@dataclass(frozen=True, slots=True)
class Changed:
    """A cell's job with a number changed while it runs."""

    job: Job
    number: Number
    factor: float

    def __call__(self) -> Outcome:
        """Simulate and measure."""
        with self.number.times(self.factor):
            return self.job()


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The planner as it is, and with each number halved and doubled, under each load."""
    if not choice.wants(FLEET):
        return []
    return [
        replace(run, variant=f"{number} {how}", job=Changed(run.job, number, factor)) if number else run
        for run in loads(choice)
        for number, how, factor in ((None, "", 1.0), *((number, how, by) for number in tuned() for how, by in FACTORS.items()))
    ]


def loads(choice: Choice) -> list[Cell]:
    """What a number may be for: ups and downs, replicas that differ, texts that change, one that lies; from nothing learned. On a
    second profile ups and downs alone."""
    effort = choice.effort
    cells = []
    for is_second, nominal in enumerate(map(nominal_of, choice.few(2))):
        length_s = learn_s(effort, nominal) + pattern_s(effort, nominal) * SHORT
        for name in ("surge",) if is_second else ("surge", "oscillation", *EVENTS):
            scene = named_scene(effort, nominal, "poisson-60%" if name in EVENTS else name, REPLICAS, length_s)
            cells += [
                cell(
                    CONSTANTS,
                    scene,
                    Contestant(FLEET),
                    seed,
                    basic,
                    duration_s=length_s,
                    warm_up_s=0.0,
                    variant=ALL_PARTS,
                    place=f"{nominal.profile.name}/{name}",
                    events=tuple(event(length_s) for event in EVENTS.get(name, ())),
                    router="sticky",
                )
                for seed in effort.others
            ]
    return cells


CHANGED_NUMBERS: Final = Experiment(CONSTANTS, "each tuned number of the planner halved and doubled", (runs,))


def _owner(path: str, number: Number) -> str:
    """The module at `path`, below policy/, where it defines a number of this name; else empty."""
    module = path.removeprefix(f"{POLICY}.")
    return module if number.name in _names().get(module, ()) else ""


@cache
def _names() -> Mapping[str, list[str]]:
    """Numeric constants by module below policy/, read from its source once."""
    folder = Path(nightjar.policy.__file__).parent
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): numeric_constants(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }
