"""What an engine needs in its process's environment.

Some of it must be there before a process starts (a preloaded OpenMP), so the benchmark starts itself again with it. Every process
of a run shares one core: engines take turns on it, so whatever disturbs the core disturbs all of them alike.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

READY_VARIABLE: Final = "NIGHTJAR_BENCH_CORE"


def pinned_core() -> int:
    """The last core that this process may use: other work begins with the first."""
    return max(os.sched_getaffinity(0))


def restart_pinned() -> None:
    """Start this program again with an engine's environment, on one core; returns where that was done."""
    if os.environ.get(READY_VARIABLE) is not None:
        return
    core = pinned_core()
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    wanted = {
        READY_VARIABLE: str(core),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if library.is_file():
        wanted["LD_PRELOAD"] = str(library)
    os.sched_setaffinity(0, {core})
    os.environ.update(wanted)
    arguments = [sys.executable, "-m", "tests.benchmarks.engine", *sys.argv[1:]]
    os.execv(sys.executable, arguments)


def pinned_to() -> dict[str, str]:
    """The core and the OpenMP of this process, for the summary."""
    return {"core": os.environ.get(READY_VARIABLE, ""), "openmp": Path(os.environ.get("LD_PRELOAD", "")).name}


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: where it does not, that type is many times slower than float32."""
    return not _processor_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def has_matrix_units() -> bool:
    """Whether it multiplies bfloat16 by tiles: then a step is bound by memory up to several times as many rows."""
    return "amx_bf16" in _processor_flags()


def _processor_flags() -> frozenset[str]:
    return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
