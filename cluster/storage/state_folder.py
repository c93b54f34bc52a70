"""The policy's store where there is no Ray: a folder that one process holds.

A value is a file, replaced as a whole, so that a process that is killed, or a disk that is full, leaves the value before. One
value is written at a time, and one that a newer value has overtaken, on a slow disk, is left out. The folder is locked for as long
as its process lives: two policies that wrote over each other would each lose what it learned. The holder's mark stands in the
lock's file, so that one whose lock was taken all the same (the file was deleted, or the file system keeps no locks between two
machines) can see it, and then writes no more. Fails as StateFolderError where it cannot be had, in words, and as StoreError where a
value cannot be read or written.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
import uuid
from pathlib import Path
from typing import Final, Self

from nightjar.cluster.storage.checkpoint import STORE_TIMEOUT_S, StoreError, called_in_time

_LOCK: Final = "lock"
_NEW: Final = ".new"
"""Ends the name of a file that is to replace another; its writer's mark stands before it."""
_MARK_BYTES: Final = 32


class StateFolderError(RuntimeError):
    """A folder that this process cannot have. The message names it, why, and what to do; `is_held`: another process has it."""

    def __init__(self, message: str, *, is_held: bool = False) -> None:
        super().__init__(message)
        self.is_held = is_held


class StateFolder:
    """A locked folder with its values. `close` gives it back; so does the end of the process, however it comes."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._name = uuid.uuid4().hex
        self._mark = _marked(lock, self._name)
        self._lost = ""
        self._writing = threading.Lock()
        self._numbers = itertools.count()
        self._newest = dict[Path, int]()

    @classmethod
    def take(cls, path: Path) -> Self:
        """Make the folder where there is none, and lock it. A `~` is the user's home. Raises StateFolderError."""
        try:
            path = path.expanduser()
        except RuntimeError as error:
            raise StateFolderError(
                f"state folder {path}: no home folder is known ({error}); set HOME or name another one"
            ) from error
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateFolderError(f"state folder {path}: cannot be used ({error}); name another one") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            words = f"state folder {path}: another policy holds it; name one for each policy"
            raise StateFolderError(words, is_held=True) from error
        except OSError as error:
            os.close(lock)
            words = f"state folder {path}: its file system keeps no locks ({error}); name one on another"
            raise StateFolderError(words) from error
        for cut in path.glob(f"*{_NEW}"):  # by the kill of a holder before
            with contextlib.suppress(OSError):
                cut.unlink()
        return cls(path, lock)

    def close(self) -> None:
        """Give the folder back. What is still being written is left out."""
        self._newest.clear()
        os.close(self._lock)

    def why_lost(self) -> str:
        """Why another policy may hold the folder by now; empty while none does, and where the disk does not tell. Blocks."""
        if not self._lost:
            with contextlib.suppress(OSError):
                self._lost = self._seen()
        return self._lost

    def _seen(self) -> str:
        file = self.path / _LOCK
        try:
            mark = file.read_bytes()[:_MARK_BYTES]
        except FileNotFoundError:
            return f"state folder {self.path}: its lock is gone, so that another policy may hold it"
        return "" if mark == self._mark else f"state folder {self.path}: another policy holds it now"

    async def get(self, key: str) -> bytes | None:
        """See KeyValueStore."""
        return await called_in_time(key, _read, self._file(key))

    async def put(self, key: str, value: bytes) -> None:
        """See KeyValueStore."""
        if self._lost:
            raise StoreError(self._lost)
        file = self._file(key)
        number = self._newest[file] = next(self._numbers)
        await called_in_time(key, self._replace, file, value, number)

    def _file(self, key: str) -> Path:
        return self.path / key.replace(":", ".")

    def _replace(self, file: Path, value: bytes, number: int) -> None:
        """In a thread, which goes on where its caller was cancelled or gave up."""
        if not self._writing.acquire(timeout=STORE_TIMEOUT_S):
            raise OSError("the write before it has not ended")
        new = file.with_name(f"{file.name}.{self._name}{_NEW}")
        try:
            with new.open("wb") as opened:
                opened.write(value)
                opened.flush()
                os.fsync(opened.fileno())
            if lost := self.why_lost():
                raise StoreError(lost)
            if self._newest.get(file) == number:
                new.replace(file)
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            self._writing.release()


def _marked(lock: int, name: str) -> bytes:
    """The mark of this holder. On a full disk, where no holder before has written one, it is empty."""
    with contextlib.suppress(OSError):
        os.pwrite(lock, name.encode(), 0)
    return os.pread(lock, _MARK_BYTES, 0)


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
