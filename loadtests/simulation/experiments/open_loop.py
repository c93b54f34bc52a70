"""Open loops: goodput while the load moves, against the best static planner, the oracle and every rival.

Requests arrive whether or not earlier ones were answered. The best static planner of each place is picked on other seeds, among
off, every fixed K and the tuned table, and then runs on the bars' seeds. Rivals run with our dormancy and catch-up (equal
mechanics), and as published, where that makes a difference.

Texts may move, too: a quiet engine, where speculation wins most, gets texts of which drafts are kept half as often, then its
profile's own, then the others again. One turn of either is measured. No static planner is right in both; a table that was tuned for
the hard texts is among those that are picked from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import RETUNED_TABLE, RIVALS, Contestant, static_names
from nightjar.loadtests.simulation.campaign.efforts import Effort
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic, with_k
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import (
    Scene,
    cell,
    named_scene,
    nominal_of,
    open_scenes,
    rival_seeds,
    timing,
)
from nightjar.loadtests.simulation.evidence.bar_list import CHANGING_TEXTS, PICK, best_static
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF, ORACLE
from nightjar.loadtests.simulation.profiles import Mechanics

SHOWN = ("surge", "oscillation", "diurnal", CHANGING_TEXTS)
"""Loads whose K over time is drawn, of the first seed."""

EVERYWHERE = ("off", "fixed-3")
"""Static planners that run at every place, so that the curves against load have them."""

CHANGED_ACCEPTANCE: Final = 0.5
"""Of the profile's, each draft given that the one before it was kept: as where acceptance halves in mid-run."""

CHANGING_ENGINES: Final = 2
"""Profiles that are looked at while texts change: such a run is long."""


def picking(choice: Choice, scenes: Sequence[Scene]) -> list[Cell]:
    """Every static planner at every place, on seeds that no bar uses; where other texts come, a table tuned for them, too."""
    effort = choice.effort
    return [
        cell(PICK, scene, Contestant(planner), seed, basic, **timing(effort, scene, planner))
        for scene in scenes
        for planner in (*static_names(scene.nominal), *([RETUNED_TABLE] if scene.acceptance != 1.0 else []))
        if choice.wants(planner)
        for seed in effort.picks
    ]


def fleet_and_oracle(choice: Choice, scenes: Sequence[Scene]) -> list[Cell]:
    """Both at every place."""
    return [
        run
        for scene in scenes
        for planner in (FLEET, ORACLE)
        if choice.wants(planner)
        for run in _open(choice, scene, Contestant(planner), choice.effort.bars)
    ]


def picked(choice: Choice, scenes: Sequence[Scene], rows: Sequence[RunRow]) -> list[Cell]:
    """The best static planner of every place (off where nothing was picked yet, as in the plan that is printed first)."""
    statics = best_static(rows)
    return [
        run
        for scene in scenes
        for run in _open(choice, scene, Contestant(statics.get(scene.place, OFF)), choice.effort.bars)
        if choice.wants(run.planner)
    ]


def rivals(choice: Choice, scenes: Sequence[Scene]) -> list[Cell]:
    """The paper's planner, every rival and the usual settings, with our dormancy and catch-up."""
    return [
        run
        for scene in scenes
        for planner in (NIGHTJAR, *RIVALS, *EVERYWHERE)
        if choice.wants(planner)
        for run in _open(choice, scene, Contestant(planner), rival_seeds(choice.effort, scene.nominal))
    ]


def as_published(choice: Choice) -> list[Cell]:
    """Rivals without our dormancy, on the loads that move most; heads.py has those that are never dormant."""
    moving = [name for name in choice.loads if name in {"surge", "diurnal"}]
    return [
        run
        for scene in open_scenes(choice, loads=moving)
        if scene.nominal.mechanics is Mechanics.DORMANT
        for planner in (*RIVALS, *EVERYWHERE)
        if choice.wants(planner)
        for run in _open(choice, scene, Contestant(planner, as_published=True), choice.effort.others)
    ]


def _open(choice: Choice, scene: Scene, contestant: Contestant, seeds: Sequence[int]) -> list[Cell]:
    effort, cells = choice.effort, []
    for seed in seeds:
        shown = seed == 0 and scene.load in SHOWN and contestant.name in {FLEET, ORACLE, NIGHTJAR} and not contestant.as_published
        cells.append(
            cell(
                "open_loop",
                scene,
                contestant,
                seed,
                with_k if shown else basic,
                **timing(effort, scene, contestant.name),
                series=shown,
            )
        )
    return cells


def _picking_fleet_and_oracle(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    scenes = open_scenes(choice)
    return picking(choice, scenes) + fleet_and_oracle(choice, scenes)


def _picked(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    return picked(choice, open_scenes(choice), rows)


def _rivals_and_fleet(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    scenes = open_scenes(choice)
    return rivals(choice, scenes) + as_published(choice) + fleet_and_oracle(choice, scenes)


def _changing(choice: Choice) -> list[Scene]:
    """The first of the chosen profiles, quiet, while texts change."""
    return [_changing_scene(choice.effort, nominal) for nominal in map(nominal_of, choice.few(CHANGING_ENGINES))]


def _changing_scene(effort: Effort, nominal: Nominal) -> Scene:
    measured_s = 2 * effort.turn_s
    quiet = named_scene(effort, nominal, "poisson-quiet", 1, effort.warm_up_s + measured_s)
    return replace(quiet, load=CHANGING_TEXTS, acceptance=CHANGED_ACCEPTANCE, turn_s=effort.turn_s, measured_s=measured_s)


def _changing_all_but_picked(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    here = _changing(choice)
    return picking(choice, here) + fleet_and_oracle(choice, here) + rivals(choice, here)


def _changing_picked(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    return picked(choice, _changing(choice), rows)


OPEN_LOOP = Experiment(
    "open-loop",
    "moving load: how much of the oracle's lead over the best static planner",
    (_picking_fleet_and_oracle, _picked),
    bars=("fleet_headroom_min", "fleet_over_static_min"),
)
RIVAL = Experiment(
    "rivals",
    "moving load: against every rival, on equal mechanics and as published",
    (_rivals_and_fleet,),
    bars=("fleet_over_rival_min", "fleet_over_rival_geomean_min", "other_texts_over_rival_geomean_min"),
)
CHANGING = Experiment(
    CHANGING_TEXTS,
    "texts that change: who finds out, against the best static planner and every rival",
    (_changing_all_but_picked, _changing_picked),
    bars=("changing_texts_over_rival_geomean_min",),
)
