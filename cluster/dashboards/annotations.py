"""What happened, for the dashboards: restarts of speculation and of the policy by its journal, phases of a load test by its rows.

Pure. Each annotation's text, tags and times follow from what was recorded alone, so that telling the same twice is seen to be the
same. Fails closed: a file of rows in which a line is no row raises RowsError with its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from nightjar.cluster.dashboards.panels import TAG
from nightjar.cluster.storage.journal import JournalEntry
from nightjar.policy.wire.record import describe_validation_error
from nightjar.policy.wire.report import RestartWish
from nightjar.policy.wire.settings import Lease

RESTART_TAG: Final = "restart"
POLICY_TAG: Final = "policy"
LOAD_TAG: Final = "load"


class RowsError(ValueError):
    """A file that holds no rows of a load test."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """A moment, or a stretch of time, in milliseconds since the epoch as Grafana counts them."""

    text: str
    tags: tuple[str, ...]
    start_ms: int
    end_ms: int


def happened(entries: Iterable[JournalEntry]) -> Iterator[Annotation]:
    """Every lease that was granted, and every start of the policy actor after the journal's first, or rise of its incarnation."""
    before: tuple[int, int] | None = None
    granted: set[tuple[str, int]] = set()
    for entry in entries:
        if before is not None and entry.incarnation > before[0]:
            has_started = entry.tick <= before[1]  # they count from its start
            what = (
                "policy actor started anew" if has_started else "policy actor heard of another one's incarnation and rose above it"
            )
            yield _moment(f"{what} (incarnation {entry.incarnation})", POLICY_TAG, entry.time_s)
        before = entry.incarnation, entry.tick
        wishes = {
            (replica.replica_id, replica.restart_wish.wish_id): replica.restart_wish
            for replica in entry.replicas
            if replica.restart_wish
        }
        for replica_id, issued in entry.decided.items():
            for lease in issued.settings.restarts.leases:
                key = (replica_id, lease.wish_id)
                if key not in granted:
                    granted.add(key)
                    yield _moment(_lease_in_words(replica_id, lease, wishes.get(key)), RESTART_TAG, entry.time_s)


def _lease_in_words(replica_id: str, lease: Lease, wish: RestartWish | None) -> str:
    lag = f", {wish.lag_tokens} tokens to catch up" if wish else ""
    return f"{replica_id} may restart speculation{lag}{', draft reloaded' if lease.reload else ''}"


class LoadRow(BaseModel):
    """What an annotation needs of a row of a load test (`--rows`); times are seconds, the first one since the epoch."""

    phase: str
    mode: str = ""
    start_s: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    schedule_lag_s: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    scheduled_s: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0

    @property
    def due_s(self) -> float:
        """When it should have been sent."""
        return self.start_s - self.schedule_lag_s


def read_load_rows(path: Path) -> tuple[LoadRow, ...]:
    """The rows of a load test. Raises RowsError naming the line, or why the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RowsError(f"{path}: {why}; expected the rows of a load test, as Locust's --rows writes them") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(LoadRow.model_validate(json.loads(line)))
        except ValidationError as error:
            raise RowsError(f"{path}:{number} is no row of a load test: {describe_validation_error(error)}") from error
        except (ValueError, RecursionError) as error:
            raise RowsError(f"{path}:{number} is no row of a load test: not JSON") from error
    return tuple(rows)


def phases(rows: Iterable[LoadRow]) -> Iterator[Annotation]:
    """One stretch per phase, from the first request that was due in it to the last; a phase that comes again is another one."""
    rows = tuple(rows)
    began_s: dict[str, float] = {}
    for row in rows:
        began_s[row.mode] = min(row.due_s, began_s.get(row.mode, row.due_s))
    # Within a mode by the regime's own time: load processes do not begin at the very same moment, and phases would mix.
    in_order = sorted(rows, key=lambda row: (began_s[row.mode], row.mode, row.scheduled_s, row.due_s))
    for (mode, phase), found in groupby(in_order, key=lambda row: (row.mode, row.phase)):
        due_s = sorted(row.due_s for row in found)
        requests = f"{len(due_s)} request{'s' if len(due_s) > 1 else ''}"
        words = ", ".join([f"load: {phase}", *([f"mode {mode}"] if mode else []), requests])
        yield Annotation(words, (TAG, LOAD_TAG), _milliseconds(due_s[0]), _milliseconds(due_s[-1]))


def _moment(text: str, tag: str, time_s: float) -> Annotation:
    return Annotation(text, (TAG, tag), _milliseconds(time_s), _milliseconds(time_s))


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1e3)
