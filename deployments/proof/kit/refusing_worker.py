"""A worker that takes memory and then refuses to start, as a steered engine could: to see the engine fail open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch
from vllm.platforms import current_platform

from nightjar.deployments.engine.worker.base import SteeredWorkerMixin
from nightjar.deployments.proof.kit.phases.failing_open import MARKER_VARIABLE

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

REFUSAL: Final = "this worker refuses to start, so that the engine is seen to fail open"
TAKEN_BYTES: Final = 1 << 30


class RefusingWorker(SteeredWorkerMixin, Worker):
    """For `worker_cls`, on either model runner."""

    def init_device(self) -> None:
        """Take a gibibyte of the device and refuse."""
        super().init_device()
        self.taken = torch.empty(TAKEN_BYTES if not current_platform.is_cpu() else 1, dtype=torch.uint8, device=self.device)
        Path(os.environ[MARKER_VARIABLE]).touch()
        raise RuntimeError(REFUSAL)
