"""The policy's journal: what each tick decided and why, as JSON lines that a person can read.

One entry holds what a person asks first: what the fleet has learned, the load of each replica, the operator's settings, the
decisions that changed and their causes in words. What a replay needs beside it lies in the same folder (recording.py). Files are
rotated by size and their number is bounded (rotated_lines.py). Fails open: where an entry cannot be written, or its disk hangs,
it is lost, the first loss of a row is logged, and the policy goes on; a torn last line, as a crash leaves it, is skipped by the
reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog
from pydantic import Field, ValidationError

from nightjar.cluster.storage.rotated_lines import MAX_FILE_BYTES, MAX_FILES, RotatedLines, rotated_files
from nightjar.policy.controller import Controller
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import Record
from nightjar.policy.wire.report import DrafterState, EngineLoad, RestartWish
from nightjar.policy.wire.settings import IssuedSettings

FILE_NAME: Final = "policy-journal.jsonl"
MAX_WAITING_ENTRIES: Final = 32
"""For the disk: half a minute of a busy policy's."""

log = structlog.get_logger(__name__)


class ReplicaInput(Record):
    """What a tick knew of one replica: its group, its load, its drafter and its wish as last reported."""

    replica_id: str
    group_id: str
    load: EngineLoad
    drafter_state: DrafterState = DrafterState.ABSENT
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
    decided: dict[str, IssuedSettings] = Field(default_factory=dict)
    error: str = ""


def entry_of(
    policy: Controller,
    tick: int,
    now_s: float,
    seed: int,
    causes: tuple[str, ...],
    decided: dict[str, IssuedSettings],
    error: str,
) -> JournalEntry:
    """What there is to keep of the tick that the policy has just decided."""
    return JournalEntry(
        incarnation=policy.issuer.incarnation,
        tick=tick,
        time_s=now_s,
        seed=seed,
        causes=causes,
        operator_settings=policy.settings,
        overrides=policy.overrides,
        learned=policy.learned,
        replicas=tuple(
            ReplicaInput(
                replica_id=replica_id,
                group_id=replica.group_id,
                load=replica.report.snapshot.load,
                drafter_state=replica.report.snapshot.drafter_state,
                restart_wish=replica.report.snapshot.restart_wish,
            )
            for replica_id, replica in sorted(policy.state.replicas.items())
        ),
        decided=decided,
        error=error,
    )


class Journal(Protocol):
    """Takes entries in order. Neither raises nor blocks: deciding must not wait for a disk."""

    @property
    def path(self) -> str:
        """Where a person finds it; empty where nothing is kept."""
        ...

    def append(self, entry: JournalEntry) -> None:
        """Keep `entry`, soon, or lose it and say so in the log."""
        ...

    def holds_s(self, now_s: float) -> float | None:
        """Seconds of entries that are kept at the present pace; None while that is not known."""
        ...


class JournalFile:
    """A journal in one folder: `policy-journal.jsonl` is written, `.1` is the file before it, and so on."""

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        path = folder / FILE_NAME
        self._lines = RotatedLines(path, most_waiting=MAX_WAITING_ENTRIES, max_file_bytes=max_file_bytes, max_files=max_files)
        self._lost = 0

    @property
    def path(self) -> str:
        """The file that is being written."""
        return str(self._lines.path)

    def append(self, entry: JournalEntry) -> None:
        """See Journal."""
        if self._lines.take(partial(self.write, entry)):
            if self._lost:
                log.info("journal_keeps_up_again", path=self.path, lost_entries=self._lost)
            self._lost = 0
            return
        if not self._lost:
            log.warning("journal_falls_behind", path=self.path, waiting_entries=MAX_WAITING_ENTRIES, consequence="entries are lost")
        self._lost += 1

    def holds_s(self, now_s: float) -> float | None:
        """See Journal."""
        return self._lines.holds_s(now_s)

    def write(self, entry: JournalEntry) -> None:
        """Append `entry`, rotating before a file would grow past its limit. Never raises OSError."""
        self._lines.append(entry.model_dump_json(exclude_none=True).encode(), entry.time_s)

    def close(self) -> None:
        """Wait until everything taken is written."""
        self._lines.close()


def read_journal(path: Path) -> Iterator[JournalEntry]:
    """Every readable entry of the journal at `path`, oldest first, rotated files included.

    Raises FileNotFoundError where there is none. A line that is no entry is logged and skipped.
    """
    files = rotated_files(path)
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
