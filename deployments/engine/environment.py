"""What a vLLM engine needs in its environment before its processes start, as a pure function of facts.

On CPU three of these decide whether speculation can pay at all: Intel's OpenMP preloaded (drafting is several times slower
without), one pinned core per engine (two threads collapse as soon as anything else runs), and none of the cores "reserved".
What the user set is never overridden, so every value here can be set otherwise in `runtime_env.env_vars`; a missing library
costs speed, not service.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPLICA_VARIABLE: Final = "NIGHTJAR_REPLICA"
"""Which process an engine's processes belong to (process_guard.py)."""
CORES_VARIABLE: Final = "VLLM_CPU_OMP_THREADS_BIND"
ENGINE_FOLDER_VARIABLE: Final = "NIGHTJAR_ENGINE_FOLDER"
SOCKETS_VARIABLE: Final = "VLLM_RPC_BASE_PATH"
"""vLLM's: where the sockets between an engine's processes lie."""
RAY_ADDRESS_VARIABLE: Final = "RAY_ADDRESS"
"""Ray's: which cluster a process joins that is none of its workers."""
_OF_THIS_PROCESS: Final = (REPLICA_VARIABLE, ENGINE_FOLDER_VARIABLE, RAY_ADDRESS_VARIABLE)
"""Inherited, these would name another process, whose end would be this engine's, or another cluster."""
DEFAULT_CPU_KV_CACHE_GIB: Final = 2
_SOCKET_NAME_BYTES: Final = 36
"""vLLM names its sockets with UUIDs."""
_MAX_SOCKET_PATH_BYTES: Final = 107
"""<linux/un.h>"""
_OPENMP_LIBRARIES: Final = ("libiomp", "libomp", "libgomp")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the environment of one engine depends on."""

    on_cpu: bool
    replica: str  # its token (process_guard.py), empty where it has none
    local_rank: int  # of this replica among the deployment's replicas on this node
    cores_per_engine: int  # 0: cores, threads and KV cache are left to vLLM
    allowed_cores: tuple[int, ...]  # cores this process may run on
    openmp_library: str = ""  # path of libiomp5.so, empty where there is none
    num_workers: int = 1  # processes of an engine core that run the model: tensor x pipeline parallel size
    num_ranks: int = 1  # engine cores, a rank of data parallelism each
    models_are_local: bool = False  # target and draft are folders, no hub is needed
    kv_cache_is_sized: bool = False  # the engine arguments size the KV cache themselves
    engine_folder: str = ""  # of what must not outlive the engine (engine_folder.py), empty where there is none
    claimed_cores: tuple[int, ...] = ()  # that no other engine of the node needs (launch.py); empty: counted by local rank
    ray_address: str = ""  # of the cluster that this process works for, empty where it works for none


def engine_environment(facts: HostFacts) -> dict[str, str]:
    """Variables to set before the engine's processes start, where the user has not set them."""
    values = {
        REPLICA_VARIABLE: facts.replica,  # engine processes leave when this process does
        ENGINE_FOLDER_VARIABLE: facts.engine_folder,
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # Ray's worker has threads; a fork of it may deadlock
    }
    if facts.ray_address:
        # vLLM sets it where it chooses "spawn" itself (0.32, utils/system_utils.py); without it an engine core that needs Ray's
        # executor starts a Ray of its own.
        values[RAY_ADDRESS_VARIABLE] = facts.ray_address
    if facts.models_are_local:
        values["HF_HUB_OFFLINE"] = "1"
    if facts.engine_folder and len(os.fsencode(facts.engine_folder)) + len("/") + _SOCKET_NAME_BYTES <= _MAX_SOCKET_PATH_BYTES:
        values[SOCKETS_VARIABLE] = facts.engine_folder
    if facts.on_cpu:
        values |= _cpu_environment(facts)
    return values


def pinned_cores(facts: HostFacts) -> tuple[int, ...]:
    """The cores of this replica's engine: those claimed for it, or the next ones by local rank, starting over when they run out."""
    if facts.claimed_cores:
        return facts.claimed_cores
    count, wanted = len(facts.allowed_cores), max(facts.cores_per_engine, facts.num_ranks)
    first = facts.local_rank * wanted
    return tuple(facts.allowed_cores[(first + offset) % count] for offset in range(min(wanted, count)))


def bound_cores(facts: HostFacts) -> str:
    """The same as vLLM takes them: a list for each rank of data parallelism, which share them evenly (ompmultiprocessing.py, 0.32).

    >>> bound_cores(HostFacts(True, "", local_rank=0, cores_per_engine=4, allowed_cores=(0, 1, 2, 3), num_ranks=2))
    '0,1|2,3'
    """
    cores, ranks = pinned_cores(facts), facts.num_ranks
    each = max(len(cores) // ranks, 1)
    shares = (range(rank * each, (rank + 1) * each) for rank in range(ranks))
    return "|".join(",".join(str(cores[number % len(cores)]) for number in share) for share in shares)


def gather_host_facts(*, local_rank: int, cores_per_engine: int, **rest: bool | int | str | tuple[int, ...]) -> HostFacts:
    """Read this machine and process; the caller adds what only it knows."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return HostFacts(
        local_rank=local_rank,
        cores_per_engine=cores_per_engine,
        allowed_cores=tuple(sorted(os.sched_getaffinity(0))),
        openmp_library=str(library) if library.is_file() else "",
        ray_address=_ray_address(),
        **rest,  # type: ignore[arg-type]
    )


def no_gpu_here(root: Path = Path("/")) -> bool:
    """Whether this machine surely has no GPU that Ray would count: neither NVIDIA's nor AMD's driver, nor Windows' below WSL."""
    marks = ("proc/driver/nvidia/gpus", "dev/nvidiactl", "dev/kfd", "dev/dxg")
    return not any((root / mark).exists() for mark in marks)


def is_on_cpu() -> bool:
    """Whether Nightjar's code takes an engine here for one on a CPU: vLLM's platform is a CPU's, for which Ray has no devices.

    The rig's is one with devices (rig/platform.py), and its engines count as on a GPU. Raises ImportError without vLLM.
    """
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu()) and not current_platform.ray_device_key


def apply_environment(values: Mapping[str, str], environ: MutableMapping[str, str]) -> dict[str, str]:
    """Set what is not set yet, and what names this process; preloaded libraries are added to those that the user preloads.

    Returns what was set.
    """
    applied = {}
    for name, value in values.items():
        present = environ.get(name, "")
        if not present or name in _OF_THIS_PROCESS:
            applied[name] = value
        elif name == "LD_PRELOAD" and not any(library in present for library in _OPENMP_LIBRARIES):
            applied[name] = f"{present}:{value}"
    environ.update(applied)
    return applied


def _ray_address() -> str:
    """Of the cluster that this process is of: one that has not imported Ray is of none, and does not import it for this."""
    ray: Any = sys.modules.get("ray")
    return str(ray.get_runtime_context().gcs_address) if ray is not None and ray.is_initialized() else ""


def _cpu_environment(facts: HostFacts) -> dict[str, str]:
    values = {"LD_PRELOAD": facts.openmp_library} if facts.openmp_library else {}
    if not facts.cores_per_engine:
        return values
    values |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "OMP_NUM_THREADS": "1"}
    if facts.num_workers == 1 and facts.allowed_cores:
        values[CORES_VARIABLE] = bound_cores(facts)
    if not facts.kv_cache_is_sized:
        values["VLLM_CPU_KVCACHE_SPACE"] = str(DEFAULT_CPU_KV_CACHE_GIB)
    return values
