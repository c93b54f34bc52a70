"""What a person sees of a simulated run in the terminal: the plan, progress with the remaining time, and the tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from nightjar.cluster.local.progress import Progress
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.evidence.summary import SimulationSummary
from nightjar.loadtests.simulation.evidence.tables import bar_grid, failure_grid

TABLE_WIDTH: Final = 140
"""Columns that the tables need; in a narrower window the terminal breaks their lines, but nothing is cut."""
STYLES: Final = {"MISSED": "bold red", "reached": "green"}


def rich_table(grid: Grid, skip: Iterable[str] = ()) -> Table:
    """A grid for the terminal, without the columns named in `skip`."""
    shown = [place for place, column in enumerate(grid.columns) if column not in set(skip)]
    table = Table(title=grid.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place in shown:
        table.add_column(grid.columns[place], justify="left" if grid.has_text[place] else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(row[place] for place in shown), style=next((STYLES[cell] for cell in row if cell in STYLES), None))
    return table


def print_results(
    summary: SimulationSummary, rows: Sequence[RunRow], grids: Sequence[Grid], console: Console, *, judged: bool = True
) -> None:
    """Failures first, then those of the tables that have rows, the bars, and one line at the end.

    Without bars and that line where the run is not `judged`, unless runs failed.
    """
    wide = console if console.width >= TABLE_WIDTH else Console(width=TABLE_WIDTH, stderr=console.stderr)
    failed = failure_grid(rows)
    for grid in (grid for grid in (failed, *grids) if grid.rows):
        wide.print(rich_table(grid))
        if grid.note:
            console.print(grid.note, style="dim", markup=False, highlight=False)
    if judged:
        wide.print(rich_table(bar_grid(tuple(summary.bars.values())), skip=("meaning",)))
    if judged or summary.failed:
        style = "bold red" if summary.missed or summary.failed else "bold"
        console.print(summary.headline, style=style, markup=False, highlight=False, soft_wrap=True)
    console.print(summary.facts, style="dim", markup=False, highlight=False, soft_wrap=True)


class RunProgress:
    """Shows how far a list of cells is, weighted by the time that each is expected to take.

    A bar on a terminal; elsewhere a line whenever nothing was said for a while.
    """

    def __init__(self, console: Console, cells: Iterable[Cell], clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._progress = Progress(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True), clock)
        self._total = sum(cell.expected_s for cell in cells)
        self._done = 0.0
        self._failed = 0
        self._bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("simulating", total=max(self._total, 1.0), left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finished(self, cell: Cell, row: RunRow) -> None:
        """Take note of one row."""
        self._done += cell.expected_s
        self._failed += bool(row.error)
        words = f"{cell.kind}: {cell.place}, {row.who}" + (f"; {self._failed} failed" if self._failed else "")
        left = f"about {self.remaining_s():.0f} s left"
        self._bar.update(self._task, completed=self._done, description=words, left=left)
        if not self._console.is_terminal:
            self._progress.after_silence(f"{self._done / max(self._total, 1.0):4.0%} {words}; {left}")

    def remaining_s(self) -> float:
        """Wall-clock seconds until the last cell, at the pace so far; 0 before the first."""
        elapsed_s = self._progress.elapsed_s
        return elapsed_s * (self._total - self._done) / self._done if self._done else 0.0
