"""The control channel of a running engine, and the agent beside it, whichever host serves.

A steered engine takes commands between two steps and answers what it counted. One that is served plainly takes none: its load is
known from vLLM's own statistics. Knows neither Ray nor how the policy is reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from nightjar.cluster.telemetry.metrics import Backend
from nightjar.deployments.agent import EngineControl, Policy, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.deployments.metrics import ReplicaMetrics
from nightjar.deployments.steering_level import level_at_start
from nightjar.policy.wire.report import Counters, EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand

if TYPE_CHECKING:
    from nightjar.deployments.engine.start.running_engine import RunningEngine

log = structlog.get_logger(__name__)


def identity_of(engine: RunningEngine, *, replica_id: str, application: str, deployment: str, node_id: str) -> ReplicaIdentity:
    """Who reports for this engine, under the names that its host gives it."""
    return ReplicaIdentity(
        replica_id=replica_id,
        application=application,
        deployment=deployment,
        node_id=node_id,
        group=engine.group,
        steered=level_at_start(engine.arguments),
        notice=engine.arguments.notice,
    )


def agent_of(
    engine: RunningEngine, identity: ReplicaIdentity, *, policy: Policy, backend: Backend, hung_after_s: float
) -> tuple[ReplicaAgent, EngineWatch]:
    """The agent of this engine, or of the rank in `identity`, and the watch that it tells of each control call."""
    is_plain = bool(engine.arguments.serving_plainly)
    watch = EngineWatch(hung_after_s=hung_after_s, counts_steps=not is_plain)
    agent = ReplicaAgent(
        engine=PlainEngine(engine) if is_plain else SteeredEngine(engine, identity.rank),
        policy=policy,
        identity=identity,
        watch=watch,
        metrics=ReplicaMetrics(identity, backend),
    )
    log.info(
        "replica_ready",
        replica_id=identity.replica_id,
        rank=identity.rank,
        group=identity.group.group_id,
        steering=identity.steered.level.value,
        reason=identity.steered.reason,
    )
    return agent, watch


class SteeredEngine(EngineControl):
    """The control channel of an engine with Nightjar's scheduler: of its core, or of that of one `rank` of data parallelism."""

    def __init__(self, engine: RunningEngine, rank: int | None = None) -> None:
        core: Any = engine.engine.engine_core
        self._call: Callable[[str, bytes], Awaitable[bytes]] = core.call_utility_async
        if rank is not None:  # that one is sent to every core, and answers for the first
            its_core = core.core_engines[core.engine_ranks_managed.index(rank)]
            self._call = partial(core._call_utility_async, engine=its_core)

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply `command` between two steps and return the engine's snapshot. Raises what vLLM raises for a dead engine."""
        return EngineSnapshot.from_wire(await self._call("nightjar_exchange", command.to_wire()))


class PlainEngine(EngineControl):
    """An engine that Nightjar does not steer: its load is known from vLLM's own statistics, its steps are not counted."""

    def __init__(self, engine: RunningEngine) -> None:
        self._engine = engine
        self._core = engine.engine.engine_core
        self._counters = Counters(engine_id=uuid4().hex)

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Take no command; answer the load once the engine answers a question of vLLM's own: it takes those between steps, too."""
        del command
        with contextlib.suppress(Exception):  # whatever it answers; a dead engine fails vLLM's own health check
            await self._core.call_utility_async("is_sleeping")
        return EngineSnapshot(counters=self._counters, load=self._engine.load.latest)
