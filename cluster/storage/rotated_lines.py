"""Lines in a file that never fills a disk by itself, rotated by size, their number bounded; and the thread that writes them.

How long that lasts depends on the fleet, so the pace of writing is measured, and `holds_s` says what the files hold at that pace.
Fails open: where a line cannot be written it is lost, the first loss of a row is logged, and its writer goes on. A line that
was torn, as a crash or a full disk leaves it, costs no other line: the next one begins on its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

MAX_FILES: Final = 8
DEFAULT_MIB: Final = 64
MAX_FILE_BYTES: Final = (DEFAULT_MIB << 20) // MAX_FILES
SIZE_VARIABLE: Final = "NIGHTJAR_JOURNAL_MIB"
ALLOWED_MIB: Final = range(16, (1 << 20) + 1)
"""Below it the whole state of a few hundred replicas would not fit into a file any more (recording.LEAST_KEYS_PER_FILE)."""
MEASURED_S: Final = 60.0
"""Seconds of writing after which its pace is known well enough to be told."""

log = structlog.get_logger(__name__)


class RotatedLines:
    """`path` is written, `path.1` is the file before it, and so on. One writer; its threads may take turns.

    What writes belongs into `take`, on the event loop: a thread of its own does it in order, and a slow disk delays nobody. While
    one hangs, at most `most_waiting` pieces of work wait for it, and the rest is left out.
    """

    def __init__(self, path: Path, *, most_waiting: int, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        self._path = path
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=path.stem)
        self._most_waiting = most_waiting
        self._waiting: list[Future[None]] = []
        self._lock = threading.Lock()
        self._began: tuple[float, int] | None = None
        self._rotated: tuple[float, int] | None = None
        self._bytes = 0
        self._losing = False
        self._may_be_torn = True  # a predecessor may have died, or the disk filled, in the middle of a line

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._path

    def take(self, work: Callable[[], None]) -> bool:
        """Do `work`, which handles its own errors, soon; False where it is left out. Neither blocks nor raises."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.done()]
        if len(self._waiting) >= self._most_waiting:
            return False
        try:
            self._waiting.append(self._thread.submit(work))
        except RuntimeError:  # the interpreter is on its way out
            return False
        return True

    def close(self) -> None:
        """Wait until everything taken is done."""
        self._thread.shutdown()

    def begins_a_file(self, line: bytes) -> bool:
        """Whether `line` would be the first of a file, because there is none yet or the present one is full."""
        try:
            return not self._path.exists() or self._is_full(line)
        except OSError:
            return True

    def holds_s(self, now_s: float) -> float | None:
        """Seconds that all files together hold at the pace of the last two files, or of the last minute where those were faster;
        None in the first minute, and where nothing was written since its first line.

        Called from any thread: a line more or less does not matter.
        """
        if self._began is None or now_s - self._began[0] < MEASURED_S:
            return None
        began_s, before = self._began
        written = self._bytes - before
        return self._max_file_bytes * self._max_files * (now_s - began_s) / written if written else None

    def append(self, line: bytes, at_s: float) -> bool:
        """Append `line`, which holds no newline, rotating before a file would grow past its limit. False where it was lost.

        `at_s` is the time of what the line tells, in seconds of the clock of `holds_s`.
        """
        whole = line + b"\n"
        try:
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.exists() and self._is_full(line):
                    self._rotate()
                    if self._rotated is None or at_s - self._rotated[0] >= MEASURED_S:
                        self._began, self._rotated = self._rotated or self._began, (at_s, self._bytes)
                with self._path.open("ab") as file:
                    file.write(b"\n" + whole if self._may_be_torn and file.tell() else whole)
        except OSError as error:
            if not self._losing:
                log.warning("journal_not_written", path=str(self._path), error=str(error))
            self._losing = self._may_be_torn = True
            return False
        self._may_be_torn = False
        self._bytes += len(whole)
        self._began = self._began or (at_s, self._bytes)
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


def chosen_file_bytes() -> int:
    """Bytes of one of MAX_FILES files, which together take $NIGHTJAR_JOURNAL_MIB; the default where it is no number that may be."""
    chosen = os.environ.get(SIZE_VARIABLE, "")
    if chosen.isdecimal() and int(chosen) in ALLOWED_MIB:
        return (int(chosen) << 20) // MAX_FILES
    if chosen:
        allowed = f"{ALLOWED_MIB[0]} to {ALLOWED_MIB[-1]}"
        log.warning("journal_size_unreadable", variable=SIZE_VARIABLE, value=chosen, allowed=allowed, used=DEFAULT_MIB)
    return MAX_FILE_BYTES


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
