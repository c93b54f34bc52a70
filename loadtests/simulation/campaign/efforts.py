"""Three sizes of a run: a look in under a minute, the evidence, and more of it.

`bench` is what `make bench-policy` runs, planned for less than 30 minutes on two cores, even slow ones; seeds are ten where a bar
looks (four for storms and most rivals) and three elsewhere. `quick` shows that everything works and which way the numbers point;
its bars are no evidence, and are shown only where somebody asks for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nightjar.loadtests.simulation.campaign.experiment import Effort

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
