"""Nightjar's scheduler classes: vLLM's own, with K chosen before each step and every step counted.

vLLM imports this module inside the engine-core process, because `scheduler_cls` names it; that import also adds the
control method to EngineCore and ties the process to its Serve replica. The classes override three methods and decide
nothing themselves (step_loop.py). `_update_after_schedule` is where vLLM ends `schedule()`: what we write there to
`num_spec_tokens_to_schedule` is what the worker drafts. AsyncScheduler's own override sizes its placeholders from that field,
so ours writes before it. Fails open: see StepLoop.
"""

from __future__ import annotations

import time
from typing import Any, Final

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from nightjar.deployments.engine.control import register_control_method
from nightjar.deployments.engine.process_guard import end_with_replica
from nightjar.deployments.engine.step_loop import StepLoop

SETTLE_STEPS: Final = 2
"""A step verifies what the step before it drafted, so from the second step on its time belongs to one K."""
ASYNC_SETTLE_STEPS: Final = 3
"""Under async scheduling a step's output also waits for the drafting of the step before it."""
DRAFTERS_THAT_MAY_SKIP_ROWS: Final = frozenset({"ngram", "ngram_gpu"})


class _Steered:
    """The overrides, for either of vLLM's schedulers."""

    settle_steps = SETTLE_STEPS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.vllm_config.speculative_config  # type: ignore[attr-defined]
        self.nightjar = StepLoop(
            max_num_speculative_tokens=self.num_spec_tokens,  # type: ignore[attr-defined]
            max_num_seqs=self.max_num_running_reqs,  # type: ignore[attr-defined]
            max_model_len=self.max_model_len,  # type: ignore[attr-defined]
            settle_steps=self.settle_steps,
            drafts_every_row=config is None or config.method not in DRAFTERS_THAT_MAY_SKIP_ROWS,
            clock=time.monotonic,
        )

    def add_request(self, request: Request) -> None:
        """As vLLM's; a request that finds the engine without work starts the step clock anew."""
        if not self.has_unfinished_requests():  # type: ignore[attr-defined]
            self.nightjar.restart_clock()
        super().add_request(request)  # type: ignore[misc]

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        self.nightjar.before_step(scheduler_output, self.requests)  # type: ignore[attr-defined]
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """As vLLM's; counts what the step verified before stop conditions trim it, and the step itself afterwards."""
        verified = self.nightjar.verified(scheduler_output, model_runner_output, self.requests)  # type: ignore[attr-defined]
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        self.nightjar.after_step(scheduler_output, model_runner_output, verified)
        return outputs


class SteeredScheduler(_Steered, Scheduler):
    """For engines without async scheduling (always so on CPU)."""


class SteeredAsyncScheduler(_Steered, AsyncScheduler):
    """For engines with async scheduling (the default on GPU)."""

    settle_steps = ASYNC_SETTLE_STEPS


register_control_method()
end_with_replica()
