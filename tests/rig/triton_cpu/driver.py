"""The driver of a backend whose kernels are interpreted: the device is the CPU, and nothing is launched."""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    """Triton never chooses it by itself; vLLM asks for "cpu" by name."""

    @classmethod
    def is_active(cls) -> bool:
        """Always: there is a CPU."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Raises NotImplementedError: nothing is launched."""
        raise NotImplementedError("the rig's Triton backend launches nothing: set TRITON_INTERPRET=1")

    def get_current_target(self) -> GPUTarget:
        """The CPU, as a target."""
        return GPUTarget("cpu", "interpreted", 1)

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Raises NotImplementedError: interpreted times mean nothing."""
        raise NotImplementedError("the rig times no kernel")
