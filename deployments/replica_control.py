"""What a replica does beside serving, whichever host serves: the agent, the health check, the kill switch and the end.

The policy is asked for one thing before the engine starts, whether the fleet is in shadow, and never for longer than two seconds;
whatever is wrong with it, the engine starts and serves. A replica whose engine dies ends at once, as vLLM's own server does; one
whose engine hangs fails the health check. Serve replaces both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import ray
import structlog
from ray import serve

from nightjar.deployments.engine_control import agent_of, identity_of
from nightjar.deployments.engine_watch import EngineHungError, EngineWatch
from nightjar.deployments.llm_config import parse_local_mode
from nightjar.deployments.metrics import common_labels

if TYPE_CHECKING:
    from nightjar.deployments.agent import ReplicaAgent
    from nightjar.deployments.engine.start.running_engine import RunningEngine

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


class ReplicaControl:
    """One replica's, made in its process before the engine; `begin` once the engine runs, `end` with the replica."""

    def __init__(self) -> None:
        from nightjar.cluster.client import PolicyClient

        asyncio.get_running_loop().run_in_executor(None, _start_policy)
        self._policy = PolicyClient()
        context = serve.get_replica_context()
        self._replica_id: str = context.replica_id.unique_id
        self._application: str = context.app_name
        self._deployment: str = context.deployment
        self.local_rank: int = context.rank.local_rank
        self._hung_checks = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def wants_shadow(self, starts_in_mode: str) -> bool:
        """Whether this engine starts with the user's own arguments. A policy that does not answer in time: no.

        `starts_in_mode` is the kill switch as `args` set it, empty where they do not.
        """
        if starts_in_mode:
            return starts_in_mode == "shadow"
        try:
            mode = await self._policy.starting_mode(self._replica_id, self._application, STARTING_MODE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the policy, the engine starts
            log.warning("starting_mode_unknown", error=str(error), consequence="the engine starts with steered arguments")
            return False
        return mode == "shadow"

    def begin(self, engine: RunningEngine, *, model_id: str, hung_after_s: float) -> None:
        """Report and steer from now on, and end with the engine."""
        from nightjar.cluster.telemetry.ray_backend import RayBackend

        self._engine = engine
        identity = identity_of(
            engine,
            replica_id=self._replica_id,
            application=self._application,
            deployment=self._deployment,
            node_id=ray.get_runtime_context().get_node_id(),
        )
        self._agents: list[ReplicaAgent] = []
        self._watches: list[EngineWatch] = []
        for rank in engine.ranks:
            its = replace(identity, rank=rank)
            backend = RayBackend(common_labels(its, model_id))
            agent, watch = agent_of(engine, its, policy=self._policy, backend=backend, hung_after_s=hung_after_s)
            self._agents.append(agent)
            self._watches.append(watch)
        self._tasks = [asyncio.create_task(run) for run in (self._end_with_engine(), *(agent.run() for agent in self._agents))]

    async def check_health(self) -> None:
        """Healthy while each engine core is. Raises vLLM's own error for a dead one, EngineHungError for a hung one."""
        await self._engine.engine.check_health()
        loop = asyncio.get_running_loop()
        front_end, now_s = self._engine.front_end(), loop.time()
        reason = next(filter(None, [watch.why_hung(front_end, now_s) for watch in self._watches]), "")
        if reason and await self._engine.is_paused():
            for watch in self._watches:
                watch.restart()
            reason = ""
        self._hung_checks = self._hung_checks + 1 if reason else 0
        if self._hung_checks == FAILED_CHECKS_UNTIL_REPLACED:
            loop.call_later(ROUTERS_KNOW_AFTER_S, self._end_hung_engine)
        if reason:
            raise EngineHungError(reason)

    def reconfigure(self, user_config: object) -> None:
        """Set the kill switch and return at once; a wrong value is logged and shown in `status`, and the old one stays."""
        problem = ""
        try:
            mode = parse_local_mode(user_config)
        except ValueError as error:
            mode, problem = self._agents[0].local_mode, str(error)
            log.error("user_config_refused", error=problem)
        for agent in self._agents:
            agent.set_local_mode(mode, error=problem)

    async def end(self) -> None:
        """At Serve's graceful shutdown, when requests have ended or had their time; also of a replica that never began."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # the engine below must be shut down whatever it says
                await task
        if (engine := getattr(self, "_engine", None)) is not None:
            engine.shutdown(ENGINE_SHUTDOWN_TIMEOUT_S)

    async def _end_with_engine(self) -> None:
        """End this process soon after its engine died.

        Until Serve's health check has failed three times, for 20 to 30 s, requests would go on coming here, and more than to the
        others: a replica that fails them at once looks like the least loaded one. Of a process that is gone Serve and its routers
        know at once.
        """
        while not self._engine.engine.errored:  # noqa: ASYNC110 - vLLM tells of it in a property alone
            await asyncio.sleep(DEATH_CHECK_PERIOD_S)
        log.error("engine_died", replica_id=self._replica_id, consequence="this replica ends, Serve starts another")
        await asyncio.sleep(ANSWERS_LEAVE_WITHIN_S)
        try:
            self._engine.kill()
            self._engine.shutdown(ENGINE_SHUTDOWN_TIMEOUT_S)
        finally:
            _end_process()

    def _end_hung_engine(self) -> None:
        """Fail the requests that hang, for whose end Serve's shutdown of this replica waits, and leave no process behind.

        Not any earlier: a replica whose requests fail at once looks like the least loaded one to routers that still use it.
        """
        log.error("hung_engine_killed", replica_id=self._replica_id, pids=self._engine.kill())


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
