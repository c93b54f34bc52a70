"""The restart storm: all replicas were off, the load falls at once, and every one of them wants its drafter back.

Three kinds of restart: the whole lag in one step, in chunks that lengthen a step by a fifth, and with draft weights that must come
back from host memory over a link that eight replicas share; for the last, requests fill the KV cache before the load falls.
Each runs coordinated (the default budget) and uncoordinated (every replica may at once), beside a fleet that never restarts and
one that never was off (the K that is best after the fall). All begin with what a small fleet learned at both loads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import Simulate
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, nominal_of, workload
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Outcome
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from nightjar.loadtests.simulation.profiles import Mechanics
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from tests.benchmarks.policy.bars import NEVER_OFF
from tests.benchmarks.policy.measures import storm

FULL_S: Final = 15.0
AFTER_S: Final = 25.0
LESSON_S: Final = 40.0
"""Virtual seconds that the small fleet spends at each of three loads."""
REPLICAS_PER_NODE: Final = 8
TEACHERS: Final = 4
"""Replicas of the small fleet."""


@dataclass(frozen=True, slots=True)
class Fall:
    """The load before it falls, and what the engines may do about memory."""

    load: str
    rows_share: float
    """Requests per engine, in shares of what its KV cache holds."""
    settings: Mapping[str, object]
    scenario: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of restart: how draft KV is computed again."""

    name: str
    fall: Fall
    settings: Mapping[str, object]
    scenario: Mapping[str, Any]


FITTING: Final = Fall("storm", 0.8, {}, {})
PRESSED: Final = Fall(
    "storm, memory short", 1.15, {"draft_offload": "under_memory_pressure", "offload_after_s": 2.0}, {"offload": True}
)
KINDS: Final = (
    Kind("one-shot", FITTING, {"catch_up_slowdown": 4.0}, {"catch_up_chunk_tokens": None}),
    Kind("chunked", FITTING, {}, {}),
    Kind("reload", PRESSED, {}, {}),
)
BUDGETS: Final[Mapping[str, Mapping[str, object]]] = {
    "coordinated": {},
    "uncoordinated": {"max_restart_share": 1.0, "max_restart_slowdown": 1.0, "max_reloads_per_node": 64},
}


@dataclass(frozen=True, slots=True)
class LearnThenStorm:
    """A cell's job: a small fleet learns both loads, then the storm runs with what it learned."""

    lesson: Scenario
    scenario: Scenario

    def __call__(self) -> Outcome:
        """Simulate both; measured is the storm alone, the steps are both's."""
        lesson = simulate(self.lesson)
        planner = replace(self.scenario.planner, prior=lesson.learned)
        outcome = storm(self.scenario, simulate(replace(self.scenario, planner=planner)))
        return replace(outcome, steps=outcome.steps + lesson.steps_with_warm_up)


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every kind, coordinated and not, and what they are held against."""
    can_be_dormant = [profile for profile in choice.few() if profile.drafter.off is Mechanics.DORMANT]
    return [
        run
        for nominal in map(nominal_of, can_be_dormant[: choice.effort.storm_profiles])
        for seed in choice.effort.storms
        for kind in KINDS
        for run in _storms(choice.effort.storm_replicas, nominal, kind, seed)
        if choice.wants(FLEET)
    ]


def _storms(replicas: int, nominal: Nominal, kind: Kind, seed: int) -> list[Cell]:
    """One kind, and the two fleets that it is held against: the same for every kind of a fall, and run once."""
    full, low = _batches(nominal, kind.fall)
    never_off = Contestant(f"fixed-{nominal.best_k(low)}")
    never_on = {"planner": OFF, **kind.fall.settings}
    cells = [
        replace(_run(replicas, nominal, kind.fall, Contestant(FLEET), seed, "", never_on, {}), planner=OFF),
        replace(_run(replicas, nominal, kind.fall, never_off, seed, "", {}, {}), planner=NEVER_OFF),
    ]
    for name, budget in BUDGETS.items():
        settings = {**kind.fall.settings, **kind.settings, **budget}
        run = _run(replicas, nominal, kind.fall, Contestant(FLEET), seed, f"{kind.name}, {name}", settings, kind.scenario)
        cells.append(_with_lesson(run, nominal, (low, full, (low + full) // 2), settings))
    return cells


def _run(
    replicas: int,
    nominal: Nominal,
    fall: Fall,
    contestant: Contestant,
    seed: int,
    variant: str,
    settings: Mapping[str, object],
    scenario: Mapping[str, Any],
) -> Cell:
    full, low = _batches(nominal, fall)
    regime = Regime((Phase("full", FULL_S, users=full * replicas), Phase("fallen", AFTER_S, users=low * replicas)))
    return cell(
        "storm",
        Scene(nominal, fall.load, workload(nominal, regime), replicas, full / 2),
        contestant,
        seed,
        storm,
        duration_s=FULL_S + AFTER_S,
        warm_up_s=FULL_S,
        variant=variant,
        settings=settings,
        router="sticky",
        series=True,
        replicas_per_node=REPLICAS_PER_NODE,
        **fall.scenario,
        **scenario,
    )


def _with_lesson(run: Cell, nominal: Nominal, batches: Sequence[int], settings: Mapping[str, object]) -> Cell:
    """The storm's cell with the lesson before it: the small fleet at each of these batches."""
    phases = [Phase(f"lesson-{number}", LESSON_S, users=rows * TEACHERS) for number, rows in enumerate(batches, start=1)]
    scene = Scene(nominal, "lesson", workload(nominal, Regime(tuple(phases))), TEACHERS, max(batches) / 2)
    lesson = cell(
        "lesson",
        scene,
        Contestant(FLEET),
        run.seed,
        storm,
        duration_s=LESSON_S * len(batches),
        warm_up_s=0.0,
        settings=settings,
        router="sticky",
    )
    assert isinstance(lesson.job, Simulate)
    assert isinstance(run.job, Simulate)
    return replace(run, job=LearnThenStorm(lesson.job.scenario, run.job.scenario), expected_s=run.expected_s + lesson.expected_s)


def _batches(nominal: Nominal, fall: Fall) -> tuple[int, int]:
    """Requests per engine before the fall, and after it, where speculation pays."""
    return max(math.ceil(fall.rows_share * nominal.max_rows), 2), max(nominal.crossover_rows // 4, 1)


STORM = Experiment("storm", "all replicas want their drafter back at once", (runs,), bars=("storm_floor", "storm_total"))
