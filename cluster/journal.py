"""The policy's journal: what each tick saw, what it decided and why, as JSON lines that a person and a replay can read.

One entry holds a tick's merged inputs (what the fleet has learned and the load of each replica), the operator's settings,
the seed of its random numbers, the decisions that changed and their causes in words. Files are rotated by size and their
number is bounded, so the journal never fills a disk by itself. Fails open: where an entry cannot be written, it is lost,
the first loss of a row is logged, and the policy goes on; a torn last line, as a crash leaves it, is skipped by the reader.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import structlog
from pydantic import Field, ValidationError

from nightjar.policy.learned import LearnedTables
from nightjar.policy.modes import ModeOverride
from nightjar.policy.records import EngineLoad, Record, RestartWish, Settings
from nightjar.policy.settings import OperatorSettings

FILE_NAME: Final = "policy-journal.jsonl"
MAX_FILE_BYTES: Final = 8 << 20
MAX_FILES: Final = 8

log = structlog.get_logger(__name__)


class ReplicaInput(Record):
    """What a tick knew of one replica: its group, its load and its wish as last reported."""

    replica_id: str
    group_id: str
    load: EngineLoad
    restart_wish: RestartWish | None = None


class JournalEntry(Record):
    """One tick that saw or decided something.

    `tick` counts from 1 within an incarnation, `time_s` is in seconds since the epoch by the actor's clock. `decided` holds the
    complete settings of those replicas whose settings changed. `error` says why a tick failed; the settings before it stay.
    """

    incarnation: int
    tick: int
    time_s: float
    seed: int
    causes: tuple[str, ...] = ()
    operator_settings: OperatorSettings
    overrides: tuple[ModeOverride, ...] = ()
    learned: LearnedTables | None = None
    replicas: tuple[ReplicaInput, ...] = ()
    decided: dict[str, Settings] = Field(default_factory=dict)
    error: str = ""


class Journal(Protocol):
    """Takes entries in order. Never raises and never blocks the event loop."""

    @property
    def path(self) -> str:
        """Where a person finds it; empty where nothing is kept."""
        ...

    async def append(self, entry: JournalEntry) -> None:
        """Keep `entry`, or lose it and say so in the log."""
        ...


class JournalFile:
    """A journal in one folder: `policy-journal.jsonl` is written, `.1` is the file before it, and so on."""

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        self._path = folder / FILE_NAME
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._lock = threading.Lock()
        self._losing = False
        self._may_be_torn = True  # a predecessor may have died, or the disk filled, in the middle of a line

    @property
    def path(self) -> str:
        """The file that is being written."""
        return str(self._path)

    async def append(self, entry: JournalEntry) -> None:
        """See Journal."""
        await asyncio.to_thread(self.write, entry)

    def write(self, entry: JournalEntry) -> None:
        """Append `entry`, rotating before a file would grow past its limit. Never raises OSError."""
        line = entry.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.exists() and self._path.stat().st_size + len(line) > self._max_file_bytes:
                    self._rotate()
                with self._path.open("ab") as file:
                    file.write(b"\n" + line if self._may_be_torn and file.tell() else line)
        except OSError as error:
            if not self._losing:
                log.warning("journal_not_written", path=self.path, error=str(error))
            self._losing = self._may_be_torn = True
            return
        self._may_be_torn = False
        if self._losing:
            log.info("journal_written_again", path=self.path)
        self._losing = False

    def _rotate(self) -> None:
        files = journal_files(self._path)
        for number, file in reversed(list(enumerate(files))):
            if number + 1 >= self._max_files:
                file.unlink()
            else:
                file.rename(_numbered(self._path, number + 1))


def journal_files(path: Path) -> list[Path]:
    """The files of the journal at `path`, newest first."""
    files = [path] if path.exists() else []
    number = 1
    while (older := _numbered(path, number)).exists():
        files.append(older)
        number += 1
    return files


def read_journal(path: Path) -> Iterator[JournalEntry]:
    """Every readable entry of the journal at `path`, oldest first, rotated files included.

    Raises FileNotFoundError where there is none. A line that is no entry is logged and skipped.
    """
    files = journal_files(path)
    if not files:
        raise FileNotFoundError(f"no journal at {path}")
    for file in reversed(files):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.isspace():
                    continue
                try:
                    yield JournalEntry.model_validate_json(line)
                except ValidationError:
                    log.warning("journal_line_skipped", path=str(file), line=number)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path
