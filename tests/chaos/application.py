"""What runs on the chaos cluster: a Serve application and the policy actor, both as the product has them but for the test's hands.

A replica has a real agent and a real client; its engine is simulated (surging_engine.py), its way to the actor may be bad
(network.py), and a flag takes the fence out of it (fencing.py). The actor is the product's own, in a process whose wall clock may
be stepped (wall_clock.py). It is created before the replicas, which find it by its name as they would find theirs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve

from nightjar.cluster.client import PolicyClient, get_or_create_policy_actor
from nightjar.cluster.policy_actor import ACTOR_OPTIONS, JOURNAL_DIR_VARIABLE, PolicyActor
from tests.chaos import fencing
from tests.chaos.events import EventKind, EventLog
from tests.chaos.network import BadHandle, Link
from tests.chaos.surging_engine import SurgingEngine
from tests.chaos.wall_clock import follow_steps
from tests.upgrade.served_engine import SimulatedReplica, some_seed

NODE_RESOURCE: Final = "chaos_worker"
APPLICATION: Final = "chaos"
DEPLOYMENT: Final = "LLM"
REPLICAS: Final = 4
"""As many as find room on the worker nodes that are left when one is killed."""


@dataclass(frozen=True, slots=True)
class Build:
    """Which build of the application runs, and where its replicas write their events."""

    version: int
    events_folder: str
    is_fenced: bool = True


class ChaosReplica(SimulatedReplica):
    """One replica."""

    async def __init__(self, build: Build) -> None:  # type: ignore[misc]  # Serve awaits it
        if not build.is_fenced:
            fencing.take_out()
        folder = control_folder()
        follow_steps(folder)
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._log = EventLog(Path(build.events_folder), self._replica_id)
        node_id = ray.get_runtime_context().get_node_id()
        self._log.note(EventKind.STARTED, pid=os.getpid(), node_id=node_id, application_version=build.version)
        seed = some_seed()
        engine = self._surging = SurgingEngine(seed, self._log)
        link = Link(folder, self._log, lambda: engine.is_restarting, seed)
        policy = PolicyClient(resolve=lambda: BadHandle(get_or_create_policy_actor(), link))
        self._running = asyncio.create_task(engine.run())
        await super().__init__(engine, policy)

    async def check_health(self) -> None:
        """Healthy while agent and engine live."""
        await super().check_health()
        if self._running.done():
            self._running.result()

    async def __del__(self) -> None:
        """Serve's graceful shutdown: nothing of the replica runs any more."""
        for task in (self._agent, self._running):
            task.cancel()
        await asyncio.gather(self._agent, self._running, return_exceptions=True)
        self._surging.end()

    async def _generate(self, body: Mapping[str, Any]) -> AsyncIterator[int]:
        request = str(body["request"])
        self._log.note(EventKind.REQUEST_BEGAN, request=request)
        async for tokens in super()._generate(body):
            yield tokens
        self._log.note(EventKind.REQUEST_ENDED, request=request)

    def _answer(self, tokens: int) -> dict[str, object]:
        return {"cluster": self._replica_id, "tokens": tokens}


class SteppedPolicyActor(PolicyActor):
    """The policy actor, by a clock that is stepped."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
        follow_steps(control_folder())
        await super().__init__()


def control_folder() -> Path:
    """Where the test tells network and clocks what to do: beside the journal of its cluster."""
    return Path(os.environ[JOURNAL_DIR_VARIABLE]).parent


def create_policy_actor() -> None:
    """Create the actor under the product's name, before anybody else does; return when it answers."""
    actor = ray.remote(SteppedPolicyActor).options(**ACTOR_OPTIONS).remote()
    ray.get(actor.status.remote())


def application(build: Build) -> serve.Application:
    """Four replicas, on worker nodes."""
    options = {"num_cpus": 0, "resources": {NODE_RESOURCE: 1}}
    return serve.deployment(
        ChaosReplica,
        name=DEPLOYMENT,
        num_replicas=REPLICAS,
        max_ongoing_requests=128,
        ray_actor_options=options,
        graceful_shutdown_wait_loop_s=0.5,
    ).bind(build)
