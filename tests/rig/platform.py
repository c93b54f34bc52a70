"""vLLM's CPU platform as a GPU's: Ray gives it devices, and where VllmConfig decided so scheduling is asynchronous and models are
compiled in pieces.

Nightjar's code takes an engine on it for one on a GPU (engine/environment.py, is_on_cpu). The workers that such an engine asks for
are a GPU's; the CPU's take their places here, where each of vLLM's platforms chooses its worker.
"""

from __future__ import annotations

import os
from typing import Any, Final

from vllm.platforms.cpu import CpuPlatform

from nightjar.deployments.engine.start.arguments import (
    ASYNC_SCHEDULER,
    CPU_WORKER,
    GPU_WORKER,
    OBEDIENT_WORKERS,
    SCHEDULER,
    V2_WORKER,
)
from tests.rig.environment import ASYNC_VARIABLE

CPU_WORKERS: Final = {
    GPU_WORKER: CPU_WORKER,
    V2_WORKER: "tests.rig.v2_worker.SteeredV2CPUWorker",
}
"""What stands on a CPU for a worker of ours."""
OBEDIENT_WORKERS.append("tests.")


class RigPlatform(CpuPlatform):
    """Of every process of an engine on the rig."""

    ray_device_key = "GPU"
    """What a worker takes of Ray (vLLM 0.32, v1/executor/ray_executor_v2.py); `ray start --num-gpus` makes such devices."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """As vLLM's, but for the worker, the scheduler and the compiler.

        vLLM's says "async scheduling is not required on CPU", and compiles a model whole, where a GPU's is split at its attention
        layers (0.32, CpuPlatform.check_and_update_config). LoRA layers do not compile with the CPU's compiler.
        """
        from vllm.config import CompilationMode

        scheduler, parallel, compilation = vllm_config.scheduler_config, vllm_config.parallel_config, vllm_config.compilation_config
        decided = scheduler.async_scheduling
        in_pieces = compilation.mode == CompilationMode.VLLM_COMPILE and vllm_config.lora_config is None
        parallel.worker_cls = CPU_WORKERS.get(parallel.worker_cls, parallel.worker_cls)
        is_steered = scheduler.scheduler_cls in {SCHEDULER, ASYNC_SCHEDULER}
        if is_steered and parallel.worker_cls == "auto" and not getattr(vllm_config, "use_v2_model_runner", False):
            parallel.worker_cls = CPU_WORKER  # it mends runner V1's sampler on a CPU
        super().check_and_update_config(vllm_config)
        if os.environ.get(ASYNC_VARIABLE) == "1":
            scheduler.async_scheduling = decided
        if in_pieces:
            compilation.mode = CompilationMode.VLLM_COMPILE
            compilation.compile_sizes = compilation.compile_sizes or []  # which vLLM works out where it captures graphs

    @classmethod
    def get_pass_manager_cls(cls) -> str:
        """Of the compiler (vLLM 0.32, compilation/backends.py, VllmBackend)."""
        return f"{__name__}.{pass_manager.__name__}"


def pass_manager() -> Any:
    """vLLM's, without the one pass that names CUDA's operators, which a CPU build lacks: it only saves copies.

    Imported late: vLLM's module asks which platform this is.
    """
    from vllm.compilation.passes.pass_manager import PostGradPassManager
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass

    class StayFunctional(FixFunctionalizationPass):
        def __call__(self, graph: Any) -> None:
            pass

    class CPUPassManager(PostGradPassManager):
        def configure(self, config: Any) -> None:
            super().configure(config)
            self.fix_functionalization = StayFunctional(config)

    return CPUPassManager()
