"""The files of one engine's processes, which a killed engine would leave behind, and their removal.

vLLM's processes talk over socket files and shared memory, and Intel's OpenMP keeps a small file per process. All of them go only
with an orderly end. Python's resource tracker removes the shared memory of processes that crash, but is killed together with a
hung engine, and then two files of 400 MB stay in /dev/shm (memory in use: what was written to them). Each replica therefore has
its engine's sockets in a folder of its own, where it also notes the rest, and removes everything when it ends. One that was itself
killed cannot; the next replica on its node does, which tells a dead owner by the lock that it no longer holds.
A worker leaves word there of a head that runs at K = 0 after all (`note_head`).
Fails open: what cannot be noted or removed stays, and a replica without a folder has its sockets where vLLM puts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final

import structlog

from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE, SOCKETS_VARIABLE

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
_PREFIX: Final = "nightjar-engine-"
_PREFIX_UNLOCKED: Final = "nightjar-new-"
_NOTES: Final = "files.json"
_HEAD_PREFIX: Final = "head-"

log = structlog.get_logger(__name__)


class EngineFolder:
    """One replica's. It is locked for as long as this object, or else this process, lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def note(self, pids: Iterable[int]) -> None:
        """Remember which files the processes of a running engine use outside this folder."""
        mapped = {pid: names for pid in pids if (names := _shared_memory_of(pid))}
        notes = {"pids": sorted(mapped), "shared_memory": sorted(set().union(*mapped.values()))}
        with _failing_open(self.path):
            (self.path / _NOTES).write_text(json.dumps(notes))

    def remove(self) -> None:
        """Remove the folder and what was noted, of processes that have ended. Does nothing the second time."""
        if self._lock < 0:
            return
        _remove(self.path)
        os.close(self._lock)
        self._lock = -1


def make_engine_folder(parent: Path | None = None) -> EngineFolder | None:
    """Remove the folders of dead replicas below `parent` (None: the folder for temporary files) and make this one's.

    None where that fails.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_dead(parent)
    try:
        new = Path(tempfile.mkdtemp(prefix=_PREFIX_UNLOCKED, dir=parent))
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locked before it has a name that others look at.
        return EngineFolder(new.rename(new.with_name(new.name.replace(_PREFIX_UNLOCKED, _PREFIX, 1))), lock)
    except OSError as error:
        log.warning("engine_folder_failed", path=str(parent), error=str(error))
        return None


def remove_with_engine(file: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Called in an engine process that uses `file`: have it removed with the folder of its engine, which the environment names."""
    if folder := environment.get(ENGINE_FOLDER_VARIABLE):
        with _failing_open(file):
            (Path(folder) / file.name).symlink_to(file)


def leave_absent_folder(environ: MutableMapping[str, str] = os.environ) -> None:
    """Called in an engine process: forget the folder that the environment names where it is not there.

    vLLM's Ray executor copies the environment to workers on other nodes. Their sockets then lie where vLLM puts them.
    """
    folder = environ.get(ENGINE_FOLDER_VARIABLE, "")
    if folder and not os.access(folder, os.W_OK | os.X_OK):
        for name in (ENGINE_FOLDER_VARIABLE, SOCKETS_VARIABLE):
            if environ.get(name) == folder:
                del environ[name]


def folders_beside(folder: Path) -> list[Path]:
    """The folders of this user's other engines on the node that somebody holds: those of dead replicas are removed first."""
    remove_dead(folder.parent)
    found = []
    for path in sorted(folder.parent.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # just gone
            if path != folder and path.stat().st_uid == os.getuid():
                found.append(path)
    return found


def remove_dead(parent: Path) -> None:
    """Remove the folders that no process holds, and what was noted in them."""
    for path in sorted(parent.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # another user's, held, or just gone
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
            finally:
                os.close(lock)


def _remove(path: Path) -> None:
    with _failing_open(path):
        notes = path / _NOTES
        if notes.is_file():
            _remove_noted(**json.loads(notes.read_text()))
    with _failing_open(path):
        for file in path.iterdir():
            if file.is_symlink():
                file.readlink().unlink(missing_ok=True)
    with _failing_open(path):
        shutil.rmtree(path)


def _remove_noted(pids: list[int], shared_memory: list[str]) -> None:
    """Names of shared memory are random, but a pid comes again: a process that uses none of the memory is not the one noted."""
    used = {pid: _shared_memory_of(pid) & set(shared_memory) for pid in pids}
    names = set(shared_memory).difference(*used.values())
    names |= {f"__KMP_REGISTERED_LIB_{pid}_{os.getuid()}" for pid in pids if not used[pid]}  # LLVM OpenMP, kmp_runtime.cpp
    for name in names:
        (SHARED_MEMORY / Path(name).name).unlink(missing_ok=True)


def _shared_memory_of(pid: int) -> set[str]:
    """Names of the shared memory that a process has mapped and that others can still open; none once it has ended.

    Told by inode: a semaphore is mapped under the name that it had while it was made.
    """
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    inodes = {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
    with os.scandir(SHARED_MEMORY) as entries:
        return {entry.name for entry in entries if entry.inode() in inodes}


@contextlib.contextmanager
def _failing_open(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("engine_folder_failed", path=str(path), error=str(error))


def note_head(reason: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave word why a loaded head runs at K = 0, if the process belongs to a replica's engine. Raises nothing."""
    if folder := environ.get(ENGINE_FOLDER_VARIABLE):
        with contextlib.suppress(OSError):
            (Path(folder) / f"{_HEAD_PREFIX}{os.getpid()}.txt").write_text(reason, encoding="utf-8")


def noted_head(folder: Path) -> str:
    """The reason, which is the same on every rank; empty where the head writes its KV alone, or no note was left."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for file in sorted(folder.glob(f"{_HEAD_PREFIX}*.txt")):
            return file.read_text(encoding="utf-8")
    return ""
