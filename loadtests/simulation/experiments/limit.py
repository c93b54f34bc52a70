"""A limit of a step that off just keeps: does the planner keep it, too, and what does that cost?

Five loads a profile: two batches that users hold, and three open loops. First off and the fleet without a limit; off's times then
set the profile's limit (evidence/limit_bars.py), and the fleet runs again with it, on the same seeds. Open loops get as many as a
bar does: where preemptions make the longest times, one more or less moves a seed's 99th percentile by a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.efforts import Effort
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import (
    LEAST_REQUESTS,
    MANY_STEPS,
    Scene,
    cell,
    held_scene,
    nominal_of,
    pattern_s,
    poisson_scene,
    step_s,
    timing,
)
from nightjar.loadtests.simulation.evidence.limit_bars import LIMIT, WITHIN, limits_s
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF

OPEN_SHARES: Final = (0.2, 0.4, 0.6)
"""Of what an engine carries."""
HELD_SHARES: Final = (0.25, 0.5)
"""Of the batch at which speculation stops paying."""
ANY_LIMIT_MS: Final = 1000.0
"""Stands for a limit in the plan that is printed before off has run."""


def scenes(choice: Choice) -> list[Scene]:
    """Every chosen profile under each of its loads."""
    return [scene for profile in choice.profiles for scene in _scenes(choice.effort, nominal_of(profile))]


def _scenes(effort: Effort, nominal: Nominal) -> list[Scene]:
    held_rows = sorted({max(round(share * nominal.crossover_rows), 1) for share in HELD_SHARES})
    least_s = max(pattern_s(effort, nominal), MANY_STEPS * step_s(nominal))
    scenes = [held_scene(effort, nominal, rows, 1, least_s) for rows in held_rows]
    for share in OPEN_SHARES:
        rate = share * nominal.capacity
        scenes.append(poisson_scene(effort, nominal, f"poisson {share:.0%}", rate, max(least_s, LEAST_REQUESTS / rate)))
    return scenes


def _run(choice: Choice, scene: Scene, planner: str, variant: str = "", settings: Mapping[str, object] | None = None) -> list[Cell]:
    if not choice.wants(planner):
        return []
    when = timing(choice.effort, scene, planner)
    seeds = choice.effort.rivals if scene.workload.user_counts() else choice.effort.bars
    return [cell(LIMIT, scene, Contestant(planner), seed, basic, variant=variant, settings=settings, **when) for seed in seeds]


def _free(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Off, which sets the limits, and the fleet without one."""
    return [run for scene in scenes(choice) for planner in (OFF, FLEET) for run in _run(choice, scene, planner)]


def _limited(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """The fleet with its profile's limit."""
    limits = limits_s(rows)
    cells = []
    for scene in scenes(choice):
        limit_s = limits.get(scene.nominal.profile.name, ANY_LIMIT_MS / 1e3)
        cells += _run(choice, scene, FLEET, WITHIN, {"max_step_ms": limit_s * 1e3})
    return cells


STEP_LIMIT: Final = Experiment(
    "limit",
    "a limit of a step that off just keeps: kept by the planner, and at what cost",
    (_free, _limited),
    bars=("limit_kept", "limit_cost_min", "limit_over_off_min"),
)
