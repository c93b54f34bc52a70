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

    bars           seeds where a bar looks, rivals of engines with long steps among them
    rivals, storms  of other rivals and long prompts, and of storms, which cost most
    others         elsewhere
    picks          of the runs that pick the best static planner
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
    bars: range
    rivals: range
    storms: range
    others: range
    picks: range
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
        seeds = range(count)
        return replace(self, bars=seeds, rivals=seeds, storms=seeds, others=self.others[:count])

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
    bars=range(10),
    rivals=range(4),
    storms=range(4),
    others=range(3),
    picks=range(PICK_SEED, PICK_SEED + 2),
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
    bars=range(20),
    rivals=range(20),
    storms=range(20),
    others=range(10),
    picks=range(PICK_SEED, PICK_SEED + 5),
    pattern_s=300.0,
    fleet_sizes=(1, 2, 4, 8, 16),
    paper_rates=(1, 5, 10, 15, 20, 25, 35),
)

QUICK: Final = Effort(
    name="quick",
    bars=range(2),
    rivals=range(1),
    storms=range(1),
    others=range(1),
    picks=range(PICK_SEED, PICK_SEED + 1),
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
