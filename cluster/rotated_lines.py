"""Lines in a file that never fills a disk by itself: rotated by size, their number bounded.

Fails open: where a line cannot be written it is lost, the first loss of a row is logged, and its writer goes on. A line that
was torn, as a crash or a full disk leaves it, costs no other line: the next one begins on its own.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import structlog

MAX_FILE_BYTES: Final = 8 << 20
MAX_FILES: Final = 8

log = structlog.get_logger(__name__)


class RotatedLines:
    """`path` is written, `path.1` is the file before it, and so on. One writer; its threads may take turns."""

    def __init__(self, path: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        self._path = path
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._lock = threading.Lock()
        self._losing = False
        self._may_be_torn = True  # a predecessor may have died, or the disk filled, in the middle of a line

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._path

    def begins_a_file(self, line: bytes) -> bool:
        """Whether `line` would be the first of a file, because there is none yet or the present one is full."""
        try:
            return not self._path.exists() or self._is_full(line)
        except OSError:
            return True

    def append(self, line: bytes) -> bool:
        """Append `line`, which holds no newline, rotating before a file would grow past its limit. False where it was lost."""
        whole = line + b"\n"
        try:
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.exists() and self._is_full(line):
                    self._rotate()
                with self._path.open("ab") as file:
                    file.write(b"\n" + whole if self._may_be_torn and file.tell() else whole)
        except OSError as error:
            if not self._losing:
                log.warning("journal_not_written", path=str(self._path), error=str(error))
            self._losing = self._may_be_torn = True
            return False
        self._may_be_torn = False
        if self._losing:
            log.info("journal_written_again", path=str(self._path))
        self._losing = False
        return True

    def _is_full(self, line: bytes) -> bool:
        size = self._path.stat().st_size
        return size > 0 and size + len(line) + 1 > self._max_file_bytes

    def _rotate(self) -> None:
        files = rotated_files(self._path)
        for number, file in reversed(list(enumerate(files))):
            if number + 1 >= self._max_files:
                file.unlink()
            else:
                file.rename(_numbered(self._path, number + 1))


def rotated_files(path: Path) -> list[Path]:
    """The files that were written as `path`, newest first."""
    files = [path] if path.exists() else []
    number = 1
    while (older := _numbered(path, number)).exists():
        files.append(older)
        number += 1
    return files


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path
