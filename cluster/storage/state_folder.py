"""The policy's store where there is no Ray: a folder that one process holds.

A value is a file, replaced as a whole, so that a process that is killed, or a disk that is full, leaves the value before. The
folder is locked for as long as its process lives: two policies that wrote over each other would each lose what it learned. Fails
as StateFolderError where it cannot be had, in words, and as StoreError where a value cannot be read or written.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Self

from nightjar.cluster.storage.checkpoint import called_in_time

_LOCK: Final = "lock"


class StateFolderError(RuntimeError):
    """A folder that this process cannot have. The message names it, why, and what to do."""


class StateFolder:
    """A locked folder with its values. `close` gives it back; so does the end of the process, however it comes."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def take(cls, path: Path) -> Self:
        """Make the folder where there is none, and lock it. Raises StateFolderError."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateFolderError(f"state folder {path}: cannot be used ({error}); name another one") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StateFolderError(f"state folder {path}: another policy holds it; name one for each server") from error
        return cls(path, lock)

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._lock)

    async def get(self, key: str) -> bytes | None:
        """See KeyValueStore."""
        return await called_in_time(key, _read, self._file(key))

    async def put(self, key: str, value: bytes) -> None:
        """See KeyValueStore."""
        await called_in_time(key, _replace, self._file(key), value)

    def _file(self, key: str) -> Path:
        return self.path / key.replace(":", ".")


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _replace(file: Path, value: bytes) -> None:
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as opened:
        opened.write(value)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
