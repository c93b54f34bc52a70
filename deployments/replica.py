"""The Serve deployment: each replica is vLLM's own OpenAI server around one engine, with a ReplicaAgent beside it.

Requests go from Serve's proxy straight into vLLM's routes, as far as they are answered (routes.py); all that a client sees, errors
included, is vLLM's. The policy is asked for one thing before the engine starts, whether the fleet is in shadow, and never for
longer than two seconds; whatever is wrong with it, with the hooks or with the steered arguments, the engine serves plainly and the
reports say why. A replica whose engine dies ends at once, as vLLM's own server does; one whose engine hangs fails the health check.
Serve replaces both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import ray
import structlog
from ray import serve

from nightjar.deployments.agent import EngineControl, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine.process_guard import kill_descendants
from nightjar.deployments.engine_watch import HUNG_AFTER_S, EngineHungError, EngineWatch
from nightjar.deployments.llm_config import parse_local_mode
from nightjar.deployments.metrics import ReplicaMetrics, common_labels
from nightjar.deployments.models import resolve_model
from nightjar.deployments.steering_level import level_at_start
from nightjar.policy.wire.exchange import EngineCommand
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.report import Counters, EngineLoad, EngineSnapshot

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.schema import ReplicaRank

    from nightjar.deployments.engine.hooks import MissingHooks
    from nightjar.deployments.engine.openai_server import OpenAIServer

STARTING_MODE_TIMEOUT_S: Final = 2.0
ENGINE_SHUTDOWN_TIMEOUT_S: Final = 5.0
FAILED_CHECKS_UNTIL_REPLACED: Final = 3
"""Serve's REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD: so many failures in a row, and it stops routing to a replica."""
ROUTERS_KNOW_AFTER_S: Final = 2.0
"""From Serve's decision until every router has heard of it, with room to spare."""
DEATH_CHECK_PERIOD_S: Final = 0.25
ANSWERS_LEAVE_WITHIN_S: Final = 0.5
"""What the requests of a dead engine are answered with is on its way to the proxy for no longer."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelToServe:
    """What `build` hands to every replica. Sources are as the user wrote them: each node resolves its own folders."""

    model_id: str
    source: str
    draft_source: str
    engine_kwargs: Mapping[str, Any]
    cores: int
    draft_offload: DraftOffload = "never"
    starts_in_mode: str = ""  # the kill switch as `args` set it
    hung_after_s: float = HUNG_AFTER_S
    require_steering: bool = False
    graph_tiers: tuple[int, ...] | None = None
    head_log_steps: int = 0
    extra_routes: tuple[str, ...] = ()


@serve.ingress()
class LLMReplica:
    """One replica. Serve calls the methods; `build` in deployments/app.py binds it."""

    async def __init__(self, model: ModelToServe) -> None:  # type: ignore[misc]  # Serve awaits it
        from nightjar.cluster.client import PolicyClient
        from nightjar.cluster.ray_metrics import RayBackend
        from nightjar.deployments.engine.openai_server import EngineRequest, start_openai_server

        asyncio.get_running_loop().run_in_executor(None, _start_policy)
        context = serve.get_replica_context()
        self._policy = PolicyClient()
        self._replica_id: str = context.replica_id.unique_id
        self._application: str = context.app_name
        target, draft = resolve_model(model.source), resolve_model(model.draft_source) if model.draft_source else ""
        request = EngineRequest(
            served_model_name=model.model_id,
            target_name=model.source,
            draft_name=model.draft_source,
            engine_kwargs=_with_paths(model.engine_kwargs, target, draft),
            models_are_local=all(path.startswith("/") for path in (target, draft) if path),
            local_rank=context.rank.local_rank,
            cores_per_engine=model.cores,
            draft_offload=model.draft_offload,
            require_steering=model.require_steering,
            graph_tiers=model.graph_tiers,
            head_log_steps=model.head_log_steps,
            extra_routes=model.extra_routes,
        )
        self._server: OpenAIServer = await start_openai_server(
            request, wants_shadow=lambda: self._wants_shadow(model.starts_in_mode), missing_hooks=self.missing_hooks()
        )
        arguments = self._server.arguments
        identity = ReplicaIdentity(
            replica_id=self._replica_id,
            application=self._application,
            deployment=context.deployment,
            node_id=ray.get_runtime_context().get_node_id(),
            group=self._server.group,
            steered=level_at_start(arguments),
            notice=arguments.notice,
        )
        engine = PlainEngine(self._server) if arguments.serving_plainly else SteeredEngine(self._server)
        self._watch = EngineWatch(hung_after_s=model.hung_after_s, counts_steps=not arguments.serving_plainly)
        self._hung_checks = 0
        metrics = ReplicaMetrics(identity, RayBackend(common_labels(identity, model.model_id)))
        self._agent = ReplicaAgent(engine=engine, policy=self._policy, identity=identity, watch=self._watch, metrics=metrics)
        self._agent_task = asyncio.create_task(self._agent.run())
        self._death_watch = asyncio.create_task(self._end_with_engine())
        log.info(
            "replica_ready",
            replica_id=self._replica_id,
            group=identity.group.group_id,
            steering=identity.steered.level.value,
            reason=identity.steered.reason,
        )

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """vLLM's application, which Serve calls for every request."""
        return self._server.app

    async def check_health(self) -> None:
        """Healthy while the engine is. Raises vLLM's own error for a dead engine, EngineHungError for a hung one."""
        await self._server.engine.check_health()
        loop = asyncio.get_running_loop()
        reason = self._watch.why_hung(self._server.front_end(), loop.time())
        if reason and await self._server.is_paused():
            self._watch.restart()
            reason = ""
        self._hung_checks = self._hung_checks + 1 if reason else 0
        if self._hung_checks == FAILED_CHECKS_UNTIL_REPLACED:
            loop.call_later(ROUTERS_KNOW_AFTER_S, self._end_hung_engine)
        if reason:
            raise EngineHungError(reason)

    async def reconfigure(self, user_config: object, rank: ReplicaRank) -> None:
        """Set the kill switch and return at once; a wrong value is logged and shown in `status`, and the old one stays.

        Async, so that Serve calls it on the agent's event loop and not in a thread. `rank` is not used: a method that takes it is
        also called when `user_config` is taken away.
        """
        del rank
        try:
            self._agent.set_local_mode(parse_local_mode(user_config))
        except ValueError as error:
            log.error("user_config_refused", error=str(error))
            self._agent.set_local_mode(self._agent.local_mode, error=str(error))

    async def __del__(self) -> None:
        """Serve's graceful shutdown: requests have ended or had their time."""
        if (watch := getattr(self, "_death_watch", None)) is not None:
            watch.cancel()
        if (task := getattr(self, "_agent_task", None)) is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # the engine below must be shut down whatever it says
                await task
        if (server := getattr(self, "_server", None)) is not None:
            server.shutdown(ENGINE_SHUTDOWN_TIMEOUT_S)

    async def _end_with_engine(self) -> None:
        """End this process soon after its engine died.

        Until Serve's health check has failed three times, for 20 to 30 s, requests would go on coming here, and more than to the
        others: a replica that fails them at once looks like the least loaded one. Of a process that is gone Serve and its routers
        know at once.
        """
        while not self._server.engine.errored:  # noqa: ASYNC110 - vLLM tells of it in a property alone
            await asyncio.sleep(DEATH_CHECK_PERIOD_S)
        log.error("engine_died", replica_id=self._replica_id, consequence="this replica ends, Serve starts another")
        await asyncio.sleep(ANSWERS_LEAVE_WITHIN_S)
        try:
            kill_descendants()
            self._server.shutdown(ENGINE_SHUTDOWN_TIMEOUT_S)
        finally:
            _end_process()

    def _end_hung_engine(self) -> None:
        """Fail the requests that hang, for whose end Serve's shutdown of this replica waits, and leave no process behind.

        Not any earlier: a replica whose requests fail at once looks like the least loaded one to routers that still use it.
        """
        log.error("hung_engine_killed", replica_id=self._replica_id, pids=kill_descendants())

    @staticmethod
    def missing_hooks() -> MissingHooks:
        """What this vLLM lacks of what Nightjar hooks into."""
        from nightjar.deployments.engine.hooks import missing_hooks

        return missing_hooks()

    async def _wants_shadow(self, starts_in_mode: str) -> bool:
        """Whether this engine starts with the user's own arguments. A policy that does not answer in time: no."""
        if starts_in_mode:
            return starts_in_mode == "shadow"
        try:
            mode = await self._policy.starting_mode(self._replica_id, self._application, STARTING_MODE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the policy, the engine starts
            log.warning("starting_mode_unknown", error=str(error), consequence="the engine starts with steered arguments")
            return False
        return mode == "shadow"


class SteeredEngine(EngineControl):
    """The control channel of an engine with Nightjar's scheduler."""

    def __init__(self, server: OpenAIServer) -> None:
        self._core = server.engine.engine_core

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply `command` between two steps and return the engine's snapshot. Raises what vLLM raises for a dead engine."""
        return EngineSnapshot.from_wire(await self._core.call_utility_async("nightjar_exchange", command.to_wire()))


class PlainEngine(EngineControl):
    """An engine that Nightjar does not steer: its load is known from vLLM's own statistics, its steps are not counted."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server
        self._core = server.engine.engine_core
        self._counters = Counters(engine_id=uuid4().hex)

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Take no command; answer the load once the engine answers a question of vLLM's own: it takes those between steps, too."""
        del command
        with contextlib.suppress(Exception):  # whatever it answers; a dead engine fails vLLM's own health check
            await self._core.call_utility_async("is_sleeping")
        stats = self._server.load.latest
        load = (
            EngineLoad()
            if stats is None
            else EngineLoad(
                num_running_reqs=stats.num_running_reqs,
                num_waiting_reqs=stats.num_waiting_reqs,
                kv_cache_usage=min(max(stats.kv_cache_usage, 0.0), 1.0),
            )
        )
        return EngineSnapshot(counters=self._counters, load=load)


def _end_process() -> None:
    """Without waiting for anybody: Ray tells Serve that this actor is gone."""
    os._exit(1)


def _start_policy() -> None:
    """Have the actor start while this process imports vLLM, so that the first replica of a cluster gets an answer from it, too."""
    from nightjar.cluster.client import get_or_create_policy_actor

    try:
        get_or_create_policy_actor()
    except Exception as error:  # noqa: BLE001 - the client tries again, and says so
        log.warning("policy_not_started", error=str(error))


def _with_paths(engine_kwargs: Mapping[str, Any], target: str, draft: str) -> dict[str, Any]:
    kwargs = dict(engine_kwargs) | {"model": target}
    if draft:
        kwargs["speculative_config"] = dict(kwargs["speculative_config"]) | {"model": draft}
    return kwargs
