"""Nightjar's GPU workers on a CPU, of runner V1; those of V2 are in v2_worker.py, since older vLLMs lack what they import.

Those whose draft lends its memory have a GPU's: `memory/cuda.py` over pages of this process (mapped_device.py). The draft's
weights and the KV cache lie on the device, so a step that touches what was released ends the process. For that the CPU build's
packed copies of linear weights are switched off, for target and draft alike: multiplications are torch's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Final

from vllm import _custom_ops
from vllm.model_executor.layers import utils

from nightjar.deployments.engine.memory.cuda import CUDADraftMemory
from nightjar.deployments.engine.memory.interface import DraftMemory
from nightjar.deployments.engine.worker.cpu import SteeredCPUWorker
from tests.rig.mapped_device import MappedDevice

PAGE_BYTES: Final = 4096
"""Tiny models' KV blocks hold no chunk of CUDA's size."""
TOTAL_BYTES: Final = 1 << 30
KV_CACHE_TAG: Final = "kv_cache"


class OnMappedDevice:
    """A draft and a KV cache on a device made of pages. Before a steered worker."""

    def init_device(self) -> None:
        """As the worker's, with a device to allocate on."""
        _custom_ops._supports_onednn = False
        utils.check_cpu_sgl_kernel = lambda *_: False
        self.device_memory = MappedDevice(TOTAL_BYTES, 4 * TOTAL_BYTES, PAGE_BYTES)
        super().init_device()  # type: ignore[misc]  # the worker's

    def make_draft_memory(self) -> DraftMemory:
        """CUDA's."""
        return CUDADraftMemory(SimpleNamespace(enable_cumem_allocator=True, enable_sleep_mode=False), self.device_memory)

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[object]:
        """As on a GPU the allocator is in use for the KV cache (vLLM 0.32, gpu_worker.py)."""
        return self.device_memory.pool(tag) if tag == KV_CACHE_TAG else nullcontext()


class MappedMemoryWorker(OnMappedDevice, SteeredCPUWorker):
    """For `worker_cls` on the rig's runner V1, where a draft lends its memory."""
