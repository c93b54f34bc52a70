"""Regret over time: what planners lose against the oracle's K from a cold start at a constant batch, one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import learning
from nightjar.loadtests.simulation.campaign.scenes import cell, closed_scene, nominal_of
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR

LEARNERS: Final = (FLEET, NIGHTJAR, "banditspec", "banditspec-batch", "turbospec", "sglang")


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Everybody who learns, at a batch where speculation pays and at one where it does not."""
    effort = choice.effort
    return [
        cell(
            "regret",
            closed_scene(nominal, rows, 1, effort.learn_s + effort.steady_s),
            Contestant(planner),
            seed,
            learning,
            duration_s=effort.learn_s + effort.steady_s,
            warm_up_s=0.0,
            series=True,
            track_regret=True,
        )
        for nominal in map(nominal_of, choice.profiles)
        for rows in dict.fromkeys((max(nominal.crossover_rows // 3, 1), min(2 * nominal.crossover_rows, nominal.max_rows)))
        for planner in LEARNERS
        if choice.wants(planner)
        for seed in effort.others
    ]


REGRET = Experiment("regret", "what learners lose from a cold start, over time", (runs,))
