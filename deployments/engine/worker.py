"""The workers: vLLM's own, with a draft model that obeys the scheduler, bound to the life of their engine core.

The drafter is replaced before its weights load. A step's orders for it come with the step (draft_work.py). vLLM drafts
nothing at all, and hands zeros out as drafts, in every step where one row is near the length limit; the scheduler trims such a
row's drafts by itself, so ours drafts for the others.

The CPU worker also mends a fault of vLLM's CPU build: there `rejection_sampler.expand_batch_to_tokens` returns uninitialised
memory, because its kernel stand-in writes into a converted copy of the output. Under speculation every batch that holds a
sampled request is then wrong, its greedy rows as well. It puts a plain torch version in its place, in its own process only; GPU
kernels are not affected. Fails open: on a vLLM where the fault is mended the replacement computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine.draft_work import WORK_ATTRIBUTE
from nightjar.deployments.engine.drafter import SteeredDraftModelProposer
from nightjar.deployments.engine.process_guard import end_with_replica


class SteeredGPUWorker(Worker):
    """For `worker_cls` on GPU with model runner V1. Never run on a GPU."""

    def init_device(self) -> None:
        """As vLLM's, then put our drafter in place of a draft model's and bind this process to its engine core and replica."""
        super().init_device()
        self.nightjar_drafter = install_drafter(self.model_runner)
        end_with_replica(and_parent=True)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, after handing the step's orders to the drafter."""
        if self.nightjar_drafter is not None:
            self.nightjar_drafter.work = getattr(scheduler_output, WORK_ATTRIBUTE, None)
        return super().execute_model(scheduler_output)


class SteeredCPUWorker(SteeredGPUWorker, CPUWorker):
    """For `worker_cls` on CPU."""

    def init_device(self) -> None:
        """As above, and mend the sampler."""
        super().init_device()
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def install_drafter(runner: Any) -> SteeredDraftModelProposer | None:
    """Replace the runner's separate draft model, before it loads; None where there is none that can sleep."""
    speculative = runner.speculative_config
    if speculative is None or not speculative.uses_draft_model() or speculative.parallel_drafting:
        return None
    drafter = runner.drafter = SteeredDraftModelProposer(runner.vllm_config, runner.device, runner)
    if runner.effective_drafter_max_model_len >= runner.max_model_len:
        runner._input_fits_in_drafter = lambda common_attn_metadata: common_attn_metadata is not None
    return drafter


def expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """Repeat each request's value for each of its tokens, with `replace_from` turned into `replace_to`.

    `cu_num_tokens` holds running totals of tokens, the last of which is `num_tokens` (vLLM's signature and meaning).

    >>> expand_batch_to_tokens(torch.tensor([0.0, 0.5]), torch.tensor([2, 3]), 3, replace_to=1).tolist()
    [1.0, 1.0, 0.5]
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = torch.repeat_interleave(x, counts.long(), output_size=num_tokens)
    return expanded.masked_fill_(expanded == replace_from, replace_to)
