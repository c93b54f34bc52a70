"""vLLM's CPU platform, with asynchronous scheduling as VllmConfig decided it, which is how a GPU has it."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform


class AsyncCPUPlatform(CpuPlatform):
    """vLLM 0.32, CpuPlatform.check_and_update_config: "async scheduling is not required on CPU"."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """As vLLM's, but for the one field."""
        decided = vllm_config.scheduler_config.async_scheduling
        super().check_and_update_config(vllm_config)
        vllm_config.scheduler_config.async_scheduling = decided
