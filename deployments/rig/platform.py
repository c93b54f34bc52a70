"""vLLM's CPU platform as a GPU's: Ray gives it devices, and scheduling is asynchronous where VllmConfig decided so.

Nightjar's code takes an engine on it for one on a GPU (engine/environment.py, is_on_cpu). The workers that such an engine asks for
are a GPU's; the CPU's take their places here, where each of vLLM's platforms chooses its worker.
"""

from __future__ import annotations

import os
from typing import Any, Final

from vllm.platforms.cpu import CpuPlatform

from nightjar.deployments.engine.arguments import ASYNC_SCHEDULER, CPU_WORKER, GPU_WORKER, SCHEDULER, V2_WORKER
from nightjar.deployments.rig.environment import ASYNC_VARIABLE

CPU_WORKERS: Final = {
    GPU_WORKER: CPU_WORKER,
    V2_WORKER: "nightjar.deployments.rig.v2_worker.SteeredV2CPUWorker",
}
"""What stands on a CPU for a worker of ours."""


class RigPlatform(CpuPlatform):
    """Of every process of an engine on the rig."""

    ray_device_key = "GPU"
    """What a worker takes of Ray (vLLM 0.32, v1/executor/ray_executor_v2.py); `ray start --num-gpus` makes such devices."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """As vLLM's, but for the worker and the scheduler; vLLM's says: "async scheduling is not required on CPU"."""
        scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
        decided = scheduler.async_scheduling
        parallel.worker_cls = CPU_WORKERS.get(parallel.worker_cls, parallel.worker_cls)
        is_steered = scheduler.scheduler_cls in {SCHEDULER, ASYNC_SCHEDULER}
        if is_steered and parallel.worker_cls == "auto" and not getattr(vllm_config, "use_v2_model_runner", False):
            parallel.worker_cls = CPU_WORKER  # it mends runner V1's sampler on a CPU
        super().check_and_update_config(vllm_config)
        if os.environ.get(ASYNC_VARIABLE) == "1":
            scheduler.async_scheduling = decided
