"""Replicas of one group that are not alike: slow cards among fast ones, and replicas whose prompts are harder to draft for.

Everybody has the same share of users, so that a replica of its own kind runs at the batch of the others. The oracle knows each
replica; what a group can know of one that differs is in policy/evidence/pooling.py and policy/planners/estimates.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import after_learning, cell, held_scene, nominal_of
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled

REPLICAS: Final = 8
SLOW: Final = 0.8
"""Speed of a slow card: throttled, or beside a busy neighbour."""
HARD: Final = 0.4
"""Acceptance of hard prompts, as a share of the profile's."""

KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "alike": {},
    "half the cards slow": {"speeds": (SLOW,) * (REPLICAS // 2)},
    "hard prompts at one": {"events": (AcceptanceScaled(0.0, HARD, 0),)},
    "hard prompts at half": {"events": tuple(AcceptanceScaled(0.0, HARD, number) for number in range(REPLICAS // 2))},
}
"""What differs, as fields of a scenario."""


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The fleet, the oracle and off under each kind of difference, where speculation pays for ordinary replicas."""
    effort = choice.effort
    return [
        cell(
            "uneven",
            held_scene(effort, nominal, max(nominal.crossover_rows // 2, 1), REPLICAS, effort.steady_s),
            Contestant(planner),
            seed,
            basic,
            variant=kind,
            router="sticky",
            track_regret=planner == FLEET,
            **after_learning(effort, nominal, effort.steady_s),
            **fields,
        )
        for nominal in map(nominal_of, choice.few(2))
        for kind, fields in KINDS.items()
        for planner in (FLEET, ORACLE, OFF)
        if choice.wants(planner)
        for seed in effort.others
    ]


UNEVEN = Experiment("uneven", "replicas of one group that are not alike", (runs,))
