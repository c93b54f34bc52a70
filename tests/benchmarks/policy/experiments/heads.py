"""EAGLE and MTP heads while they are off: what it is worth that a head only writes its KV at K = 0, where vLLM runs all of it.

The same fleet on both mechanics, beside stock vLLM with its own table, while the load moves: under a surge and over a day off is
what a full engine wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import TABLE, Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import cell, open_scenes, timing
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from nightjar.loadtests.simulation.profiles import Mechanics

LOADS: Final = ("surge", "diurnal")


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Fleet, table and off on each kind of mechanics, for the profiles of heads that were chosen."""
    scenes = open_scenes(choice, loads=[name for name in choice.loads if name in LOADS])
    return [
        cell("heads", scene, contestant, seed, basic, **timing(choice.effort, scene, planner))
        for scene in scenes
        if scene.nominal.profile.drafter.off is Mechanics.KV
        for planner in (FLEET, TABLE, OFF)
        if choice.wants(planner)
        for contestant in (Contestant(planner), Contestant(planner, as_published=True))
        for seed in choice.effort.rivals
    ]


HEADS = Experiment("heads", "moving load: a head that only writes its KV at K = 0, over one that vLLM runs", (runs,))
