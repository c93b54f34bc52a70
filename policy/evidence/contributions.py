"""What each replica of a group measured, kept apart, so that a replica that turns out wrong can be left out again.

A table for each cell: one row a replica, and row 0 for what no live replica stands for, because it was remembered, imported, or
measured by one that left. What arrives counts at once (pooling.py); the rows fade together as new steps arrive, each also with its
age, so that memory stays O(replicas + cells) and a fleet follows drift (INV-8). Fails towards less evidence: a replica that
comes back under its name begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from nightjar.policy.evidence.acceptance import HALF_LIFE_ROWS, AcceptanceEvidence
from nightjar.policy.evidence.cells import (
    DRIFT_VARIANCE_PER_SECOND,
    MOST_DRIFT_VARIANCE,
    STEP_VARIANCE,
    Cell,
    CellEvidence,
    Evidence,
    Floats,
    Table,
    grown,
    sums_of,
    table_of,
)

_NO_ACCEPTANCE: Final = AcceptanceEvidence()
_NOTHING: Final = CellEvidence()


@dataclass(frozen=True, slots=True)
class NewEvidence:
    """What one replica's reports added since its group last pooled."""

    cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)

    def plus(
        self, cells: Mapping[Cell, CellEvidence], acceptance: AcceptanceEvidence, half_life_steps: float, now_s: float
    ) -> NewEvidence:
        """This and what is heard at `now_s`."""
        merged = dict(self.cells)
        for cell, heard in cells.items():
            newer = heard.at(cell.heard_at(now_s))
            merged[cell] = merged[cell].plus(newer, half_life_steps) if cell in merged else newer
        return NewEvidence(merged, self.acceptance.plus(acceptance.at(now_s)))


@dataclass(frozen=True, slots=True)
class Contributions:
    """The tables of one group; arrays are never changed in place."""

    rows: Mapping[str, int] = field(default_factory=dict)
    """Each replica's row, from 1."""
    cells: Mapping[Cell, Table] = field(default_factory=dict)
    """A table may be shorter than the number of rows: who is missing measured nothing in the cell."""
    acceptance: Mapping[str, AcceptanceEvidence] = field(default_factory=dict)
    """By replica, faded by its own rows."""
    remembered_acceptance: AcceptanceEvidence | None = None
    """What no live replica stands for; None until anything was pooled."""
    distrusted: tuple[str, ...] = ()
    """Replicas that others contradict so far that nothing of theirs counts (pooling.py)."""
    effects: tuple[float, ...] = ()
    """By row, log seconds by which a replica's steps are longer than its group's (pooling.py)."""

    def steps_of(self, replica_id: str, cell: Cell, now_s: float) -> float:
        """Steps that one replica's measurements of a cell weigh at `now_s`."""
        row, table = self.rows.get(replica_id, 0), self.cells.get(cell)
        return float(steps_at(table, cell.heard_at(now_s))[row]) if row and table is not None and row < len(table) else 0.0

    def acceptance_of(self, replica_id: str) -> AcceptanceEvidence:
        """How its own traffic accepts drafts."""
        return self.acceptance.get(replica_id, _NO_ACCEPTANCE)

    def plus(
        self,
        new: Mapping[str, NewEvidence],
        known: Evidence,
        forgotten: Collection[Cell],
        half_life_steps: float,
        now_s: float,
    ) -> tuple[Contributions, frozenset[Cell]]:
        """The tables with what is `new` by replica, and the cells that it changed.

        A cell that is measured for the first time here begins with what was
        `known` of it, except of those in `forgotten` (imported cells, which give way to a first measurement).
        """
        rows = _rows_for(self.rows, new)
        cells = dict(self.cells)
        by_cell: dict[Cell, list[tuple[int, CellEvidence]]] = {}
        for replica_id in sorted(new):
            for cell, added in new[replica_id].cells.items():
                by_cell.setdefault(cell, []).append((rows[replica_id], added))
        for cell, found in by_cell.items():
            table = cells.get(cell)
            if table is None:
                before = known.of(cell) if cell not in forgotten else None
                table = table_of([before or _NOTHING])
            cells[cell] = _with_steps(table, found, half_life_steps, cell.heard_at(now_s))
        remembered = known.acceptance if self.remembered_acceptance is None else self.remembered_acceptance
        acceptance = dict(self.acceptance)
        for replica_id, added_by_it in new.items():
            if added_by_it.acceptance.reached:
                acceptance[replica_id] = acceptance.get(replica_id, _NO_ACCEPTANCE).plus(added_by_it.acceptance.at(now_s))
        added_rows = sum(one.acceptance.reached[0] for one in new.values() if one.acceptance.reached)
        share = 0.5 ** (added_rows / (HALF_LIFE_ROWS * max(len(acceptance), 1)))
        after = replace(
            self,
            rows=rows,
            cells=cells,
            acceptance=acceptance,
            remembered_acceptance=faded(remembered, share),
        )
        return after, frozenset(by_cell)


def steps_at(table: Table, now_s: float) -> Floats:
    """(rows,): clean steps that each row of a cell weighs at `now_s`: the older they are, the less many of them tell, because a
    true step time wanders.

    >>> table = table_of([CellEvidence(steps, -steps, steps) for steps in (1.0, 10.0, 1e9)])
    >>> [round(float(steps), 2) for steps in steps_at(table, 600.0)]
    [0.74, 2.17, 2.78]
    """
    steps: Floats = table["steps"]
    age_s = np.maximum(now_s - table["measured_at_s"], 0.0)
    drifted = np.minimum(age_s * DRIFT_VARIANCE_PER_SECOND, MOST_DRIFT_VARIANCE)
    weighed: Floats = steps / (1.0 + steps * drifted / STEP_VARIANCE)
    return weighed


def faded(acceptance: AcceptanceEvidence, share: float) -> AcceptanceEvidence:
    """The same shares with that share of their weight."""
    return AcceptanceEvidence(
        tuple(rows * share for rows in acceptance.reached),
        tuple(kept * share for kept in acceptance.accepted),
        acceptance.seen_at_s,
    )


def _rows_for(rows: Mapping[str, int], new: Mapping[str, NewEvidence]) -> Mapping[str, int]:
    """Rows of all that have one, and of those who brought something: the lowest that is free."""
    missing = [replica_id for replica_id in sorted(new) if replica_id not in rows]
    if not missing:
        return rows
    taken = set(rows.values())
    free = (row for row in range(1, len(taken) + len(missing) + 1) if row not in taken)
    return {**rows, **dict(zip(missing, free, strict=False))}


def _with_steps(table: Table, found: Sequence[tuple[int, CellEvidence]], half_life_steps: float, now_s: float) -> Table:
    index = np.array([row for row, _ in found])
    added = table_of([new for _, new in found])
    after = grown(table, int(index.max()) + 1)
    sums = sums_of(after)
    sums *= 0.5 ** (float(added["steps"].sum()) / half_life_steps)
    mine = after[index]
    steps = mine["steps"]
    share = np.divide(steps_at(mine, now_s), steps, out=np.ones(len(steps)), where=steps > 0.0)
    sums[index] = sums_of(mine) * share[:, None] + sums_of(added)
    after["measured_at_s"][index] = now_s
    return after
