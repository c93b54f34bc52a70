"""Learning together: what a fleet loses until it knows, by its size; and what a newcomer loses who joins one that knows."""

from __future__ import annotations

from collections.abc import Sequence

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import learning, newcomer
from nightjar.loadtests.simulation.campaign.scenes import (
    Scene,
    after_learning,
    cell,
    closed_scene,
    learn_s,
    named_scene,
    nominal_of,
)
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.loadtests.simulation.service.scenario import ReplicaJoins

BARS = (1, 4, 16)
"""Sizes that the bars compare."""

WARM_REPLICAS = 8
NEWCOMER_S = 60.0
"""Virtual seconds of a newcomer that are looked at."""


def scenes(choice: Choice, replicas: int) -> list[Scene]:
    """A constant batch at which speculation pays, and arrivals under which the batch wanders."""
    effort, found = choice.effort, []
    for nominal in map(nominal_of, choice.few(3)):
        found.append(closed_scene(nominal, max(nominal.crossover_rows // 3, 1), replicas, effort.pooling_s))
        found.append(named_scene(effort, nominal, "poisson-60%", replicas, effort.pooling_s))
    return found


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Fleets of every size, from nothing. Places are named without the size, which is the variant."""
    effort = choice.effort
    return [
        cell(
            "pooling",
            scene,
            Contestant(FLEET),
            seed,
            learning,
            duration_s=effort.pooling_s,
            warm_up_s=0.0,
            variant="1 replica" if replicas == 1 else f"{replicas} replicas",
            place=f"{scene.nominal.profile.name}/{scene.load}",
            router="sticky",
            series=True,
            track_regret=True,
        )
        for replicas in effort.fleet_sizes
        for scene in scenes(choice, replicas)
        if choice.wants(FLEET)
        for seed in (effort.bars if replicas in BARS else effort.others)
    ]


def newcomers(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """A ninth replica joins a warm group under wandering load."""
    effort = choice.effort
    return [
        cell(
            "newcomer",
            named_scene(effort, nominal, "poisson-60%", WARM_REPLICAS, learn_s(effort, nominal) + NEWCOMER_S),
            Contestant(FLEET),
            seed,
            newcomer,
            events=(ReplicaJoins(learn_s(effort, nominal)),),
            track_regret=True,
            **after_learning(effort, nominal, NEWCOMER_S),
        )
        for nominal in map(nominal_of, choice.few(3))
        if choice.wants(FLEET)
        for seed in effort.bars
    ]


POOLING = Experiment(
    "pooling",
    "what is lost until a fleet knows, by its size",
    (runs,),
    bars=("pooled4_loss_ratio", "pooled16_loss_ratio", "pooled16_done_s"),
)
NEWCOMER = Experiment("newcomer", "what a replica loses that joins a warm group", (newcomers,), bars=("newcomer_loss",))
