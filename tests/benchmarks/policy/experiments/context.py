"""Chats beside agents on the same replica: what is it worth to know the context of a step beside its batch?

Users say that off at a full batch is right for short contexts alone: reading KV takes the same time at every K, so the longer the
contexts, the less drafts cost (vLLM issues 48627 and 54691). Requests are chats of about 500 tokens and agents of 16,000 to 64,000,
of which nineteen in twenty are in the prefix cache: one by one, or by turns of many of a kind, as users who hold the KV cache three
quarters full or as an open loop. Two oracles play: one knows batch and context of each step, the other the batch, and what rows of
such a batch held on average. Both know the texts. Of an open loop the time of a request tells, of users that hold it tokens per
second. Profiles whose KV cache holds no two agents are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, held_scene, nominal_of, poisson_scene, timing
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE, ORACLE_BY_BATCH
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Integers, Lognormal, Mixture
from tests.benchmarks.policy.bars import CONTEXT

CHAT: Final = Dataset("chat", Lognormal(500, 0.5, 50, 2000), Lognormal(250, 0.8, 8, 1000))
AGENT: Final = Dataset(
    "agent", Lognormal(32_000, 0.5, 16_000, 64_000), Lognormal(300, 0.6, 8, 900), cached_share=0.95, max_model_len=65_536
)
SHARES: Final = (2, 8, 32)
"""One request in so many is an agent's."""
TURN: Final = 64
"""Requests of one kind in a row, where they come by turns."""
HELD_SHARE: Final = 0.75
OPEN_SHARE: Final = 0.6
MEASURED_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class ByTurns(Mixture):
    """A mixture whose requests come in rows of TURN of the same kind."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Integers, Integers, Integers]:
        """As `Dataset.draw`."""
        kinds = np.repeat(rng.integers(len(self.parts), size=-(-count // TURN)), TURN)[:count]
        drawn = [np.stack(part.draw(count, rng)) for part in self.parts]
        prompts, outputs, cached = np.stack(drawn)[kinds, :, np.arange(count)].T
        return prompts, outputs, cached


def scenes(profile: Profile, choice: Choice) -> list[Scene]:
    """Of one profile; none where its KV cache holds no two agents of any length."""
    if profile.limits.num_tokens < 2 * AGENT.max_model_len:
        return []
    found = []
    for share in SHARES:
        parts = (AGENT, *(CHAT,) * (share - 1))
        mixed, turns = Mixture(f"an agent in {share}", parts), ByTurns(f"an agent in {share}, by turns", parts)
        nominal = nominal_of(profile, mixed)
        rows = max(round(HELD_SHARE * nominal.max_rows), 2)
        found.append(_named(held_scene(choice.effort, nominal, rows, 1, MEASURED_S), f"{mixed.name}, {rows} users"))
        for traffic in (mixed, turns):
            nominal = nominal_of(profile, traffic)
            rate = OPEN_SHARE * nominal.capacity
            found.append(_named(poisson_scene(choice.effort, nominal, "", rate, MEASURED_S), f"{traffic.name}, {OPEN_SHARE:.0%}"))
    return found


def _named(scene: Scene, load: str) -> Scene:
    return replace(scene, load=load)


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Both oracles, the fleet and off."""
    return [
        cell(CONTEXT, scene, Contestant(planner), seed, basic, **timing(choice.effort, scene, planner))
        for profile in choice.profiles
        for scene in scenes(profile, choice)
        for planner in (ORACLE, ORACLE_BY_BATCH, FLEET, OFF)
        if choice.wants(planner)
        for seed in choice.effort.others
    ]


CONTEXTS = Experiment(CONTEXT, "chats beside agents: an oracle of batch and context over one of batch alone", (runs,))
