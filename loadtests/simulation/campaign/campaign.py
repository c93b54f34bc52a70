"""A whole run: the plan and its estimate, all cells over all cores, and what is written of it.

The plan is printed before anything runs. Rows are on disk as soon as they are handed back; summary and report are written at the
end, also after an interrupt, from the rows that there are; the summary says whether all runs came to their end. It is there from
the start, so that a run that was killed can be resumed, too: a row is a function of its scenario and the code, and one that is on
disk need not be made again. Fails closed: rows of another command, commit or version are refused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console

from nightjar.loadtests.report.machine import CHANGED, PACKAGES, RunFacts
from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment, Suite
from nightjar.loadtests.simulation.campaign.measures import counting
from nightjar.loadtests.simulation.evidence.bar_list import OTHER_TEXTS, over_rivals_bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.policy_report import render_policy_report
from nightjar.loadtests.simulation.evidence.result_table import RunProgress, rich_table
from nightjar.loadtests.simulation.evidence.rows import RowsError, RunRow, failures, read_rows, write_rows
from nightjar.loadtests.simulation.evidence.runner import Cell, run_cells, without_repeats
from nightjar.loadtests.simulation.evidence.summary import SimulationSummary, span_of, summarise
from nightjar.policy.wire.record import describe_validation_error

ROWS: Final = "rows.jsonl"
SUMMARY: Final = "summary.json"
REPORT: Final = "report.html"


class ResumeError(ValueError):
    """A run that cannot go on where it stopped."""


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

    def run(
        self, folder: Path, console: Console, facts: RunFacts, known: Sequence[RunRow] = ()
    ) -> tuple[SimulationSummary, list[RunRow]]:
        """Run everything but the `known` rows, which are in `folder` already, and write rows, summary and report there.

        `facts` has the seconds that an earlier part took.
        """
        console.print(rich_table(self.plan()))
        seeds = ", ".join(f"{name} {span_of(values)}" for name, values in self.choice.effort.seeds.items())
        console.print(f"seeds: {seeds}", markup=False, highlight=False, soft_wrap=True)
        if known:
            console.print(f"{len(known)} of them were made before", highlight=False)
        began_s = time.monotonic() - facts.wall_seconds
        rows = list(known)
        has_ended = False
        self._summarise(folder, rows, facts)
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
        summary = self._summarise(folder, rows, facts)
        grids, judged = self.suite.grids(rows), self.choice.effort.name != QUICK.name
        page = render_policy_report(summary, rows, grids, self.suite.charts, judged=judged)
        (folder / REPORT).write_text(page, encoding="utf-8")
        return summary

    def _summarise(self, folder: Path, rows: Sequence[RunRow], facts: RunFacts) -> SimulationSummary:
        effort = self.choice.effort
        summary = summarise(rows, facts, effort.name, effort.seeds, self.due_bars(), self.suite.bars)
        (folder / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return summary


def resumed(folder: Path, facts: RunFacts) -> tuple[RunFacts, tuple[RunRow, ...]]:
    """A run that is to go on in its folder: its facts, and the rows that need not be made again.

    `facts` are those of a run that would begin now. A last line that was cut, and rows of runs that broke off, leave the file.
    Raises ResumeError, of one line, for a folder that holds no run, and for one of another command, commit or version; a file that
    the command names and that changed since is not noticed.
    """
    rows_path = folder / ROWS
    fresh = rows_path.with_suffix(".new")
    try:
        earlier = SimulationSummary.model_validate_json((folder / SUMMARY).read_text(encoding="utf-8")).run
        _check_same(folder, earlier, facts)
        text = rows_path.read_text(encoding="utf-8") if rows_path.exists() else ""
        fresh.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        rows = read_rows(fresh)
    except ValidationError as error:
        raise ResumeError(f"--resume {folder} holds no run: {SUMMARY}: {describe_validation_error(error)}") from error
    except (OSError, RowsError) as error:
        raise ResumeError(f"--resume {folder} holds no run that can go on: {error}") from error
    kept = tuple(row for row in rows if not row.error)
    fresh.unlink()
    write_rows(fresh, kept)
    fresh.replace(rows_path)
    return earlier, kept


def _check_same(folder: Path, earlier: RunFacts, facts: RunFacts) -> None:
    """Raises ResumeError unless rows of the earlier run are those that would be made now."""
    if facts.commit.endswith(CHANGED):
        raise ResumeError(f"--resume {folder}: files of this checkout differ from its commit, so rows may be of other code; commit")
    versions = [", ".join(f"{name} {one.machine.get(name, '-')}" for name in PACKAGES) for one in (earlier, facts)]
    now = (("command", earlier.command, facts.command), ("commit", earlier.commit, facts.commit), ("version", *versions))
    for what, theirs, ours in now:
        if theirs != ours:
            raise ResumeError(f"--resume {folder} is of another {what}: {theirs}; now {ours}. Begin anew, or go back to that one")
