"""The processes of a replica's engine: which they are, their end, and the memory that they give back.

A replica starts an engine core, and the core starts workers. They are processes below the replica, but for the workers of vLLM's
Ray executor: those are children of Ray's raylet, and the core owns them as Ray's driver. Each guarded process notes itself in the
engine's folder (process_guard.py), so the workers of this node are found, and killed, as certainly as the processes below. On
another node Ray alone can end a worker, and does so when its driver has ended (Ray 2.60, driver and worker on one node: below a
second for workers that were idle, in a native call, or stopped). Ray hands a worker's GPU out again up to 0.3 s before that process
has ended, so on this node its end is waited for. Fails open: waits are bounded, and what cannot be looked at is not waited for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from nightjar.deployments.engine.process_guard import descendants, is_resource_tracker, noted_processes

PROCESSES_END_WITHIN_S: Final = 30.0
"""Then they are killed."""
KILLED_END_WITHIN_S: Final = 10.0
"""A killed process ends only when the driver has taken its GPU memory back."""
MEMORY_SETTLES_WITHIN_S: Final = 20.0
STILL_FALLING_BYTES: Final = 64 << 20
"""Per look at the devices' memory: less than this is other processes' noise."""
LOOK_PERIOD_S: Final = 0.5

log = structlog.get_logger(__name__)


def engine_pids(folder: Path | None = None) -> list[int]:
    """Of the processes below this one, without Python's own helper, and of those noted in the engine's `folder`."""
    noted = [] if folder is None else noted_processes(folder)
    return list(dict.fromkeys([*(pid for pid in descendants() if not is_resource_tracker(pid)), *noted]))


def kill_engine(folder: Path | None = None) -> list[int]:
    """Kill the engine's processes on this node, Ray's workers among them; return their pids.

    By SIGKILL: a stopped process ends of nothing less.
    """
    noted = [] if folder is None else noted_processes(folder)
    pids = list(dict.fromkeys([*descendants(), *noted]))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def device_bytes_in_use() -> int | None:
    """Of all NVIDIA devices of the machine, by NVML, which needs no CUDA context of this process; None without it.

    vLLM brings the binding (0.32, vllm/third_party/pynvml.py). Never run on a GPU.
    """
    try:
        nvml: Any = importlib.import_module("vllm.third_party.pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no NVIDIA driver, or a vLLM that brings no binding
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles) if handles else None
    except Exception:  # noqa: BLE001 - as above
        return None
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class Processes:
    """The engine's processes on this node, and the memory that devices have in use; tests pass their own.

    pids        those of engines that run or end now
    used_bytes  of all devices together; None where that cannot be asked
    """

    pids: Callable[[], Collection[int]] = engine_pids
    used_bytes: Callable[[], int | None] = device_bytes_in_use
    kill: Callable[[int, int], None] = os.kill
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait_for_end(self, before: Collection[int]) -> None:
        """Until all that began after `before` was taken has ended; what has not in time is killed, and its end waited for."""
        if left := self._wait_until_ended(before, PROCESSES_END_WITHIN_S):
            log.warning("refused_engine_killed", pids=sorted(left))
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    self.kill(pid, signal.SIGKILL)
            if left := self._wait_until_ended(before, KILLED_END_WITHIN_S):
                log.warning("killed_engine_lives", pids=sorted(left), consequence="the next engine may find too little memory")

    def wait_for_memory(self) -> None:
        """Until the devices' memory in use falls no further."""
        deadline_s = self.clock() + MEMORY_SETTLES_WITHIN_S
        used = self.used_bytes()
        while used is not None and self.clock() < deadline_s:
            self.sleep(LOOK_PERIOD_S)
            now = self.used_bytes()
            if now is None or used - now < STILL_FALLING_BYTES:
                return
            used = now

    def _wait_until_ended(self, before: Collection[int], within_s: float) -> set[int]:
        """What is left then."""
        deadline_s = self.clock() + within_s
        while (left := set(self.pids()) - set(before)) and self.clock() < deadline_s:
            self.sleep(LOOK_PERIOD_S)
        return left
