"""The Ray actor in whose process several replicas live: for each a real agent, a real client and a hosted engine.

In production every replica is a process of its own. Here a few share one, so that a machine with two cores holds a fleet; nothing
that they share reaches agents or engines. An agent that ended makes the next question fail, with what ended it.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from nightjar.cluster.client import PolicyClient
from tests.fleet.courses import ReplicaCourse
from tests.fleet.hosted_engine import Hosted, Part, ScenarioClock, courses_of, end_agents


class EngineHost:
    """Replicas of one scenario after the other. Ray calls the methods, all on one event loop with the agents."""

    def __init__(self) -> None:
        self._clock = ScenarioClock()
        self._replicas: dict[str, Hosted] = {}

    async def start(self, parts: Sequence[Part]) -> None:
        """Replicas of a new scenario, idle until `begin`; their agents report already."""
        self._clock = ScenarioClock()
        self._replicas = {}
        await self.join(parts)

    async def join(self, parts: Sequence[Part]) -> None:
        """More replicas for the scenario under way."""
        node_id = ray.get_runtime_context().get_node_id()
        for part in parts:
            self._replicas[part.replica_id] = Hosted.begin(part, self._clock, PolicyClient(), node_id)

    async def begin(self, at_monotonic_s: float) -> None:
        """The scenario's second 0 is at this moment of `time.monotonic`."""
        self._clock.begin(at_monotonic_s)

    async def set_users(self, replica_id: str, users: int) -> None:
        """From now on the service of one replica has so many users."""
        self._replicas[replica_id].engine.set_users(users)

    async def courses(self) -> list[ReplicaCourse]:
        """What happened until now."""
        return list(courses_of(self._replicas).values())

    async def end(self, at_s: float) -> list[ReplicaCourse]:
        """Let the scenario run until then and end its agents; what happened."""
        self._clock.end(at_s)
        await self._clock.wait_for(at_s)
        courses = await self.courses()
        await end_agents(self._replicas.values())
        self._replicas = {}
        return courses
