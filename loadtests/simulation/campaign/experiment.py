"""What an experiment is: a question, and the runs that answer it, in one wave or in two where the second needs the first's rows.

An experiment only says which runs to make; bars, tables and charts are computed from the rows alone. Two experiments that ask
for the same run share it. A suite is what a command can run of them, and how its rows are judged and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.simulation.campaign.efforts import Effort
from nightjar.loadtests.simulation.evidence.cells import BarsOf
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.policy_report import ChartsOf
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import ALPACA, SHAREGPT, Dataset


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run of the command is about.

    loads     names of loads.LOADS, or a regime of the user's own by its text
    planners  the only planners to run; None: all
    trace     a recorded trace to run as one more open-loop load
    goodput   a target whose requests every run counts; None: none
    """

    profiles: tuple[Profile, ...]
    loads: tuple[str, ...]
    effort: Effort
    regimes: tuple[tuple[str, Regime], ...] = ()
    planners: frozenset[str] | None = None
    trace: Path | None = None
    goodput: GoodputTarget | None = None

    def few(self, count: int | None = None) -> tuple[Profile, ...]:
        """The first `count` (None: all) of the profiles in the order of FEW, for experiments that need not see all."""
        ranked = sorted(self.profiles, key=lambda profile: FEW.index(profile.name) if profile.name in FEW else -1)
        return tuple(ranked[:count])

    def wants(self, planner: str) -> bool:
        """Whether a planner is to be run."""
        return self.planners is None or planner in self.planners


FEW: Final = ("qwen-7b-0.5b-rtx4090", "cpu-smollm2", "vicuna-13b-68m-a100", "qwen-32b-0.5b-2xl20", "llama-8b-eagle")
"""Profiles in the order in which an experiment takes them that needs only some; a user's own come first."""

Wave = Callable[[Choice, Sequence[RunRow]], list[Cell]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A name for `--only`, the question in a few words, and its waves of runs; a later wave sees the rows of those before.

    `bars` names those that its runs decide, where all planners run.
    """

    name: str
    question: str
    waves: tuple[Wave, ...]
    bars: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """`experiments` by name, in the order in which they run.

    elsewhere  experiments of another command, by name, with what a person types for them
    bench      of which `make bench-NAME` a whole run of it is the evidence; empty where that is kept of none
    """

    experiments: Mapping[str, Experiment]
    bars: tuple[BarsOf, ...]
    grids: Callable[[Sequence[RunRow]], list[Grid]]
    charts: tuple[ChartsOf, ...]
    elsewhere: Mapping[str, str]
    bench: str = ""


def dataset_of(profile: Profile) -> Dataset:
    """The traffic that a profile is held against: short answers where one token takes a fraction of a second."""
    return ALPACA if profile.group.accelerator.startswith("cpu") else SHAREGPT
