"""What an experiment is: a question, and the runs that answer it, in one wave or in two where the second needs the first's rows.

An experiment only says which runs to make; bars, tables and charts are computed from the rows alone. Two experiments that ask
for the same run share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import ALPACA, SHAREGPT, Dataset

PICK_SEED: Final = 1000
"""First seed of the runs that pick the best static planner: none of them is a bar's."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is run: seeds by purpose, and virtual seconds.

    bar_seeds      where a bar looks, rivals of engines with long steps among them
    rival_seeds, storm_seeds  of other rivals and long prompts, and of storms, which cost most
    other_seeds    elsewhere
    pick_seeds     of the runs that pick the best static planner
    warm_up_s      what is dropped of an open-loop run; whole patterns after it are measured
    pattern_s      the pattern that an open-loop run repeats; half of it where an engine's steps are short
    learn_s        what a fleet gets to learn before a measure begins
    steady_s       a steady measure
    turn_s         how long texts stay the same where they change
    long_prompts   requests that a run of long prompts measures at least
    pooling_s, lie_s, lossy_s, drift_s  such runs; drift_s from the drift on
    paper_rates    requests a second
    """

    name: str
    bar_seeds: int
    rival_seeds: int
    storm_seeds: int
    other_seeds: int
    pick_seeds: int
    warm_up_s: float
    pattern_s: float
    learn_s: float
    steady_s: float
    turn_s: float
    long_prompts: int
    pooling_s: float
    lie_s: float
    drift_s: float
    lossy_s: float
    storm_replicas: int
    storm_profiles: int
    fleet_sizes: tuple[int, ...]
    paper_rates: tuple[int, ...]

    def with_seeds(self, count: int) -> Effort:
        """The same with `count` seeds where a bar looks, and at most so many elsewhere."""
        return replace(self, bar_seeds=count, rival_seeds=count, storm_seeds=count, other_seeds=min(self.other_seeds, count))

    @property
    def bars(self) -> range:
        """Seeds where a bar looks."""
        return range(self.bar_seeds)

    @property
    def rivals(self) -> range:
        """Seeds of rivals."""
        return range(self.rival_seeds)

    @property
    def storms(self) -> range:
        """Seeds of storms."""
        return range(self.storm_seeds)

    @property
    def others(self) -> range:
        """Seeds elsewhere."""
        return range(self.other_seeds)

    @property
    def picks(self) -> range:
        """Seeds that pick the best static planner."""
        return range(PICK_SEED, PICK_SEED + self.pick_seeds)

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """All of them by purpose, for printing."""
        named = {
            "bars": self.bars,
            "rivals": self.rivals,
            "rivals with long steps": self.bars,
            "storms": self.storms,
            "others": self.others,
            "picking": self.picks,
        }
        return {name: tuple(seeds) for name, seeds in named.items()}


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


def dataset_of(profile: Profile) -> Dataset:
    """The traffic that a profile is held against: short answers where one token takes a fraction of a second."""
    return ALPACA if profile.group.accelerator.startswith("cpu") else SHAREGPT
