"""vLLM's adaptive verification beside us: it chooses how many drafts are verified, the fleet the ceiling and off.

Three engines of the same profile under the same requests: adaptive verification alone, whose drafter always runs its maximum; the
fleet alone; and the fleet over adaptive verification. Heads alone take part: beside a draft model there is no ceiling. A drafter
that is sure of nothing (confidence 0) still knows which requests are easy, as the fleet does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, held_scene, nominal_of, open_scenes, pattern_s, timing
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.loadtests.simulation.profiles import Mechanics, Profile, read_profile
from tests.benchmarks.policy.bars import ADAPTIVE, BESIDE

PUBLISHED: Final = ("llama-8b-eagle3-h100", "llama-70b-eagle3-8xh100+qwen3.5-mtp")
"""Beside the chosen profiles of heads: more acceptance, and more drafts to choose from."""
LOADS: Final = ("poisson-60%", "surge", "diurnal")
BATCH_SHARES: Final = (0.25, 1.0)
"""Of the rows that a full engine decodes: held batches."""
CONFIDENCES: Final = (0.0, 0.6)
"""How sure drafters are: of nothing but the request, and as sure as published heads (a correlation of 0.6 with acceptance)."""


def profiles_of(choice: Choice) -> list[Profile]:
    """Heads among the chosen profiles, and published ones."""
    heads = [profile for profile in choice.profiles if profile.drafter.off is Mechanics.KV]
    return [*heads, *map(read_profile, PUBLISHED)] if heads else []


def _scenes(choice: Choice, profile: Profile) -> Iterator[Scene]:
    nominal = nominal_of(profile)
    for share in BATCH_SHARES:
        rows = max(round(share * nominal.max_rows), 1)
        yield held_scene(choice.effort, nominal, rows, 1, max(pattern_s(choice.effort, nominal), choice.effort.steady_s))
    of_profile = Choice((profile,), choice.loads, choice.effort)
    yield from open_scenes(of_profile, loads=[name for name in choice.loads if name in LOADS])


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The fleet alone, and for each confidence adaptive verification alone and the fleet over it."""
    cells: list[Cell] = []
    for profile in profiles_of(choice):
        longest = Contestant(f"fixed-{profile.max_num_speculative_tokens}", as_published=True)
        arms: list[tuple[Contestant, str, float | None]] = [(Contestant(FLEET), "", None)]
        for confidence in CONFIDENCES:
            arms.append((longest, f"{ADAPTIVE}, {confidence:g}", confidence))
            arms.append((Contestant(FLEET), f"{BESIDE}, {confidence:g}", confidence))
        cells += [
            cell(
                "adaptive",
                scene,
                contestant,
                seed,
                basic,
                variant=variant,
                confidence=confidence,
                **timing(choice.effort, scene, contestant.name),
            )
            for scene in _scenes(choice, profile)
            for contestant, variant, confidence in arms
            if choice.wants(contestant.name)
            for seed in choice.effort.others
        ]
    return cells


ADAPTIVE_VERIFICATION: Final = Experiment(
    "adaptive",
    "vLLM's adaptive verification: with us above it, over the better of the two alone",
    (runs,),
    bars=("over_adaptive_min", "over_adaptive_mean"),
)
