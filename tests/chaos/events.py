"""What happened in one replica of the chaos application, as lines of a file that outlives its process.

A replica is killed in the middle of anything, so each line is written by itself, and a torn last line is not read. Times
are seconds of CLOCK_MONOTONIC, which all processes of a machine share and nobody can step.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

Version = tuple[int, int]
"""Incarnation and sequence of settings."""


class EventKind(StrEnum):
    """What a line tells."""

    STARTED = "started"
    REQUEST_BEGAN = "request began"
    REQUEST_ENDED = "request ended"
    ADOPTED = "settings adopted by the engine"
    RESTART_BEGAN = "leased restart began"
    RESTART_ENDED = "leased restart ended"
    DELAYED = "message delayed"
    DROPPED = "message dropped"
    DOUBLED = "message doubled"
    STALE = "older settings delivered after newer ones"
    CUT = "call failed in a partition"


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `fault` is the number of the network fault that it belongs to, `in_restart` whether the engine restarted under a
    lease when a partition began.
    """

    replica_id: str
    at_s: float
    kind: EventKind
    pid: int = 0
    node_id: str = ""
    application_version: int = 0
    request: str = ""
    version: Version | None = None
    fault: int = 0
    in_restart: bool = False


class EventLog:
    """Writes the events of one replica."""

    def __init__(self, folder: Path, replica_id: str) -> None:
        self._replica_id = replica_id
        self._file = folder / f"{replica_id}.jsonl"

    def note(self, kind: EventKind, *, at_s: float | None = None, **told: Any) -> None:
        """Write one event, of now unless `at_s` says when; `told` are further fields of it."""
        event = Event(self._replica_id, time.monotonic() if at_s is None else at_s, kind, **told)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")


class EventReader:
    """Reads what all replicas wrote into a folder; each line once, however often it is asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}
        self._events: dict[Path, list[Event]] = {}

    def read(self) -> tuple[Event, ...]:
        """Everything so far, that of one replica in the order in which it wrote it."""
        for file in sorted(self._folder.glob("*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(self._read_bytes.get(file, 0))
                whole = lines.read().rpartition(b"\n")[0]
            if whole:
                self._read_bytes[file] = self._read_bytes.get(file, 0) + len(whole) + 1
                self._events.setdefault(file, []).extend(map(_event, whole.splitlines()))
        return tuple(event for events in self._events.values() for event in events)


def _event(line: bytes) -> Event:
    values = json.loads(line)
    version, kind = values.pop("version"), EventKind(values.pop("kind"))
    return Event(**values, kind=kind, version=None if version is None else (version[0], version[1]))
