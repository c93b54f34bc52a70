"""The worker on CPU: v1.py's, on vLLM's CPU worker, with a mended sampler.

vLLM's CPU build has a fault: `rejection_sampler.expand_batch_to_tokens` returns uninitialised memory, because its kernel stand-in
writes into a converted copy of the output. Under speculation every batch that holds a sampled request is then wrong, its greedy
rows as well. This puts a plain torch version in its place, in its own process only; GPU kernels are not affected. Fails open: on a
vLLM where the fault is mended the replacement computes the same.

A module of its own, because importing vLLM's CPU worker replaces torch.cuda's events and streams for the whole process.
"""

from __future__ import annotations

import torch
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.cpu_worker import CPUWorker

from nightjar.deployments.engine.memory.cpu import CPUDraftMemory, trim_heap
from nightjar.deployments.engine.memory.interface import DraftMemory
from nightjar.deployments.engine.worker.v1 import SteeredGPUWorker


class SteeredCPUWorker(SteeredGPUWorker, CPUWorker):
    """For `worker_cls` on CPU."""

    def init_device(self) -> None:
        """As the GPU's, and mend the sampler."""
        super().init_device()
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """As vLLM's, then without the holes that packing the weights left in the heap."""
        super().load_model(load_dummy_weights=load_dummy_weights)
        trim_heap()

    def make_draft_memory(self) -> DraftMemory:
        """The draft's memory is the host's."""
        return CPUDraftMemory()


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
