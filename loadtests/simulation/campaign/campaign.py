"""A whole run: the plan and its estimate, all cells over all cores, and what is written of it.

The plan is printed before anything runs. Rows are on disk as soon as they are handed back; summary and report are written at the
end, also after an interrupt, from the rows that there are; the summary says whether all runs came to their end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment, Suite
from nightjar.loadtests.simulation.campaign.measures import counting
from nightjar.loadtests.simulation.evidence.bar_list import OTHER_TEXTS, over_rivals_bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.policy_report import render_policy_report
from nightjar.loadtests.simulation.evidence.result_table import RunProgress, rich_table
from nightjar.loadtests.simulation.evidence.rows import RunRow, failures, write_rows
from nightjar.loadtests.simulation.evidence.runner import Cell, run_cells, without_repeats
from nightjar.loadtests.simulation.evidence.summary import SimulationSummary, span_of, summarise

ROWS: Final = "rows.jsonl"
SUMMARY: Final = "summary.json"
REPORT: Final = "report.html"


@dataclass(frozen=True, slots=True)
class Campaign:
    """Which experiments of a suite run, about what, on how many processes."""

    experiments: tuple[Experiment, ...]
    choice: Choice
    jobs: int
    suite: Suite

    def plan(self) -> Grid:
        """Runs, engine steps and core-seconds by experiment, before anything runs."""
        lines: list[tuple[str, ...]] = []
        total, seen = 0.0, set[tuple[str, str, str, int]]()
        for experiment in self.experiments:
            cells = [cell for wave in range(len(experiment.waves)) for cell in self._cells(experiment, wave, ())]
            fresh = [cell for cell in without_repeats(cells) if cell.key not in seen]
            seen.update(cell.key for cell in fresh)
            core_s = sum(cell.expected_s for cell in fresh)
            total += core_s
            lines.append((experiment.name, str(len(fresh)), f"{core_s:.0f}", experiment.question))
        note = f"about {total:.0f} core-seconds, {total / self.jobs / 60:.1f} minutes on {self.jobs} processes"
        lines.append(("all", str(len(seen)), f"{total:.0f}", note))
        return Grid(f"Plan ({self.choice.effort.name})", ("experiment", "runs", "core-seconds", "question"), tuple(lines), note)

    def due_bars(self) -> frozenset[str]:
        """Bars that this campaign is to give a value, where its engines have places for them.

        None where only some planners run: which bars need the others is not known here.
        """
        if self.choice.planners is not None:
            return frozenset()
        running = [experiment for experiment in self.experiments if any(wave(self.choice, ()) for wave in experiment.waves)]
        bars = {bar for experiment in running for bar in experiment.bars}
        if OTHER_TEXTS not in self.choice.loads:
            bars.discard(over_rivals_bar(OTHER_TEXTS))
        if not (set(self.choice.loads) - {OTHER_TEXTS} or self.choice.regimes or self.choice.trace):
            bars.discard(over_rivals_bar())
        return frozenset(bars)

    def run(self, folder: Path, console: Console, facts: RunFacts) -> tuple[SimulationSummary, list[RunRow]]:
        """Run everything and write rows, summary and report into `folder`."""
        console.print(rich_table(self.plan()))
        seeds = ", ".join(f"{name} {span_of(values)}" for name, values in self.choice.effort.seeds.items())
        console.print(f"seeds: {seeds}", markup=False, highlight=False, soft_wrap=True)
        began_s = time.monotonic()
        rows: list[RunRow] = []
        has_ended = False
        try:
            for wave in range(max(len(experiment.waves) for experiment in self.experiments)):
                self._run_wave(wave, rows, folder, console)
            has_ended = True
        finally:
            has_ended = has_ended and not failures(rows)
            summary = self._write(folder, rows, facts.after(time.monotonic() - began_s, has_ended=has_ended))
        return summary, rows

    def _run_wave(self, wave: int, rows: list[RunRow], folder: Path, console: Console) -> None:
        done = {row.key for row in rows}
        wanted = [
            cell for experiment in self.experiments if wave < len(experiment.waves) for cell in self._cells(experiment, wave, rows)
        ]
        cells = [cell for cell in without_repeats(wanted) if cell.key not in done]
        with RunProgress(console, cells) as progress:

            def finished(cell: Cell, row: RunRow) -> None:
                rows.append(row)
                write_rows(folder / ROWS, [row])
                progress.finished(cell, row)

            run_cells(cells, self.jobs, finished)

    def _cells(self, experiment: Experiment, wave: int, rows: Sequence[RunRow]) -> list[Cell]:
        """Of one wave; with the target of goodput, if there is one, in every scenario."""
        cells, target = experiment.waves[wave](self.choice, rows), self.choice.goodput
        return [counting(cell, target) for cell in cells] if target else cells

    def _write(self, folder: Path, rows: Sequence[RunRow], facts: RunFacts) -> SimulationSummary:
        """Write summary.json and report.html of these rows."""
        effort = self.choice.effort
        summary = summarise(rows, facts, effort.name, effort.seeds, self.due_bars(), self.suite.bars)
        (folder / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        grids, judged = self.suite.grids(rows), effort.name != QUICK.name
        page = render_policy_report(summary, rows, grids, self.suite.charts, judged=judged)
        (folder / REPORT).write_text(page, encoding="utf-8")
        return summary
