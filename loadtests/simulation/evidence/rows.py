"""One row per simulated run, as JSON lines: the raw evidence that every bar, table and chart is computed from.

A row says what was run (kind, place, planner, mechanics, variant, seed), what came out (measures, and series where a bar or
a chart needs them) or why nothing did (`error`). Rows of one place with one seed faced the very same requests, so planners
are compared by place and seed. Everything but `core_s` is a function of the row's scenario: same seed, same bytes.
Fails closed on reading: a line that is no row raises `RowsError` with its file and line number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from nightjar.loadtests.load.rows import RowsError, read_records
from nightjar.loadtests.simulation.profiles import Mechanics
from nightjar.policy.wire.record import Identifier, Record

__all__ = ["RowsError", "RunRow", "failures", "read_rows", "write_rows"]


class RunRow(Record):
    """One run.

    kind      which experiment: steady, open_loop, pooling, storm, ...
    place     profile, load and number of replicas: what the planner had to deal with
    as_published  whether the planner ran without our dormancy although the profile's drafter could be dormant
    variant   what else was set: an ablated part, a fault of the control plane, how restarts are made
    measures  by name; a name holds its unit. A measure that could not be taken is absent
    series    values by second of virtual time (or by K for a plan), where asked for
    steps     engine steps simulated, warm-up included; `core_s` the seconds of a core that took
    error     why the run failed; it then has no measures
    """

    kind: Identifier
    place: Identifier
    profile: Identifier
    load: Identifier
    planner: Identifier
    mechanics: Mechanics
    as_published: bool = False
    variant: str = ""
    replicas: Annotated[int, Field(ge=1)]
    seed: int
    measures: dict[str, float] = Field(default_factory=dict)
    series: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    steps: int = 0
    core_s: float = 0.0
    error: str = ""

    @property
    def who(self) -> str:
        """Planner, marked where it ran as published, with its variant where it has one."""
        published = " as published" if self.as_published else ""
        return f"{self.planner}{published}" + (f" ({self.variant})" if self.variant else "")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the run; two rows with the same key are the same run."""
        return (self.kind, self.place, self.who, self.seed)


def write_rows(path: Path, rows: Iterable[RunRow]) -> None:
    """Append rows to a file, one write each, so that an interrupted run keeps what it finished."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json(exclude_defaults=True) + "\n")
            file.flush()


def read_rows(path: Path) -> tuple[RunRow, ...]:
    """Every row of a file, in its order. Raises RowsError naming the line; a missing file raises OSError."""
    return read_records(path, RunRow, "row of a simulated run", RowsError)


def failures(rows: Sequence[RunRow]) -> list[RunRow]:
    """The runs that broke off."""
    return [row for row in rows if row.error]
