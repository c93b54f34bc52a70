"""The policy's Serve application: the operator's HTTP API, and `user_config` as the operator's settings.

Optional: without it the actor runs its built-in defaults. It holds no state; the policy actor does. A wrong `user_config`
keeps the settings in force, is logged and shows in `status`; it never kills the replica, for Serve would answer that by
restarting it for ever. Healthy as long as its event loop turns: an actor that is away is the API's 503, no reason to restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from nightjar.cluster.api_token import configured_token, reader_tokens
from nightjar.cluster.policy_api import PolicyUnreachableError, create_policy_api
from nightjar.cluster.serve_config import POLICY_DEPLOYMENT
from nightjar.policy.wire.status import FleetStatus

if TYPE_CHECKING:
    from fastapi import FastAPI

    from nightjar.cluster.client import PolicyClient

RETRY_PERIOD_S: Final = 2.0
FIRST_ATTEMPT_S: Final = 5.0
MAX_ONGOING_REQUESTS: Final = 1000
"""Readers wait for the actor at no cost, and beyond this number a write waits behind them, in Serve's router."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class ActorPort:
    """`PolicyPort` of the policy actor."""

    def __init__(self, client: PolicyClient) -> None:
        self._client = client

    async def ping(self) -> None:
        """Returns where the actor answers. Raises PolicyUnreachableError."""
        await self._call(self._client.ping())

    async def status(self) -> FleetStatus:
        """The fleet as the policy sees it. Raises PolicyUnreachableError."""
        return await self._call(self._client.status())

    async def set_mode(self, override: Mapping[str, object]) -> Mapping[str, object]:
        """Set or remove an override. Raises PolicyUnreachableError."""
        return await self._call(self._client.set_mode(dict(override)))

    async def freeze(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Begin, prolong or end a freeze. Raises PolicyUnreachableError."""
        return await self._call(self._client.freeze(values))

    async def canary(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Begin, end or promote a canary. Raises PolicyUnreachableError."""
        return await self._call(self._client.canary(values))

    async def learned(self) -> bytes:
        """What the fleet has learned, as a file. Raises PolicyUnreachableError."""
        return await self._call(self._client.learned())

    async def import_learned(self, content: bytes, group_ids: Sequence[str]) -> Mapping[str, object]:
        """Give the fleet groups of such a file. Raises PolicyUnreachableError."""
        return await self._call(self._client.import_learned(content, group_ids))

    async def explain(self, replica: str) -> Mapping[str, object]:
        """Why one replica's K is what it is. Raises PolicyUnreachableError."""
        return await self._call(self._client.explain(replica))

    async def configure(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Hand over the operator's settings. Raises PolicyUnreachableError."""
        return await self._call(self._client.configure(dict(values)))

    async def _call(self, answer: Awaitable[T]) -> T:
        from nightjar.cluster.client import PolicyUnavailable

        try:
            return await answer
        except PolicyUnavailable as error:
            raise PolicyUnreachableError(str(error)) from error


class PolicyReplica:
    """The deployment `Policy`: Serve's side of the API."""

    def __init__(self) -> None:
        from nightjar.cluster.client import PolicyClient

        self._policy = ActorPort(PolicyClient())
        self._configuring: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the ASGI app of this replica."""
        return create_policy_api(self._policy, configured_token, reader_tokens)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve hands over `user_config`, at start and on every change: in force when it returns, unless the policy is away."""
        if self._configuring is not None:
            self._configuring.cancel()
        self._configuring = asyncio.create_task(self._configure(user_config))
        await asyncio.wait({self._configuring}, timeout=FIRST_ATTEMPT_S)

    async def check_health(self) -> None:
        """Answered by the event loop; says nothing about the actor, on purpose."""

    async def _configure(self, values: Mapping[str, object]) -> None:
        while True:
            try:
                answer = await self._policy.configure(values)
            except PolicyUnreachableError as error:
                log.warning("settings_wait_for_policy", error=str(error), retry_s=RETRY_PERIOD_S)
                await asyncio.sleep(RETRY_PERIOD_S)
                continue
            if answer.get("error"):
                log.error("settings_refused", error=answer["error"])
            else:
                log.info("settings_applied", settings=answer.get("settings"))
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
