"""What broke off on a worker that the engine can do without, told to the scheduler with the step's output.

A catch-up, a head's pass for its KV alone and a reload serve drafts, never texts: where one raises, its worker goes on as if it
had not been ordered, and the scheduler hears why with the output of that step (draft_work.py names the attributes). With
asynchronous scheduling that is after it scheduled the next step. Two errors are raised again, which ends the engine and Serve
replaces it: with several ranks, since one that fails alone leaves the others in a collective; and one after which the device's
context is unusable.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import structlog
import torch
from vllm.v1.outputs import AsyncModelRunnerOutput

from nightjar.cluster.telemetry.logs import log_plain_tracebacks

log = structlog.get_logger(__name__)

MAX_REASON_CHARACTERS: Final = 500
_DEVICE_ERRORS: Final = ("CUDA error", "HIP error")


class StepReports:
    """One worker's, of an engine of `num_ranks` workers."""

    def __init__(self, num_ranks: int) -> None:
        log_plain_tracebacks()
        self._num_ranks = num_ranks
        self._reasons: dict[str, str] = {}

    def survive(self, error: Exception, attribute: str, *, what: str, consequence: str) -> None:
        """Keep why `what` broke off for the step's output, under `attribute`; raises `error` where the engine must end."""
        if self._num_ranks > 1 or is_fatal_to_device(error):
            raise error
        self._reasons[attribute] = reason = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        log.error("optional_work_failed", what=what, error=reason, consequence=consequence, exc_info=error)

    def attached(self, output: Any) -> Any:
        """The step's output (None: it is still to come) with all that broke off since the last one."""
        if not self._reasons or output is None:
            return output
        reasons, self._reasons = self._reasons, {}
        if not isinstance(output, AsyncModelRunnerOutput):
            return _with(output, reasons)
        # Taken from the device later (asynchronous scheduling, and runner V2 always); each step has its own.
        get_output = output.get_output
        output.get_output = lambda: _with(get_output(), reasons)
        return output


def is_fatal_to_device(error: BaseException) -> bool:
    """Whether nothing can run on the device any more. Running out of memory is not: torch's allocator raises it before any launch.

    >>> is_fatal_to_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    True
    >>> is_fatal_to_device(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    False
    """
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_ERRORS)
    ):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_fatal_to_device(cause)


def _with(output: Any, reasons: dict[str, str]) -> Any:
    output = copy.copy(output)  # vLLM's empty output is one object for all steps
    for attribute, reason in reasons.items():
        setattr(output, attribute, reason)
    return output
