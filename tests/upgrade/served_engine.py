"""A Serve application whose replicas are simulated engines: real requests over HTTP, a real agent, the real policy actor.

The engine is the simulator's, run at the pace of the machine's clock: one of its seconds is a second. What is asked over HTTP is
asked of it, and a stream gets its tokens when the engine has made them. A machine that is late makes the engine catch up in one go.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nightjar.cluster.client import PolicyClient
from nightjar.deployments.agent import EngineControl, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import Mechanics, Profile, read_profile
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, IssuedSettings
from tests.fleet.hosted_engine import UnseenMetrics

PROFILE: Final = read_profile("llama-8b-eagle")
CLUSTER_VARIABLE: Final = "UPGRADE_TEST_CLUSTER"
LOOK_PERIOD_S: Final = 0.02
PROMPT_TOKENS: Final = 40


class ServedEngine(EngineControl):
    """One engine at the clock's pace, behind the control channel of a real one."""

    def __init__(self, seed: int, profile: Profile = PROFILE, speed: float = 1.0) -> None:
        self._began_s = time.monotonic()
        self._numbers = itertools.count(1)
        self._issued: IssuedSettings | None = None
        self._engine = SimulatedEngine(
            profile,
            replica_id=f"engine-{seed}",
            mechanics=Mechanics.DORMANT,
            seed=seed,
            local_planners=LOCAL_PLANNERS,
            speed=speed,
        )
        self.group = profile.group
        self._classes = len(profile.acceptance_classes)

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply a command between two steps and answer the snapshot, both in wire form on their way."""
        self._catch_up()
        return self._control(command)

    def _control(self, command: EngineCommand) -> EngineSnapshot:
        command, refused = EngineCommand.from_wire(command.to_wire()), ""
        if self._issued is not None and command.confirmed == self._issued.version:
            self._engine.adopt(self._issued)
        if command.issued is not None:
            refused = self._adopt(command.issued)
        snapshot = self._engine.report().snapshot.model_copy(update={"refused": refused})
        return EngineSnapshot.from_wire(snapshot.to_wire())

    def _adopt(self, issued: IssuedSettings) -> str:
        refused = self._engine.adopt(issued)
        self._issued = self._issued if refused else issued
        return refused

    async def generate(self, tokens: int) -> AsyncIterator[int]:
        """How many of `tokens` there are, whenever there are more, until there are all."""
        self._catch_up()
        number = next(self._numbers)
        request = SimulatedRequest(number, self._engine.now_s, PROMPT_TOKENS, tokens, number % self._classes)
        self._engine.submit(request)
        told = 0
        while request.finish_s is None:
            await asyncio.sleep(LOOK_PERIOD_S)
            self._catch_up()
            if told < request.generated_tokens < tokens:
                told = request.generated_tokens
                yield told
        yield tokens

    @property
    def _now_s(self) -> float:
        """What the engine's clock should show."""
        return time.monotonic() - self._began_s

    def _catch_up(self) -> None:
        """Run the steps that are due by now."""
        now_s = self._now_s
        while self._engine.has_work and self._engine.now_s < now_s:
            self._engine.step()
        self._engine.wait_until(now_s)


class SimulatedReplica:
    """What Serve runs: `engine` with an agent that reaches the policy by `policy`, each a plain one where none is given."""

    async def __init__(self, engine: ServedEngine | None = None, policy: PolicyClient | None = None) -> None:  # type: ignore[misc]
        context = serve.get_replica_context()
        self._engine = engine or ServedEngine(seed=some_seed())
        identity = ReplicaIdentity(
            replica_id=context.replica_id.unique_id,
            application=context.app_name,
            deployment=context.deployment,
            node_id=ray.get_runtime_context().get_node_id(),
            group=self._engine.group,
        )
        agent = ReplicaAgent(
            engine=self._engine, policy=policy or PolicyClient(), identity=identity, watch=EngineWatch(), metrics=UnseenMetrics()
        )
        self._agent = asyncio.create_task(agent.run())

    async def __call__(self, request: Request) -> Response:
        """`{"max_tokens": n, "stream": bool}`: which cluster made how many tokens."""
        body = await request.json()
        generated = self._generate(body)
        if body["stream"]:
            return StreamingResponse(self._events(generated), media_type="text/event-stream")
        tokens = [count async for count in generated][-1]
        return JSONResponse(self._answer(tokens))

    async def check_health(self) -> None:
        """Healthy while the agent lives."""
        if self._agent.done():
            self._agent.result()

    def _generate(self, body: Mapping[str, Any]) -> AsyncIterator[int]:
        return self._engine.generate(int(body["max_tokens"]))

    def _answer(self, tokens: int) -> dict[str, object]:
        return {"cluster": os.environ[CLUSTER_VARIABLE], "tokens": tokens}

    async def _events(self, generated: AsyncIterator[int]) -> AsyncIterator[str]:
        async for tokens in generated:
            yield f"data: {json.dumps(self._answer(tokens))}\n\n"
        yield "data: [DONE]\n\n"


def some_seed() -> int:
    """Another one for each engine."""
    return int.from_bytes(os.urandom(4), "big")


def build(args: Mapping[str, object]) -> serve.Application:
    """Serve's application builder: two replicas."""
    options = {"num_cpus": 0}
    return serve.deployment(SimulatedReplica, num_replicas=2, max_ongoing_requests=128, ray_actor_options=options).bind()
