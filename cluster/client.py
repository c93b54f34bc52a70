"""The way to the policy actor, for replicas and for the operator's app.

Creates the actor where there is none, keeps its handle, and finds it again after it died, was replaced or fell silent. Fails
with `OperationError`, and soon: every call has a timeout, look-ups run in a thread and one at a time, and after
a failure the next one waits (0.1 s, doubling up to 5 s), so that an absent actor is not created over and over.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import ray

from nightjar.cluster.api.operations import STARTING_MODE, Answer, Operation, OperationError, P, unavailable
from nightjar.cluster.policy_actor import ACTOR_NAME, ACTOR_OPTIONS, PolicyActor
from nightjar.policy.exchange import backoff_s
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply

FIRST_BACKOFF_S: Final = 0.1
OPERATOR_TIMEOUT_S: Final = 10.0

_creating = threading.Lock()  # Ray cannot create one named actor from two threads of a process

T = TypeVar("T")


def get_or_create_policy_actor() -> Any:
    """Handle of the policy actor, created where there is none. Blocks: call it from a thread.

    Raises OperationError in a process without Ray, which would otherwise start a cluster of its own.
    """
    if not ray.is_initialized():
        raise unavailable("this process is not connected to a Ray cluster; call ray.init(address=...) first")
    with _creating:
        return ray.remote(PolicyActor).options(**ACTOR_OPTIONS).remote()


class PolicyClient:
    """Calls the policy actor from one event loop. Every method raises OperationError, and nothing else, where it fails.

    `resolve` gives the actor's handle and may block for long; it runs in a thread. `timeout_s` is for operators' calls.
    """

    def __init__(self, *, resolve: Callable[[], Any] = get_or_create_policy_actor, timeout_s: float = OPERATOR_TIMEOUT_S) -> None:
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._handle: Any = None
        self._resolving: asyncio.Task[Any] | None = None
        self._failures = 0
        self._retry_at_s = 0.0

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news. The actor parks the call for up to `exchange_period_s`: `timeout_s` must be well above."""
        return _parsed(ExchangeReply.from_wire, await self.exchange_bytes(report.to_wire(), timeout_s))

    async def exchange_bytes(self, payload: bytes, timeout_s: float) -> bytes:
        """The same for a report that comes in its wire form, and whose reply is to go on so."""
        reply: bytes = await self._call("exchange", payload, timeout_s=timeout_s)
        return reply

    async def starting_mode(self, replica_id: str, application: str, timeout_s: float) -> str:
        """The mode that a replica gets that starts now."""
        return await self._ask(STARTING_MODE, replica_id, application, timeout_s=timeout_s)

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        """Have an operator's operation done."""
        return await self._ask(operation, *arguments, timeout_s=self._timeout_s)

    async def _ask(self, operation: Operation[..., Answer], *arguments: object, timeout_s: float) -> Answer:
        answer = await self._call(operation.name, *arguments, timeout_s=timeout_s)
        if isinstance(answer, dict) and (error := answer.pop("error", "")):  # empty from an actor of an older release
            raise OperationError(operation.refused_as, str(error))
        return _parsed(operation.from_wire, answer)

    async def _call(self, method: str, *arguments: object, timeout_s: float) -> Any:
        handle = self._handle
        try:
            async with asyncio.timeout(timeout_s):
                handle = await self._resolved_handle()
                answer = await getattr(handle, method).remote(*arguments)
        except TimeoutError as error:
            self._lose(handle)
            raise unavailable(f"{method}: the policy actor {ACTOR_NAME} did not answer within {timeout_s:g} s") from error
        except Exception as error:
            self._lose(handle)
            raise unavailable(f"{method}: the policy actor {ACTOR_NAME} failed: {type(error).__name__}: {error}") from error
        self._failures = 0
        return answer

    async def _resolved_handle(self) -> Any:
        if self._handle is None:
            await asyncio.sleep(self._retry_at_s - asyncio.get_running_loop().time())
            if self._resolving is None or self._resolving.done():
                self._resolving = asyncio.create_task(asyncio.to_thread(self._resolve))
            self._handle = await asyncio.shield(self._resolving)  # a caller that gives up must not leave a second look-up behind
        return self._handle

    def _lose(self, handle: Any) -> None:
        """Forget a handle that failed, unless another call found a new one already, and put off the next look-up."""
        if self._handle is not handle:
            return
        self._handle = None
        self._failures += 1
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - replicas that lost the actor together come back apart
        self._retry_at_s = asyncio.get_running_loop().time() + backoff_s(self._failures, FIRST_BACKOFF_S) * jitter


def _parsed(read: Callable[[Any], T], payload: object) -> T:
    try:
        return read(payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unavailable(f"the policy actor {ACTOR_NAME} answered with something else: {error}") from error
