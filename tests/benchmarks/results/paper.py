"""docs/results/paper.md, written from the kept rows of the paper's comparison: every number of ours on it comes from them.

The rows lie beside the page, cut to what it shows. `keep` takes them from the folders of runs that ended, `paper` prints the page
for `make docs`, and a test compares the two. The text around the tables is `paper_page.md` here: `[[table: TITLE]]` stands for a
table of paper_table.py, `[[TITLE | ROW | COLUMN]]` for one number of it; the beginning of a title is enough. Fails closed: rows
that broke off are not kept, and a mark for which the rows have nothing raises KeptError.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.rows import RunRow, read_rows
from nightjar.loadtests.simulation.evidence.summary import span_of
from tests.benchmarks.policy.paper_table import PAPER_KINDS, SHOWN_MEASURES, paper_grids
from tests.benchmarks.results.kept import RESULTS, KeptError, read_summary

ROWS: Final = RESULTS / "paper.csv"
PAGE: Final = RESULTS / "paper.md"
TEXT: Final = Path(__file__).with_name("paper_page.md")
NAMES: Final = ("kind", "place", "profile", "load", "planner", "mechanics", "as_published", "variant", "seed")
DIGITS: Final = 5
_MARK: Final = re.compile(r"\[\[(.+?)\]\]")


def keep(folders: Sequence[Path], path: Path = ROWS) -> None:
    """Write the rows of the comparison that the runs in these folders have, in place of those kept. Raises KeptError."""
    rows: list[RunRow] = []
    for folder in dict.fromkeys(folders):
        run = read_summary(folder / "summary.json").run
        if run.effort == "quick":
            raise KeptError(f"{folder} is of a quick run: run it without --quick")
        if not run.has_ended:
            raise KeptError(f"{folder} is of a run that broke off: run it again")
        rows += [row for row in read_rows(folder / "rows.jsonl") if row.kind in PAPER_KINDS]
    broken = [row for row in rows if row.error]
    if broken or not rows:
        raise KeptError(
            f"{', '.join(map(str, folders))}: {len(rows)} rows of the paper's comparison, {len(broken)} of them broke off"
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*NAMES, *SHOWN_MEASURES])
        table.writerows(_cells(row) for row in rows)


def read(path: Path = ROWS) -> tuple[RunRow, ...]:
    """The kept rows. Raises KeptError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return tuple(map(_row, csv.DictReader(file)))
    except (OSError, ValueError, KeyError) as error:
        hint = "keep a run with `python -m tests.benchmarks.results keep-paper FOLDER`"
        raise KeptError(f"{path} cannot be read: {error}; {hint}") from error


def page(path: Path = ROWS) -> str:
    """The page of the kept rows. Raises KeptError."""
    rows = read(path)
    grids = paper_grids(rows)
    marks = {f"seeds of {kind}": span_of(sorted({row.seed for row in rows if row.kind == kind})) for kind in PAPER_KINDS}
    return _MARK.sub(lambda found: marks.get(found[1]) or _told(grids, found[1]), TEXT.read_text(encoding="utf-8"))


def _cells(row: RunRow) -> list[object]:
    names = [getattr(row, name) for name in NAMES]
    return [*names, *(f"{row.measures[name]:.{DIGITS}g}" if name in row.measures else "" for name in SHOWN_MEASURES)]


def _row(cells: dict[str, str]) -> RunRow:
    measures = {name: float(cells[name]) for name in SHOWN_MEASURES if cells[name]}
    return RunRow.model_validate({**{name: cells[name] for name in NAMES}, "replicas": 1, "measures": measures})


def _told(grids: Sequence[Grid], mark: str) -> str:
    try:
        if mark.startswith("table: "):
            return _table(_named(grids, mark.removeprefix("table: ")))
        title, name, column = mark.split(" | ")
        grid = _named(grids, title)
        (row,) = (row for row in grid.rows if row[0] == name)
        return row[grid.columns.index(column)].split(" ")[0].rstrip(",")
    except ValueError as error:
        titles = ", ".join(grid.title for grid in grids)
        raise KeptError(f"[[{mark}]] of {TEXT.name} is nothing among the kept rows; tables are {titles}") from error


def _named(grids: Sequence[Grid], begins: str) -> Grid:
    (grid,) = (grid for grid in grids if grid.title.startswith(begins))
    return grid


def _table(grid: Grid) -> str:
    lines = [" | ".join(cells) for cells in (grid.columns, ["---"] * len(grid.columns), *grid.rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"{grid.note}\n\n{table}" if grid.note else table
