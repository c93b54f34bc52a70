"""Long prompts and short answers: most steps carry prefill, and what is known of pure decode steps says little.

Requests with retrieved texts, agents that come back with their whole conversation (most of it in the prefix cache), and a service
of both retrieval and chat; each as an open loop and as users who hold the engine half full.

Static planners have one K for pure decode steps and one for steps with prefill. Their search goes along a star, on seeds of its
own: first equal K in both, then from the best of these one of the two changed, then both as they were best. On the same seeds one K
for all steps with prefill is picked for an oracle that is best step by step elsewhere. The oracle of a place is the best of that
one, of the one that is best step by step everywhere, and of the best static pair: no static planner is better than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.efforts import Effort
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment, dataset_of
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import (
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
from nightjar.loadtests.simulation.evidence.prefill_bars import (
    PREFILL,
    PREFILL_PICK,
    best_pair,
    joined_pair,
    oracle_name,
    pair_name,
    picked_oracle,
)
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import Traffic, agents, half_retrieval, retrieval

OPEN_SHARE: Final = 0.6
"""Of what an engine carries of such requests."""

HELD_SHARE: Final = 0.5
"""Of the requests that fit into a full engine: what users hold in it."""


def scenes(choice: Choice) -> list[Scene]:
    """Every chosen profile under every such load."""
    return [
        scene
        for profile in choice.profiles
        for traffic in _traffic(profile)
        for scene in _scenes(choice.effort, nominal_of(profile, traffic))
    ]


def _traffic(profile: Profile) -> tuple[Traffic, ...]:
    num_tokens = profile.limits.num_tokens
    return retrieval(num_tokens), agents(num_tokens), half_retrieval(dataset_of(profile), num_tokens)


def _scenes(effort: Effort, nominal: Nominal) -> list[Scene]:
    rows, name = max(round(HELD_SHARE * nominal.max_rows), 1), nominal.dataset.name
    rate = OPEN_SHARE * nominal.capacity
    opened = poisson_scene(effort, nominal, f"{name} {OPEN_SHARE:.0%}", rate, _measured_s(effort, nominal, rate))
    held = held_scene(effort, nominal, rows, 1, _measured_s(effort, nominal, nominal.requests_per_s(rows)))
    return [opened, replace(held, load=f"{name} {held.load}")]


def _measured_s(effort: Effort, nominal: Nominal, requests_per_s: float) -> float:
    return max(pattern_s(effort, nominal), MANY_STEPS * step_s(nominal), effort.long_prompts / requests_per_s)


def _runs(choice: Choice, kind: str, scene: Scene, planners: Iterable[str], seeds: Sequence[int]) -> list[Cell]:
    return [
        cell(kind, scene, Contestant(planner), seed, basic, **timing(choice.effort, scene, planner))
        for planner in planners
        if choice.wants(planner)
        for seed in seeds
    ]


def _picking(choice: Choice, scene: Scene, planners: Iterable[str]) -> list[Cell]:
    return _runs(choice, PREFILL_PICK, scene, planners, choice.effort.picks)


def _equal(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Equal K and every oracle on the seeds that pick; fleet and off on those of the bars."""
    cells = []
    for scene in scenes(choice):
        ks = scene.nominal.profile.drafter.arms
        cells += _picking(choice, scene, [*(pair_name(k, k) for k in ks), *map(oracle_name, ks)])
        cells += _runs(choice, PREFILL, scene, (FLEET, ORACLE, OFF), choice.effort.rivals)
    return cells


def _changed(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """One of the two K changed."""

    def around(scene: Scene, pure_k: int, mixed_k: int) -> list[str]:
        ks = scene.nominal.profile.drafter.arms
        return [pair_name(k, mixed_k) for k in ks] + [pair_name(pure_k, k) for k in ks]

    return _searched(choice, rows, around)


def _both(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """Each of the two K as it was best with the other's."""

    def joined(scene: Scene, _pure_k: int, _mixed_k: int) -> list[str]:
        return [pair_name(*joined_pair(rows, scene.place))]

    return _searched(choice, rows, joined)


def _searched(choice: Choice, rows: Sequence[RunRow], planners: Callable[[Scene, int, int], list[str]]) -> list[Cell]:
    return [run for scene in scenes(choice) for run in _picking(choice, scene, planners(scene, *best_pair(rows, scene.place)))]


def _picked(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """The best static pair and the best of the oracles with one K in steps with prefill, on the bars' seeds."""
    return [
        run
        for scene in scenes(choice)
        for run in _runs(
            choice,
            PREFILL,
            scene,
            (pair_name(*best_pair(rows, scene.place)), picked_oracle(rows, scene.place)),
            choice.effort.rivals,
        )
    ]


PREFILL_STEPS: Final = Experiment(
    "prefill",
    "long prompts, short answers: against the best pair of K for steps without and with prefill",
    (_equal, _changed, _both, _picked),
    bars=("prefill_over_static_min", "prefill_over_off_min", "prefill_over_oracle_min"),
)
