"""The policy's Serve application: the operator's HTTP API, `user_config` as the operator's settings, and reports of servers beside
this cluster, which it hands on to the actor.

Optional: without it the actor runs its built-in defaults. It holds no state; the policy actor does. A wrong `user_config`
keeps the settings in force, is logged and shows in `status`; it never kills the replica, for Serve would answer that by
restarting it for ever. Healthy as long as its event loop turns: an actor that is away is the API's 503, no reason to restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from nightjar.cluster.api.access import configured_token, exchange_token, reader_tokens
from nightjar.cluster.api.exchange_route import MOST_CALLS, add_exchange
from nightjar.cluster.api.operations import CONFIGURE, OperationError
from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.cluster.serve_config import POLICY_DEPLOYMENT
from nightjar.policy.wire.report import LoadReport

if TYPE_CHECKING:
    from fastapi import FastAPI

RETRY_PERIOD_S: Final = 2.0
FIRST_ATTEMPT_S: Final = 5.0
MAX_ONGOING_REQUESTS: Final = 1000 + MOST_CALLS
"""Readers and reports wait for the actor at no cost, and beyond this number a write waits behind them, in Serve's router."""
EXCHANGE_TIMEOUT_S: Final = 25.0
"""Below what a server waits for (agent.EXCHANGE_TIMEOUT_S): the answer says more than its own timeout."""

log = structlog.get_logger(__name__)


class PolicyReplica:
    """The deployment `Policy`: Serve's side of the API."""

    def __init__(self) -> None:
        from nightjar.cluster.client import PolicyClient

        self._policy = PolicyClient()
        self._configuring: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the ASGI app of this replica."""
        api = create_policy_api(self._policy, configured_token, reader_tokens)
        add_exchange(api, self._policy, self._exchange, exchange_token)
        return api

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve hands over `user_config`, at start and on every change: in force when it returns, unless the policy is away."""
        if self._configuring is not None:
            self._configuring.cancel()
        self._configuring = asyncio.create_task(self._configure(user_config))
        await asyncio.wait({self._configuring}, timeout=FIRST_ATTEMPT_S)

    async def _exchange(self, payload: bytes) -> bytes:
        """Of a server outside the cluster. Looked at here, so that what is no report never reaches the actor."""
        LoadReport.from_wire(payload)
        return await self._policy.exchange_bytes(payload, EXCHANGE_TIMEOUT_S)

    async def check_health(self) -> None:
        """Answered by the event loop; says nothing about the actor, on purpose."""

    async def _configure(self, values: Mapping[str, object]) -> None:
        while True:
            try:
                answer = await self._policy.call(CONFIGURE, values)
            except OperationError as error:
                if error.code == CONFIGURE.refused_as:
                    log.error("settings_refused", error=str(error))
                    return
                log.warning("settings_wait_for_policy", error=str(error), retry_s=RETRY_PERIOD_S)
                await asyncio.sleep(RETRY_PERIOD_S)
            else:
                log.info("settings_applied", settings=answer["settings"])
                return


def build(args: dict[str, Any]) -> Any:
    """Serve's application builder. Raises ValueError for any `args`: everything an operator sets lives in `user_config`."""
    if args:
        raise ValueError(f"{', '.join(sorted(args))}: the policy app takes no args; settings belong in user_config")
    from ray import serve

    return serve.deployment(
        serve.ingress()(PolicyReplica),
        name=POLICY_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        user_config={},
    ).bind()
