"""What an engine process needs in its environment to take the code paths of a GPU on a CPU.

vLLM's CPU build has model runner V2 and asynchronous scheduling in it, and switches both off: the runner wants Triton, for which
the build finds no CPU backend, and its platform says that asynchronous scheduling "is not required on CPU". Neither vLLM nor
Triton is patched from here. A folder on PYTHONPATH looks like two installed distributions, whose entry points vLLM and Triton load
by themselves, in this process's children and theirs: a Triton backend "cpu", with which Triton's interpreter runs the kernels, a
platform that leaves asynchronous scheduling alone, has devices for Ray to give out and puts the CPU's workers in the place of a
GPU's, and a plug-in that mends the interpreter (plugins.py).

What the rig cannot show: CUDA graphs, streams and races. Kernels run one program after another, attention is the CPU's, and
times mean nothing. A process that has imported vllm or triton before it is given this environment stays as it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

Runner = Literal[1, 2]
"""vLLM's model runner, V1 or V2."""

ROOT: Final = str(Path(__file__).parents[2])
"""Of the repository."""
ASYNC_VARIABLE: Final = "NIGHTJAR_RIG_ASYNC"
INTERPRET_VARIABLE: Final = "TRITON_INTERPRET"
_PLUGINS: Final = """[vllm.platform_plugins]
nightjar-rig = tests.rig.plugins:platform

[vllm.general_plugins]
nightjar-rig = tests.rig.plugins:mend_interpreter
"""
_TRITON: Final = """[triton.backends]
cpu = tests.rig.triton_cpu
"""


def rig_environment(
    folder: Path,
    *,
    runner: Runner,
    asynchronous: bool,
    in_one_process: bool = True,
    kv_cache_is_sized: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Variables for a process that is to run an engine on the rig; it and what it starts must have no others of these.

    `folder` takes two small folders that look like installed distributions; they name modules of these tests, so the repository's
    folder comes after them on PYTHONPATH. With `asynchronous` vLLM's own answer holds, which is
    True wherever the drafter allows it; without, the scheduler is synchronous. `in_one_process` keeps scheduler and worker in the
    process that makes the engine. Where its arguments do not size the KV cache (`kv_cache_is_sized`), it gets 1 GiB.
    """
    folders = [_write_distribution(folder / "plugins", "nightjar-rig", _PLUGINS)]
    if runner == 2:
        folders.append(_write_distribution(folder / "triton", "nightjar-rig-triton", _TRITON))
    inherited = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != ROOT]
    values = {
        "PYTHONPATH": os.pathsep.join([*map(str, folders), ROOT, *inherited]),
        ASYNC_VARIABLE: "1" if asynchronous else "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1" if runner == 2 else "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_one_process else "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        INTERPRET_VARIABLE: "1" if runner == 2 else "0",
    }
    if not kv_cache_is_sized:
        values["VLLM_CPU_KVCACHE_SPACE"] = "1"
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file() and "LD_PRELOAD" not in environ:
        values["LD_PRELOAD"] = str(openmp)
    return values


def _write_distribution(folder: Path, name: str, entry_points: str) -> Path:
    """A folder that importlib.metadata takes for an installed distribution of that name."""
    information = folder / f"{name.replace('-', '_')}-1.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (information / "entry_points.txt").write_text(entry_points)
    return folder
