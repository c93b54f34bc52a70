"""Three sizes of a run: a look in under a minute, the evidence, and more of it.

`bench` is what `make bench-policy` runs, planned for less than 30 minutes on two cores, even slow ones; seeds are ten where a bar
looks (four for storms and most rivals) and three elsewhere. `quick` shows that everything works and which way the numbers point;
its bars are no evidence, and are shown only where somebody asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

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


BENCH: Final = Effort(
    name="bench",
    bar_seeds=10,
    rival_seeds=4,
    storm_seeds=4,
    other_seeds=3,
    pick_seeds=2,
    warm_up_s=300.0,
    pattern_s=150.0,
    learn_s=90.0,
    steady_s=45.0,
    turn_s=1800.0,
    long_prompts=150,
    pooling_s=120.0,
    lie_s=150.0,
    drift_s=90.0,
    lossy_s=240.0,
    storm_replicas=64,
    storm_profiles=2,
    fleet_sizes=(1, 4, 16),
    paper_rates=(1, 5, 15, 25, 35),
)

FULL: Final = replace(
    BENCH,
    name="full",
    bar_seeds=20,
    rival_seeds=20,
    storm_seeds=20,
    other_seeds=10,
    pick_seeds=5,
    pattern_s=300.0,
    fleet_sizes=(1, 2, 4, 8, 16),
    paper_rates=(1, 5, 10, 15, 20, 25, 35),
)

QUICK: Final = Effort(
    name="quick",
    bar_seeds=2,
    rival_seeds=1,
    storm_seeds=1,
    other_seeds=1,
    pick_seeds=1,
    warm_up_s=60.0,
    pattern_s=60.0,
    learn_s=60.0,
    steady_s=20.0,
    turn_s=120.0,
    long_prompts=30,
    pooling_s=60.0,
    lie_s=30.0,
    drift_s=60.0,
    lossy_s=90.0,
    storm_replicas=16,
    storm_profiles=1,
    fleet_sizes=(1, 16),
    paper_rates=(5, 15, 35),
)

QUICK_EXPERIMENTS: Final = ("steady", "open-loop", "rivals", "prefill", "cold", "pooling")
"""The planner against others under the usual loads, from warm and cold; faults and storms take longer than a look."""
QUICK_PROFILES: Final = ("qwen-7b-0.5b-rtx4090",)
QUICK_LOADS: Final = ("poisson-60%", "surge", "oscillation")
