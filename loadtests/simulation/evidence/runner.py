"""Runs cells over all cores and hands their rows back in the order of the plan, whatever order they finish in.

A run is a pure function of its cell, so the number of processes changes nothing but the time. A cell that breaks off becomes a
row with its error and the scenario's names; the others run on. An interrupt ends the worker processes and keeps the rows that
were handed back.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Final, Protocol

from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.profiles import Mechanics

WORKER_YOUNG_OBJECTS: Final = 50_000
"""Net new objects after which a worker looks for reference cycles. A run makes values that replace each other, in no cycle, and at
CPython's own number it spends up to a tenth of its time on looking for one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave: measures by name, series by name, and how many engine steps it simulated."""

    measures: dict[str, float]
    series: dict[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0

    def with_measures(self, **measures: float) -> Outcome:
        """The outcome with more measures."""
        return replace(self, measures={**self.measures, **measures})

    def with_series(self, **series: tuple[float, ...]) -> Outcome:
        """The outcome with more series."""
        return replace(self, series={**self.series, **series})


class Job(Protocol):
    """What a worker calls; a picklable value, equal calls give equal outcomes."""

    def __call__(self) -> Outcome:
        """Simulate and measure."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to make: its names (as in RunRow), the job, and the seconds that it is expected to take on one core."""

    kind: str
    place: str
    profile: str
    load: str
    planner: str
    mechanics: Mechanics
    replicas: int
    seed: int
    job: Job
    expected_s: float
    variant: str = ""
    as_published: bool = False

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the run (RunRow.key)."""
        return self.row().key

    def row(self, outcome: Outcome | None = None, *, error: str = "", core_s: float = 0.0) -> RunRow:
        """The row of this run."""
        return RunRow(
            kind=self.kind,
            place=self.place,
            profile=self.profile,
            load=self.load,
            planner=self.planner,
            mechanics=self.mechanics,
            as_published=self.as_published,
            variant=self.variant,
            replicas=self.replicas,
            seed=self.seed,
            measures=outcome.measures if outcome else {},
            series=outcome.series if outcome else {},
            steps=outcome.steps if outcome else 0,
            core_s=core_s,
            error=error,
        )


def without_repeats(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, each run once: experiments that look at the same run share it."""
    return list({cell.key: cell for cell in cells}.values())


def run_cells(
    cells: Sequence[Cell], jobs: int, finished: Callable[[Cell, RunRow], None] = lambda _cell, _row: None
) -> list[RunRow]:
    """Run every cell on `jobs` processes (1: in this one); rows in the order of `cells`.

    `finished` hears of each row as it is handed back, in the same order.
    """
    rows = []
    for cell, row in zip(cells, _rows(cells, jobs), strict=True):
        rows.append(row)
        finished(cell, row)
    return rows


def run_cell(cell: Cell) -> RunRow:
    """One cell's row; an error in the simulation becomes the row's `error`."""
    began = process_time()
    try:
        outcome = cell.job()
        return cell.row(outcome, core_s=round(process_time() - began, 4))
    except Exception as error:  # noqa: BLE001 - one broken cell must not end the others; it is reported with its names
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"
        return cell.row(error=" ".join(text.split())[:600], core_s=round(process_time() - began, 4))


def _rows(cells: Sequence[Cell], jobs: int) -> Iterator[RunRow]:
    if jobs <= 1 or len(cells) < 2:
        yield from map(run_cell, cells)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(cells)), mp_context=spawn, initializer=_begin_worker)
    try:
        yield from pool.map(run_cell, cells)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C reaches the whole process group: the parent ends the pool. A parent that was killed cannot, so workers watch it."""
    gc.set_threshold(WORKER_YOUNG_OBJECTS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="watch-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
