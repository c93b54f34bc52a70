"""The control channel into a running engine: one method on vLLM's EngineCore, bytes in and bytes out.

vLLM dispatches utility calls by method name, between two steps, so adding the method is all it takes. The replica
calls it with `engine_core.call_utility_async("nightjar_exchange", payload)`: an EngineCommand goes in, an EngineSnapshot
comes out. Fails open on the engine: whatever is wrong with a command is answered in `refused`, and no exception reaches the
engine's loop. Bytes that are no command change nothing. Of a command whose settings are refused the rest holds, since the
replica's own mode is the kill switch and must not depend on what the policy sent beside it.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from vllm.v1.engine.core import EngineCore

from nightjar.deployments.engine.scheduler.step_loop import StepLoop
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import NO_ENGINE_ID, Counters, DrafterState, EngineLoad, EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand

WAITING_FOR_OTHERS: Final = ("WAITING_FOR_REMOTE_KVS", "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", "WAITING_FOR_STREAMING_REQ")
"""Of vLLM's RequestStatus (0.29, 0.32 and 0.33: Scheduler._is_blocked_waiting_status)."""

log = structlog.get_logger(__name__)

CONTROL_METHOD: Final = "nightjar_exchange"


def register_control_method() -> None:
    """Add `nightjar_exchange` to EngineCore; doing it again changes nothing."""
    setattr(EngineCore, CONTROL_METHOD, nightjar_exchange)


def nightjar_exchange(engine_core: EngineCore, payload: bytes) -> bytes:
    """Apply an EngineCommand to the running scheduler and answer its EngineSnapshot, both in wire form."""
    try:
        return exchange(engine_core.scheduler, payload).to_wire()
    except Exception as error:
        log.error("control_failed", error=str(error), exc_info=error)
        return _refusal(f"{CONTROL_METHOD}: {type(error).__name__}: {error}").to_wire()


def exchange(scheduler: Any, payload: bytes) -> EngineSnapshot:
    """Apply the command in `payload` to one of our schedulers and take its snapshot."""
    loop = getattr(scheduler, "nightjar", None)
    if not isinstance(loop, StepLoop):
        return _refusal(f"the running scheduler is {type(scheduler).__qualname__}, allowed is one of Nightjar's")
    try:
        refused = _apply(loop, EngineCommand.from_wire(payload))
    except WireError as error:
        refused = str(error)
    return loop.snapshot(_engine_load(scheduler), _drafter_state(scheduler, loop), scheduler.running, refused[:1024])


def _apply(loop: StepLoop, command: EngineCommand) -> str:
    loop.steering.override_mode(command.local_mode)
    if command.confirmed is not None:
        loop.confirm(command.confirmed)
    return loop.adopt(command.issued) if command.issued is not None else ""


def _engine_load(scheduler: Any) -> EngineLoad:
    num_running, num_waiting = scheduler.get_request_counts()
    return EngineLoad(
        num_running_reqs=num_running,
        num_waiting_reqs=num_waiting,
        num_deferred_reqs=num_deferred_reqs(scheduler),
        kv_cache_usage=min(max(scheduler.kv_cache_manager.usage, 0.0), 1.0),
    )


def num_deferred_reqs(scheduler: Any) -> int:
    """Waiting requests that no step can run yet: their KV, a grammar, an encoder's output or a client's next input is to come.

    vLLM keeps what a pass could not schedule in `Scheduler.deferred_waiting` (0.32, 0.33) or in the queue `skipped_waiting` (0.29),
    until it runs. What it waited for may have come since, so each request's own state decides. 0 with a vLLM that has neither.
    """
    deferred = scheduler.deferred_waiting if hasattr(scheduler, "deferred_waiting") else getattr(scheduler, "skipped_waiting", ())
    return sum(_must_wait(scheduler, request) for request in deferred)


def _must_wait(scheduler: Any, request: Any) -> bool:
    """By its status, or because a connector has yet to say what it will bring (`Scheduler.schedule`, vLLM 0.29, 0.32 and 0.33)."""
    if request.status.name in WAITING_FOR_OTHERS:
        return True
    of_connector = getattr(scheduler, "connector", None) is not None and not request.num_computed_tokens
    return of_connector or (getattr(scheduler, "ec_connector", None) is not None and bool(request.mm_features))


def _drafter_state(scheduler: Any, loop: StepLoop) -> DrafterState:
    if loop.drafting is not None and not loop.fault:
        return loop.drafting.life.state
    return DrafterState.IN_SYNC if scheduler.num_spec_tokens > 0 else DrafterState.ABSENT


def _refusal(reason: str) -> EngineSnapshot:
    return EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID), refused=reason[:1024])
