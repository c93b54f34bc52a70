"""Engine processes end with the Serve replica they belong to, also when it is killed with SIGKILL.

vLLM's engine core and workers are processes of their own; a replica that is killed can not stop them, and one left behind keeps a
GPU's or a core's memory. Each process therefore holds a pidfd of those it depends on and kills itself when one of them ends.
A replica that died before the watch began is seen as well: its pid is then no ancestor of this process any more, even if
another process got the same number. The thread that watches can not run while its process is stopped (SIGSTOP) or a native call
holds the interpreter; so a process whose parent is watched also has the kernel kill it. Without the environment variable
(somebody runs the engine by hand) nothing is watched.

vLLM itself begins the watch, by an entry point of its group `vllm.general_plugins`, in engines that run nothing else of ours. Our
scheduler and worker begin it once more, for where somebody's VLLM_PLUGINS leaves the entry point out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.environment import REPLICA_PID_VARIABLE

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


def end_with_replica(environment: Mapping[str, str] = os.environ, *, and_parent: bool = False) -> bool:
    """Kill this process (SIGKILL) as soon as the replica named by NIGHTJAR_REPLICA_PID has ended; say whether it is watched.

    With `and_parent` also when the parent process ended (a worker's is its engine core).
    Raises ValueError for a variable that is no process id.
    """
    replica_pid = environment.get(REPLICA_PID_VARIABLE, "")
    if not replica_pid:
        return False
    if not replica_pid.isdecimal():
        raise ValueError(f"{REPLICA_PID_VARIABLE} is {replica_pid!r}, allowed is a process id")
    if int(replica_pid) == os.getpid():
        return False
    watched_pids = {int(replica_pid), os.getppid()} if and_parent else {int(replica_pid)}
    if os.getppid() in watched_pids:
        _end_with_parent()
    poll = select.poll()
    try:
        for pid in watched_pids:
            poll.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        _end()
    if not watched_pids <= _ancestors():
        _end()
    threading.Thread(target=_wait, args=(poll,), name="nightjar-process-guard", daemon=True).start()
    return True


def guard_vllm_process() -> None:
    """What vLLM calls in each of its processes; where no replica started it, nothing happens. Raises nothing."""
    with contextlib.suppress(ValueError):
        end_with_replica()


def kill_descendants() -> list[int]:
    """Kill every process below this one (SIGKILL: a stopped process ends of nothing less); return their pids."""
    pids = descendants()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def descendants() -> list[int]:
    """Pids of the processes below this one, parents before their children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if parent := _parent(int(folder.name)):
            children.setdefault(parent, []).append(int(folder.name))
    pids = list(children.get(os.getpid(), ()))
    for pid in pids:
        pids += children.get(pid, ())
    return pids


def is_resource_tracker(pid: int) -> bool:
    """Whether this is Python's own helper process, which begins with the first engine and ends with this process."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends: in a replica its event loop's, which ends last."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(poll: select.poll) -> None:
    poll.poll()
    _end()


def _end() -> None:
    # Nothing is logged: standard output is a pipe to the process that is gone, where writing fails or blocks.
    os.kill(os.getpid(), signal.SIGKILL)


def _ancestors() -> set[int]:
    """Pids of this process's parent, its parent's parent and so on, as far as they live."""
    ancestors = set()
    pid = os.getppid()
    while pid > 0:
        ancestors.add(pid)
        pid = _parent(pid)
    return ancestors


def _parent(pid: int) -> int:
    """The pid of a process's parent; 0 if it has none, has ended or may not be looked at."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The command's name stands in parentheses and may hold any bytes; the parent's pid is the second field after it.
    return int(status.rpartition(b")")[2].split()[1])
