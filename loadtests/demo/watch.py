"""What watches the demo while it runs, two threads: samples of the system's status once a second, and what a person sees of it.

Samples are kept in memory for the screen and in a file as evidence. A policy that does not answer is a sample, too: it says why, so
the file shows how long the policy was away. The screen is a live table on a terminal, plain lines elsewhere, never silent for long.
"""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import STATUS, OperationError
from nightjar.cluster.display.fleet import fleet_view
from nightjar.cluster.local.progress import Progress
from nightjar.loadtests.arms.processes import Repeated
from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.demo.report import columns, shown_rows, table_cells
from nightjar.loadtests.demo.summary import ALL_PHASES, RunSummary
from nightjar.policy.wire.status import FleetStatus

PERIOD_S: Final = 1.0
REFRESH_PERIOD_S: Final = 0.5


class Sampler(Repeated):
    """Samples while it is entered. `mode` is written into each sample: set it while the system is known to run that mode."""

    def __init__(self, api: HttpClient, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(self.sample, PERIOD_S, "sampler")
        self.mode = ""
        self.samples: list[StatusSample] = []
        self.latest: FleetStatus | None = None
        self._api = api
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()

    def sample(self) -> StatusSample:
        """Take one sample now and keep it."""
        with self._lock:
            mode, asked_s = self.mode, self._clock()
            try:
                taken = StatusSample(time_s=asked_s, mode=mode, status=self._api.call(STATUS))
                self.latest = taken.status
            except OperationError as error:
                taken = StatusSample(time_s=asked_s, mode=mode, error=str(error))
            self.samples.append(taken)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(taken.model_dump_json(exclude_none=True) + "\n")
        return taken


@dataclass(frozen=True, slots=True)
class View:
    """What is going on: the stage in words, the fleet as last heard, and the requests of the running load."""

    stage: str
    status: FleetStatus | None = None
    requests: int = 0
    failed: int = 0


class Screen(Repeated):
    """Shows `view()` while it is entered, twice a second on a terminal; elsewhere a line whenever nothing was said for a while."""

    def __init__(self, console: Console, view: Callable[[], View], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(self.refresh, REFRESH_PERIOD_S, "screen")
        self._console = console
        self._view = view
        self._progress = Progress(self._print, clock)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._progress.say(line)

    def pass_on(self, line: str) -> None:
        """Print a line of another program, as it is: its tables keep their width."""
        self._progress.pass_on(line)

    def refresh(self) -> None:
        """Show the view as it is now."""
        view = self._view()
        if self._live is not None:
            self._live.update(self._render(view), refresh=True)
        else:
            self._progress.after_silence(plain_line(view))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self, view: View) -> RenderableType:
        stage = f"[{self._progress.elapsed_s:4.0f} s] {view.stage}"
        parts: list[RenderableType] = [Text(stage, style="bold", no_wrap=True, overflow="ellipsis")]
        if view.requests:
            counts = f"{view.requests} answered, {view.failed} failed"
            parts.append(Text(counts, style="red" if view.failed else "green"))
        if view.status is not None:
            parts.append(fleet_view(view.status))
        return Group(*parts)


def plain_line(view: View) -> str:
    """The view on one line."""
    parts = [view.stage]
    if view.requests:
        parts.append(f"{view.requests} answered, {view.failed} failed")
    for replica in view.status.replicas if view.status else ():
        load = replica.load
        counts = f"batch {load.decode_batch_size} waiting {load.num_waiting_reqs} K={load.num_speculative_tokens}"
        parts.append(f"{replica.replica_id[-6:]} {counts}")
    return "; ".join(parts)


def result_table(summary: RunSummary) -> Table:
    """The table per mode and phase, within 80 columns unless goodput was asked for."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in columns(summary.phases):
        header = "\n".join(textwrap.wrap(column, 6, break_long_words=False))
        table.add_column(header, justify="left" if column in {"mode", "phase"} else "right", no_wrap=True)
    for row in shown_rows(summary.phases):
        table.add_row(*table_cells(row), style="bold" if row.phase == ALL_PHASES else None, end_section=row.phase == ALL_PHASES)
    return table
