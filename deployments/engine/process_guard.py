"""Engine processes end with the Serve replica they belong to, also when it is killed with SIGKILL.

vLLM's engine core and workers are processes of their own; a replica that is killed cannot stop them, and one left behind keeps a
GPU's or a core's memory. Each process therefore holds a pidfd of the replica and kills itself when that has ended. The replica is
named by a token in the environment: its pid, when that process started, and where such a pid means anything (the pid namespace,
and the boot of its kernel).

The guard kills on a certainty alone and fails open. vLLM's Ray executor copies the environment into workers that are no children
of the replica and may run on another node: a token of another namespace or node says nothing there, and nothing is watched (Ray
ends a worker with its owner). In the same namespace a process that lives and started when the token says is the replica, parent or
not. Where no process has that pid, or one that started at another time, the replica has ended, and this process does, too. What a
sandbox refuses (no pidfd, no /proc) leaves the process unwatched.

The thread that watches cannot run while its process is stopped (SIGSTOP) or a native call holds the interpreter; so a process whose
parent is watched also has the kernel kill it.

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
from typing import Final, NamedTuple

import structlog

from nightjar.deployments.engine.engine_folder import leave_absent_folder
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE, REPLICA_VARIABLE

_NOTE_PREFIX: Final = "process-"
"""Of the files in an engine's folder that hold the token of one of its processes."""
_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_START_TIME_FIELD: Final = 22
"""Of /proc/PID/stat, proc_pid_stat(5): clock ticks from boot to the start of the process."""

log = structlog.get_logger(__name__)


class ProcessToken(NamedTuple):
    """What tells one process from all others, on any node and at any time."""

    pid: int
    start_ticks: int
    pid_namespace: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessToken:
        """Of a process of this namespace. Raises OSError where it has ended, or /proc does not tell."""
        return cls(pid, _start_ticks(pid), Path("/proc/self/ns/pid").stat().st_ino, _boot_id())

    @classmethod
    def parse(cls, text: str) -> ProcessToken:
        """The inverse of `str`. Raises ValueError for what is no token."""
        numbers = text.split(":")
        if len(numbers) != len(cls._fields) or not all(number.isdecimal() for number in numbers[:3]) or not int(numbers[0]):
            raise ValueError(
                f"{REPLICA_VARIABLE} is {text!r}, allowed is pid:start:namespace:boot, as a replica sets it; unset it "
                "to run an engine by hand"
            )
        return cls(int(numbers[0]), int(numbers[1]), int(numbers[2]), numbers[3])

    def __str__(self) -> str:
        return ":".join(map(str, self))

    def is_of_this_namespace(self) -> bool:
        """Whether its pid means the same process here. Raises OSError where that cannot be known."""
        return (self.pid_namespace, self.boot_id) == (Path("/proc/self/ns/pid").stat().st_ino, _boot_id())


def own_token() -> str:
    """Of this process, for its engine's environment; empty where /proc does not tell, and nothing is watched then."""
    try:
        return str(ProcessToken.of(os.getpid()))
    except OSError:
        return ""


def end_with_replica(environment: Mapping[str, str] = os.environ, *, and_parent: bool = False) -> bool:
    """Kill this process (SIGKILL) as soon as the replica that NIGHTJAR_REPLICA names has ended; say whether it is watched.

    A watched process is noted in the folder of its engine, where there is one. With `and_parent` also when the parent process
    ended, where that one is below the replica (a worker's is its engine core). Raises ValueError for a variable that is no token.
    """
    variable = environment.get(REPLICA_VARIABLE, "")
    if not variable:
        return False
    replica = ProcessToken.parse(variable)
    poll = select.poll()
    try:
        own = ProcessToken.of(os.getpid())
        if replica == own or not replica.is_of_this_namespace() or not _watch(replica, poll):
            return False
    except OSError:
        return False
    parent_pid = os.getppid()
    if parent_pid == replica.pid or (and_parent and replica.pid in _ancestors(parent_pid)):
        _end_with_parent()
        with contextlib.suppress(OSError):  # it has just ended, and the kernel knows
            poll.register(os.pidfd_open(parent_pid), select.POLLIN)
    if folder := environment.get(ENGINE_FOLDER_VARIABLE):
        with contextlib.suppress(OSError):
            (Path(folder) / f"{_NOTE_PREFIX}{own.pid}").write_text(str(own))
    threading.Thread(target=_wait, args=(poll,), name="nightjar-process-guard", daemon=True).start()
    return True


def guard_vllm_process(*, and_parent: bool = False) -> None:
    """What vLLM calls in each of its processes; where no replica started it, nothing happens. Raises nothing."""
    leave_absent_folder()
    try:
        end_with_replica(and_parent=and_parent)
    except ValueError as error:
        log.warning("process_not_guarded", reason=str(error))


def noted_processes(folder: Path) -> list[int]:
    """Pids of the processes of this node that were noted in an engine's folder and still live, whoever started them."""
    found = []
    for note in folder.glob(f"{_NOTE_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            token = ProcessToken.parse(note.read_text())
            if token.is_of_this_namespace() and _start_ticks(token.pid) == token.start_ticks:
                found.append(token.pid)
    return found


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


def _watch(replica: ProcessToken, poll: select.poll) -> bool:
    """Have `poll` wait for the replica's end, or end at once if it has ended; False where neither is certain. Raises OSError."""
    try:
        descriptor = os.pidfd_open(replica.pid)
    except ProcessLookupError:
        _end()
        return False
    poll.register(descriptor, select.POLLIN)
    # Read after the descriptor was opened: if the start time is the replica's, so is the descriptor.
    if _start_ticks(replica.pid) != replica.start_ticks:
        _end()
    return True


def _wait(poll: select.poll) -> None:
    poll.poll()
    _end()


def _end() -> None:
    # Nothing is logged: standard output is a pipe to the process that is gone, where writing fails or blocks.
    os.kill(os.getpid(), signal.SIGKILL)


def _ancestors(pid: int) -> set[int]:
    """This pid, its parent's, its parent's parent's and so on, as far as they live."""
    ancestors = set()
    while pid > 0:
        ancestors.add(pid)
        pid = _parent(pid)
    return ancestors


def _parent(pid: int) -> int:
    """The pid of a process's parent; 0 if it has none, has ended or may not be looked at."""
    try:
        return _stat_field(pid, 4)
    except OSError:
        return 0


def _start_ticks(pid: int) -> int:
    return _stat_field(pid, _START_TIME_FIELD)


def _stat_field(pid: int, field: int) -> int:
    """A number of /proc/PID/stat, counted from 1 as proc_pid_stat(5) does. Raises OSError."""
    status = Path(f"/proc/{pid}/stat").read_bytes()
    # The second field is the command's name in parentheses, which may hold any bytes.
    return int(status.rpartition(b")")[2].split()[field - 3])


def _boot_id() -> str:
    """Of the kernel, anew at each boot: the first pid namespace has the same number on every machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
