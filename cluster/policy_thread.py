"""The policy of one server, in a thread of that server: where there is no cluster, and so no actor.

The same service as in the actor, with a loop of its own, so that the server's loop goes on while it decides, and whatever hangs in
it costs reports and nothing else (INV-4). A thread, since a decision for one engine holds the interpreter for 5 ms a second, and a
process would take the memory of another Python. What it knows is kept in a folder and read at the next start. Fails open: a folder
that another server holds, or that cannot be written, is replaced by one that ends with the process; a policy that cannot
begin answers every call with OperationError 503, as an actor that is away.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import structlog

from nightjar.cluster.api.operations import STARTING_MODE, Answer, Operation, OperationError, P, unavailable
from nightjar.cluster.service.folder_policy import begun_policy
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.state_folder import StateFolder, StateFolderError
from nightjar.cluster.telemetry.metrics import Backend
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply

OPERATION_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
"""What the last save may take; the thread ends with its process whatever it does."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PolicyThread:
    """A policy and the way to it. `start` returns at once; calls wait until it has begun. Calls come from one other event loop.

    Every call raises OperationError, and nothing else, where it fails.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], backend: Callable[[], Backend]) -> None:
        self._folder = folder
        self._settings = settings
        self._backend = backend
        self._store: StateFolder | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._began: concurrent.futures.Future[PolicyService | str] = concurrent.futures.Future()  # or why it did not
        self._loop: asyncio.AbstractEventLoop  # once it is started
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to decide, by `settings` (a `user_config`) and what the folder holds."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nightjar-policy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop)

    def stop(self) -> None:
        """Store what was learned, and end. Blocks, for STOP_TIMEOUT_S at most; never raises."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(STOP_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the server ends whatever the policy says
            log.warning("policy_not_ended", error=f"{type(error).__name__}: {error}", consequence="the last seconds are not stored")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()
        if self._store is not None:
            self._store.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news: up to `exchange_period_s`."""
        payload = report.to_wire()
        return await self._ask("exchange", lambda policy: policy.exchange(payload), timeout_s)

    async def starting_mode(self, replica_id: str, application: str, timeout_s: float) -> str:
        """The mode that a replica gets that starts now."""
        return await self._ask(STARTING_MODE.name, lambda policy: policy.call(STARTING_MODE, replica_id, application), timeout_s)

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **named: P.kwargs) -> Answer:
        """Have an operator's operation done."""
        return await self._ask(operation.name, lambda policy: policy.call(operation, *arguments, **named), OPERATION_TIMEOUT_S)

    async def _ask(self, name: str, ask: Callable[[PolicyService], Awaitable[T]], timeout_s: float) -> T:
        async def asked(policy: PolicyService) -> T:
            return await ask(policy)

        try:
            async with asyncio.timeout(timeout_s):
                policy = await asyncio.shield(asyncio.wrap_future(self._began))
                if isinstance(policy, str):
                    raise unavailable(f"{name}: the policy did not begin: {policy}")
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(policy), self._loop))
        except OperationError:
            raise
        except TimeoutError as error:
            raise unavailable(f"{name}: the policy did not answer within {timeout_s:g} s") from error
        except Exception as error:
            raise unavailable(f"{name}: the policy failed: {type(error).__name__}: {error}") from error

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _begin(self) -> None:
        try:
            store = self._store = self._taken_folder()
            policy = await begun_policy(store, self._settings, self._backend(), is_kept=self._temporary is None)
        except Exception as error:
            log.exception("policy_not_begun", consequence="the engine is served without a policy")
            self._began.set_result(f"{type(error).__name__}: {error}")
        else:
            self._began.set_result(policy)

    async def _end(self) -> None:
        if self._began.done() and not isinstance(policy := self._began.result(), str):
            await policy.stop()
            await policy.save()

    def _taken_folder(self) -> StateFolder:
        try:
            return StateFolder.take(self._folder)
        except StateFolderError as error:
            self._temporary = tempfile.TemporaryDirectory(prefix="nightjar-state-", ignore_cleanup_errors=True)
            log.warning("state_not_kept", reason=str(error), consequence="what is learned, and set by hand, ends with this server")
            return StateFolder.take(Path(self._temporary.name))
