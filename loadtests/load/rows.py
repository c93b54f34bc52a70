"""One row per request, as JSON lines: the raw evidence that every percentile is computed from.

Locust's own statistics round to milliseconds and forget single requests, which is too coarse for times per token. A row
is written with one `write` on a file opened for appending, so several load processes on one machine share a file.
Fails closed on reading: a line that is no row raises `RowsError` with its file and line number.

A run keeps them in a folder named after the time, with `latest` beside it pointing to the newest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from nightjar.loadtests.load.goodput import Timed
from nightjar.policy.wire.record import Count, Identifier, Record, describe_validation_error

R = TypeVar("R", bound=Record)

OptionalSeconds = Annotated[float | None, Field(ge=0.0, le=1e9)]


class RowsError(ValueError):
    """A file of rows that cannot be read."""


class RequestRow(Record):
    """One request. Times are seconds; `start_s` is wall-clock time since the epoch.

    scheduled_s  when it was due, from the regime's start (closed-loop users: when it was sent)
    schedule_lag_s  how much later than due it was sent: large values mean that the load generator was too slow
    completion_tokens  from the server's usage; None where the request failed before it came
    asked_prompt_tokens, asked_output_tokens  what a trace recorded and the join counted, where a trace was played
    mode  the operator's mode it ran under, where the run compares modes
    """

    request_id: Identifier
    phase: Identifier
    mode: str = ""
    scheduled_s: Annotated[float, Field(ge=0.0)]
    schedule_lag_s: Annotated[float, Field(ge=0.0)] = 0.0
    start_s: Annotated[float, Field(ge=0.0)]
    ttft_s: OptionalSeconds = None
    tpot_s: OptionalSeconds = None
    e2e_s: Annotated[float, Field(ge=0.0)]
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    asked_prompt_tokens: Count | None = None
    asked_output_tokens: Count | None = None
    status: Annotated[int, Field(ge=0, le=999)]
    error: str = ""


class RowWriter:
    """Appends rows to a file; `close` when done. Other processes may append to the same file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, row: RequestRow) -> None:
        """Append one row; on disk when this returns, as far as the operating system goes."""
        os.write(self._descriptor, row.model_dump_json(exclude_none=True).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_rows(path: Path) -> tuple[RequestRow, ...]:
    """Every row of a file, in the order of the file. Raises RowsError naming the line; a missing file raises OSError."""
    return read_records(path, RequestRow, "request row", RowsError)


def read_records(path: Path, kind: type[R], what: str, refused: type[ValueError]) -> tuple[R, ...]:
    """Every record of a file of JSON lines, in its order. Raises `refused` naming the line; a missing file raises OSError."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise refused(f"{path}:{number} is no {what}: {describe_validation_error(error)}") from error
    return tuple(records)


def timed(row: RequestRow) -> Timed:
    """What a target of goodput looks at, of a request that was answered whole."""
    return Timed(row.ttft_s, row.tpot_s, row.e2e_s, row.completion_tokens or 0)


def regime_start_s(rows: Sequence[RequestRow]) -> float | None:
    """Wall-clock time at which the regime of these rows began, in seconds since the epoch; None without rows."""
    return median(row.start_s - row.schedule_lag_s - row.scheduled_s for row in rows) if rows else None


def new_run_folder(runs: Path) -> Path:
    """A new folder under `runs`, as `runs/latest` where that link can be made. Raises OSError."""
    return as_latest(unnamed_run_folder(runs))


def unnamed_run_folder(runs: Path) -> Path:
    """A new folder under `runs`, while `runs/latest` goes on to point to the one before it. Raises OSError."""
    folder = runs / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    return folder


def as_latest(folder: Path) -> Path:
    """The folder as `latest` beside it, or as itself where that link cannot be made. Raises OSError."""
    latest = folder.parent / "latest"
    if latest.is_symlink() or not latest.exists():
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
    return latest if latest.is_symlink() else folder
