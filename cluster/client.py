"""The way to the policy actor, for replicas and for the operator's app.

Creates the actor where there is none, keeps its handle, and finds it again after it died, was replaced or fell silent. Fails
with one error, `PolicyUnavailable`, and soon: every call has a timeout, look-ups run in a thread and one at a time, and after
a failure the next one waits (0.1 s, doubling up to 5 s), so that an absent actor is not created over and over.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import ray

from nightjar.cluster.operator_answers import (
    CanaryAnswer,
    ConfigureAnswer,
    ExplainAnswer,
    FreezeAnswer,
    ImportAnswer,
    SetModeAnswer,
)
from nightjar.cluster.policy_actor import ACTOR_NAME, ACTOR_OPTIONS, PolicyActor
from nightjar.policy.wire.exchange import ExchangeReply
from nightjar.policy.wire.record import Record, WireError
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.status import FleetStatus

FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
OPERATOR_TIMEOUT_S: Final = 10.0

_creating = threading.Lock()  # Ray cannot create one named actor from two threads of a process

T = TypeVar("T", bound=Record)


class PolicyUnavailable(RuntimeError):  # noqa: N818 - a state of the world, not a programming error
    """The policy did not answer. The message says why; the caller goes on with what it has."""


def get_or_create_policy_actor() -> Any:
    """Handle of the policy actor, created where there is none. Blocks: call it from a thread.

    Raises PolicyUnavailable in a process without Ray, which would otherwise start a cluster of its own.
    """
    if not ray.is_initialized():
        raise PolicyUnavailable("this process is not connected to a Ray cluster; call ray.init(address=...) first")
    with _creating:
        return ray.remote(PolicyActor).options(**ACTOR_OPTIONS).remote()


class PolicyClient:
    """Calls the policy actor from one event loop. Every method raises PolicyUnavailable, and nothing else, where it fails.

    `resolve` gives the actor's handle and may block for long; it runs in a thread.
    """

    def __init__(self, *, resolve: Callable[[], Any] = get_or_create_policy_actor) -> None:
        self._resolve = resolve
        self._handle: Any = None
        self._resolving: asyncio.Task[Any] | None = None
        self._failures = 0
        self._retry_at_s = 0.0

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news. The actor parks the call for up to `exchange_period_s`: `timeout_s` must be well above."""
        payload = await self._call("exchange", report.to_wire(), timeout_s=timeout_s)
        return _parsed(ExchangeReply, payload)

    async def status(self, timeout_s: float = OPERATOR_TIMEOUT_S) -> FleetStatus:
        """The fleet as of now."""
        return _parsed(FleetStatus, await self._call("status", timeout_s=timeout_s))

    async def ping(self, timeout_s: float = OPERATOR_TIMEOUT_S) -> None:
        """Return where the actor answers. Asks for what costs it nothing, and what actors of older releases answer as well."""
        await self.starting_mode("", "", timeout_s)

    async def starting_mode(self, replica_id: str, application: str, timeout_s: float = OPERATOR_TIMEOUT_S) -> str:
        """The mode that a replica gets that starts now."""
        mode: str = await self._call("starting_mode", replica_id, application, timeout_s=timeout_s)
        return mode

    async def configure(self, values: Mapping[str, object], timeout_s: float = OPERATOR_TIMEOUT_S) -> ConfigureAnswer:
        """Replace the operator's settings; `error` of the answer says why the old ones stay, if so."""
        answer: ConfigureAnswer = await self._call("configure", dict(values), timeout_s=timeout_s)
        return answer

    async def set_mode(self, override: Mapping[str, object], timeout_s: float = OPERATOR_TIMEOUT_S) -> SetModeAnswer:
        """Set or take back a mode by hand: {mode, scope, name, for_s, reason}; `error` of the answer says what was wrong."""
        answer: SetModeAnswer = await self._call("set_mode", dict(override), timeout_s=timeout_s)
        return answer

    async def freeze(self, values: Mapping[str, object], timeout_s: float = OPERATOR_TIMEOUT_S) -> FreezeAnswer:
        """Begin, prolong or end a freeze: {frozen, for_s, reason}; `error` of the answer says what was wrong."""
        answer: FreezeAnswer = await self._call("freeze", dict(values), timeout_s=timeout_s)
        return answer

    async def canary(self, values: Mapping[str, object], timeout_s: float = OPERATOR_TIMEOUT_S) -> CanaryAnswer:
        """Begin, end or promote a canary (canarying.CanaryRequest); `error` of the answer says what was wrong."""
        answer: CanaryAnswer = await self._call("canary", dict(values), timeout_s=timeout_s)
        return answer

    async def learned(self, timeout_s: float = OPERATOR_TIMEOUT_S) -> bytes:
        """What the fleet has learned, as a file (learned_file.py)."""
        content: bytes = await self._call("learned", timeout_s=timeout_s)
        return content

    async def import_learned(
        self, content: bytes, group_ids: Sequence[str] = (), timeout_s: float = OPERATOR_TIMEOUT_S
    ) -> ImportAnswer:
        """Give the fleet the groups of such a file, or those named; `error` of the answer says what was wrong."""
        answer: ImportAnswer = await self._call("import_learned", content, list(group_ids), timeout_s=timeout_s)
        return answer

    async def explain(self, replica: str, timeout_s: float = OPERATOR_TIMEOUT_S) -> ExplainAnswer:
        """Why one replica's K is what it is; `error` of the answer names the replicas that exist where it is none of them."""
        answer: ExplainAnswer = await self._call("explain", replica, timeout_s=timeout_s)
        return answer

    async def _call(self, method: str, *arguments: object, timeout_s: float) -> Any:
        handle = self._handle
        try:
            async with asyncio.timeout(timeout_s):
                handle = await self._resolved_handle()
                answer = await getattr(handle, method).remote(*arguments)
        except TimeoutError as error:
            self._lose(handle)
            raise PolicyUnavailable(f"{method}: the policy actor {ACTOR_NAME} did not answer within {timeout_s:g} s") from error
        except Exception as error:
            self._lose(handle)
            raise PolicyUnavailable(f"{method}: the policy actor {ACTOR_NAME} failed: {type(error).__name__}: {error}") from error
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
        backoff_s = min(FIRST_BACKOFF_S * 2 ** min(self._failures, 16), MAX_BACKOFF_S)
        self._failures += 1
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - replicas that lost the actor together come back apart
        self._retry_at_s = asyncio.get_running_loop().time() + backoff_s * jitter


def _parsed(kind: type[T], payload: bytes) -> T:
    try:
        return kind.from_wire(payload)
    except WireError as error:
        raise PolicyUnavailable(f"the policy actor {ACTOR_NAME} answered with something else: {error}") from error
