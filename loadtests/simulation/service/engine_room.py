"""Makes the engines of a scenario: every replica on its node, with its own noise, and every planner that it may be told to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from nightjar.loadtests.simulation.engine.host_link import HostLink
from nightjar.loadtests.simulation.engine.luck import luck_of
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.rivals import FOR_COMPARISON
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.planners.local import LocalPlannerFactory

ALL_LOCAL_PLANNERS: Final[Mapping[str, LocalPlannerFactory]] = {**LOCAL_PLANNERS, **FOR_COMPARISON}


class EngineRoom:
    """Engines of one scenario. Replicas of a node share its host link."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._links: dict[str, HostLink] = {}

    def build(self, number: int, speed: float) -> SimulatedEngine:
        """The engine of replica `number`. Its noise follows from the seed and its number alone; requests bring their luck."""
        scenario = self._scenario
        node_id = node_name(scenario, number)
        link = None
        if scenario.offload:
            bandwidth = scenario.profile.drafter.host_link_bytes_per_s
            link = self._links.setdefault(node_id, HostLink(bandwidth))
        return SimulatedEngine(
            scenario.profile,
            replica_id=replica_name(number),
            mechanics=scenario.mechanics,
            seed=int(np.random.SeedSequence((scenario.seed, number)).generate_state(1)[0]),
            local_planners=ALL_LOCAL_PLANNERS,
            speed=speed,
            host_link=link,
            node_id=node_id,
            catch_up_chunk_tokens=scenario.catch_up_chunk_tokens,
            track_regret=scenario.track_regret,
            luck=luck_of(scenario.seed),
        )


def replica_name(number: int) -> str:
    """A replica's id in reports and results.

    >>> replica_name(7)
    'replica-7'
    """
    return f"replica-{number}"


def node_name(scenario: Scenario, number: int) -> str:
    """The node that replica `number` stands on."""
    return f"node-{number // scenario.replicas_per_node}"
