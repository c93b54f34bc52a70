"""Texts that change by the half hour: what it is worth to find out, against tables and against rivals.

A quiet engine, where speculation wins most, gets texts of which drafts are kept half as often, then its profile's own, then the
others again. One turn of either is measured. No static planner is right in both; the best of them is picked as for every open loop,
a table that was tuned for the hard texts among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nightjar.loadtests.simulation.campaign.experiment import Choice, Effort, Experiment
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import Scene, named_scene, nominal_of
from nightjar.loadtests.simulation.evidence.bar_list import CHANGING_TEXTS
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.open_loop import fleet_and_oracle, picked, picking, rivals

ACCEPTANCE: Final = 0.5
"""Of the profile's, each draft given that the one before it was kept: as where acceptance halves in mid-run."""

ENGINES: Final = 2
"""Profiles that are looked at: such a run is long."""


def scenes(choice: Choice) -> list[Scene]:
    """The first of the chosen profiles, quiet."""
    return [_scene(choice.effort, nominal) for nominal in map(nominal_of, choice.few(ENGINES))]


def _scene(effort: Effort, nominal: Nominal) -> Scene:
    measured_s = 2 * effort.turn_s
    quiet = named_scene(effort, nominal, "poisson-quiet", 1, effort.warm_up_s + measured_s)
    return replace(quiet, load=CHANGING_TEXTS, acceptance=ACCEPTANCE, turn_s=effort.turn_s, measured_s=measured_s)


def _all_but_picked(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    here = scenes(choice)
    return picking(choice, here) + fleet_and_oracle(choice, here) + rivals(choice, here)


def _picked(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    return picked(choice, scenes(choice), rows)


CHANGING = Experiment(
    CHANGING_TEXTS,
    "texts that change: who finds out, against the best static planner and every rival",
    (_all_but_picked, _picked),
    bars=("changing_texts_over_rival_geomean_min",),
)
