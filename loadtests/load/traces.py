"""Recorded arrivals and lengths: a CSV of requests, as a cloud publishes them or as an operator writes them down.

Two forms are read, told apart by the first line: Azure's (TIMESTAMP, ContextTokens, GeneratedTokens) and the plain one (time in
seconds, prompt tokens, output tokens, also without a first line of names). The simulator and Locust read the same files.
What a small engine cannot hold is cut, and how many were cut is counted: a load that was changed says so.
Fails closed: a file that is no trace raises `TraceError`, in one line with file, line and what a row looks like.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

MAX_TRACE_ROWS: Final = 5_000_000
MAX_SCALE: Final = 1000.0
MAX_ROW_TOKENS: Final = 100_000_000

AZURE_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PLAIN_COLUMNS: Final = ("time", "prompt_tokens", "output_tokens")
_FORMS: Final = (AZURE_COLUMNS, PLAIN_COLUMNS)
_SAME_NAME: Final[Mapping[str, str]] = {"times": "time", "timeseconds": "time"}
"""Names that stand for another: `time_s` for `time`."""


class TraceError(ValueError):
    """A file that is no trace, or a scale that makes none."""


class TraceRow(NamedTuple):
    """A recorded request: seconds from the trace's first one, and its tokens."""

    due_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class TraceFit:
    """How a trace is changed for the system that it is played against.

    time_scale    factor of every time: 0.5 plays it twice as fast
    length_scale  factor of every length in tokens
    duration_s    what is due later, after scaling, is left out
    max_prompt_tokens, max_output_tokens  longer ones are cut
    """

    time_scale: float = 1.0
    length_scale: float = 1.0
    duration_s: float = math.inf
    max_prompt_tokens: float = math.inf
    max_output_tokens: float = math.inf

    def __post_init__(self) -> None:
        for name in ("time_scale", "length_scale"):
            if not 0 < (value := getattr(self, name)) <= MAX_SCALE:
                raise TraceError(f"{name} {value:g}: allowed are more than 0 up to {MAX_SCALE:g}")
        if not self.duration_s > 0:
            raise TraceError(f"duration_s {self.duration_s:g}: allowed is more than 0")
        for name in ("max_prompt_tokens", "max_output_tokens"):
            if not (value := getattr(self, name)) >= 1:
                raise TraceError(f"{name} {value:g}: a prompt and an answer have at least one token")


class FittedTrace(NamedTuple):
    """The rows to play, and how many of them lost tokens to a limit."""

    rows: tuple[TraceRow, ...]
    clipped_prompts: int
    clipped_outputs: int


def fit_trace(rows: Sequence[TraceRow], fit: TraceFit) -> FittedTrace:
    """Scale times and lengths, leave out what is due too late, cut what is too long; every length stays at least 1.

    Raises TraceError where nothing is left.

    >>> fit_trace([TraceRow(4.0, 100, 8)], TraceFit(time_scale=0.5, max_prompt_tokens=50))
    FittedTrace(rows=(TraceRow(due_s=2.0, prompt_tokens=50, output_tokens=8),), clipped_prompts=1, clipped_outputs=0)
    """
    scaled = [
        TraceRow(row.due_s * fit.time_scale, _scaled(row.prompt_tokens, fit), _scaled(row.output_tokens, fit)) for row in rows
    ]
    kept = [row for row in scaled if row.due_s < fit.duration_s]
    if not kept:
        raise TraceError(f"no request of the trace is due within {fit.duration_s:g} s")
    fitted = tuple(
        TraceRow(row.due_s, int(min(row.prompt_tokens, fit.max_prompt_tokens)), int(min(row.output_tokens, fit.max_output_tokens)))
        for row in kept
    )
    pairs = list(zip(kept, fitted, strict=True))
    return FittedTrace(
        rows=fitted,
        clipped_prompts=sum(after.prompt_tokens < before.prompt_tokens for before, after in pairs),
        clipped_outputs=sum(after.output_tokens < before.output_tokens for before, after in pairs),
    )


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """The rows of a trace in time order, the first at 0 s; lengths of 0 count as 1. Raises TraceError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace {path} cannot be read ({error})") from error
    if not 0 < len(rows) <= MAX_TRACE_ROWS:
        raise TraceError(f"trace {path}: {len(rows)} rows, allowed are 1 to {MAX_TRACE_ROWS}")
    first_s = min(row.due_s for row in rows)
    return tuple(sorted(row._replace(due_s=row.due_s - first_s) for row in rows))


def _rows(path: Path, lines: Iterator[str]) -> Iterator[TraceRow]:
    reader = csv.reader(lines)
    columns: Sequence[int] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if columns is None and (columns := _columns(path, cells)) is not None:
                continue
            columns = columns or (0, 1, 2)
            yield _row(path, reader.line_num, cells, columns)
    except csv.Error as error:
        raise TraceError(f"trace {path}:{reader.line_num}: {error}; a trace is a CSV file") from error


def _columns(path: Path, cells: Sequence[str]) -> Sequence[int] | None:
    """Places of time, prompt and output tokens, from the line of names; None where the first line is a row already."""
    if _is_number(cells[0]):
        return None
    names = [_plain_name(cell) for cell in cells]
    forms = [[_plain_name(column) for column in form] for form in _FORMS]
    known = [sum(name in names for name in form) for form in forms]
    best = known.index(max(known))
    missing = [column for column, name in zip(_FORMS[best], forms[best], strict=True) if name not in names]
    if missing:
        raise TraceError(
            f"trace {path}: column {', '.join(missing)} is missing; the first line names {', '.join(AZURE_COLUMNS)} "
            f"or {', '.join(PLAIN_COLUMNS)}"
        )
    return [names.index(name) for name in forms[best]]


def _plain_name(cell: str) -> str:
    name = "".join(character for character in cell.lower() if character.isalnum())
    return _SAME_NAME.get(name, name)


def _row(path: Path, line: int, cells: Sequence[str], columns: Sequence[int]) -> TraceRow:
    try:
        due_s, prompt, output = _seconds(cells[columns[0]]), int(cells[columns[1]]), int(cells[columns[2]])
    except (ValueError, IndexError, OverflowError):
        due_s = math.nan
    if not (math.isfinite(due_s) and 0 <= prompt <= MAX_ROW_TOKENS and 0 <= output <= MAX_ROW_TOKENS):
        raise TraceError(
            f"trace {path}:{line}: {','.join(cells)[:80]!r} is no row like 2023-11-16 18:15:46.68,374,44 or 12.5,374,44 "
            f"(a timestamp or seconds, then whole tokens from 0)"
        )
    return TraceRow(due_s, max(prompt, 1), max(output, 1))


def _seconds(text: str) -> float:
    if _is_number(text):
        return float(text)
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _scaled(tokens: int, fit: TraceFit) -> int:
    return max(round(tokens * fit.length_scale), 1)
