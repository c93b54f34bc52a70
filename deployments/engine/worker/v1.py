"""The worker on model runner V1: vLLM's own, with a draft model that obeys the scheduler.

The drafter is replaced before its weights load. A step's orders for it come with the step (draft_work.py). vLLM drafts
nothing at all, and hands zeros out as drafts, in every step where one row is near the length limit; the scheduler trims such a
row's drafts by itself, so ours drafts for the others.

The CPU's is in cpu_worker.py. Nothing that a GPU's worker imports may import vLLM's CPU worker: that replaces torch.cuda's events
and streams for the whole process, after which a GPU engine does not start, or its copies race.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine.memory.interface import DraftMemory
from nightjar.deployments.engine.worker.base import SteeredWorkerMixin
from nightjar.deployments.engine.worker.draft_work import MEMORY_ATTRIBUTE, WORK_ATTRIBUTE
from nightjar.deployments.engine.worker.drafter import SteeredDraftModelProposer
from nightjar.deployments.engine.worker.step_reports import StepReports


class SteeredGPUWorker(SteeredWorkerMixin, Worker):
    """For `worker_cls` on GPU with model runner V1. Never run on a GPU."""

    def init_device(self) -> None:
        """As the mixin's, then put our drafter in place of a draft model's."""
        super().init_device()
        self.nightjar_drafter = install_drafter(self.model_runner, self.reports, self.draft_memory)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, after carrying out the step's orders for the drafter's memory and handing it those for its work."""
        if self.nightjar_drafter is not None:
            self.move_draft(getattr(scheduler_output, MEMORY_ATTRIBUTE, None))
            self.nightjar_drafter.work = getattr(scheduler_output, WORK_ATTRIBUTE, None)
        return self.reports.attached(super().execute_model(scheduler_output))


def install_drafter(runner: Any, reports: StepReports, memory: DraftMemory | None) -> SteeredDraftModelProposer | None:
    """Replace the runner's separate draft model, before it loads; None where there is none that can sleep."""
    speculative = runner.speculative_config
    if speculative is None or not speculative.uses_draft_model():
        return None
    drafter = runner.drafter = SteeredDraftModelProposer(runner.vllm_config, runner.device, runner, reports, memory)
    if runner.effective_drafter_max_model_len >= runner.max_model_len:
        runner._input_fits_in_drafter = lambda common_attn_metadata: common_attn_metadata is not None
    return drafter
