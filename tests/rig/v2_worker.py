"""The workers of worker.py on model runner V2. Imports what only vLLM 0.32 and newer have."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from nightjar.deployments.engine.worker.v2 import SteeredV2Mixin
from tests.rig.worker import OnMappedDevice


class SteeredV2CPUWorker(SteeredV2Mixin, CPUWorker):
    """For `worker_cls` on the rig's runner V2."""


class MappedMemoryV2Worker(OnMappedDevice, SteeredV2CPUWorker):
    """For `worker_cls` on the rig's runner V2, where a draft lends its memory."""
