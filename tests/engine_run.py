"""Runs a program that starts an engine on a CPU and writes what happened, once a session, whichever worker first needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

ON_A_CPU: Final = {
    "LD_PRELOAD": str(Path(sys.prefix) / "lib" / "libiomp5.so"),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What an engine on a CPU needs in its process's environment."""


def ran_once(
    program: Sequence[str], output: Path, environment: Callable[[], Mapping[str, str]], timeout_s: float
) -> dict[str, Any]:
    """What `python -m PROGRAM OUTPUT` wrote, in an environment that is made where it has to run. Fails with what it printed."""
    with FileLock(f"{output}.lock"):
        if not output.exists():
            command = [sys.executable, "-m", *program, str(output)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False)
            assert done.returncode == 0, f"{' '.join(program)}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    outcome: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return outcome
