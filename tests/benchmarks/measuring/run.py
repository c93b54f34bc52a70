"""One run of a benchmark: which sections, its facts, and what it found so far, told and written as it comes.

A run that breaks leaves what it had, marked as not ended. What was measured fails a run only where it is strict.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape

from nightjar.loadtests.report.machine import Effort, RunFacts, make_command
from nightjar.loadtests.simulation.evidence.bars import Bar, print_missed
from nightjar.loadtests.simulation.evidence.result_table import rich_table
from nightjar.loadtests.simulation.evidence.summary import span_of
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.report import print_bars, write

WIDTH: Final = 140


def sections_to_run(only: Iterable[str] | None, sections: Sequence[str], needs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Those that are asked for (all where none is) with what they need, in order. Raises typer.BadParameter.

    >>> sections_to_run(["c"], ("a", "b", "c"), {"c": ("a",)})
    ('a', 'c')
    """
    asked = set(only or sections)
    if unknown := asked - set(sections):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: sections are {', '.join(sections)}", param_hint="--only")
    wanted = asked.union(*(needs.get(section, ()) for section in asked))
    return tuple(section for section in sections if section in wanted)


def effort_of(sections: Sequence[str], every: Sequence[str], *, is_quick: bool) -> Effort:
    """Whether a run of these sections is evidence for all bars.

    >>> effort_of(["a"], ["a", "b"], is_quick=False), effort_of(["a", "b"], ["a", "b"], is_quick=False)
    ('partial', 'whole')
    """
    return "quick" if is_quick else "whole" if set(sections) == set(every) else "partial"


class BenchRun:
    """Begins when it is made, and says with what; `end` prints the bars. The command is taken from this process's arguments."""

    def __init__(
        self,
        bench: str,
        *,
        seeds: Sequence[int],
        sections: Sequence[str],
        output: Path,
        effort: Effort,
        subject: str = "",
        machine: Mapping[str, str] | None = None,
        width: int = WIDTH,
    ) -> None:
        """`width` is how many columns the tables get where no terminal says."""
        self.seeds = tuple(seeds)
        self.sections = tuple(sections)
        self.output = output
        self.console = Console(width=None if sys.stdout.isatty() else width)
        self._outcomes: dict[str, Outcome] = {}
        self._began_s = time.monotonic()
        self._facts = RunFacts.begun(bench, make_command(bench, sys.argv[1:]), effort, sections, subject, **machine or {})
        for name, fact in {
            "seeds": span_of(self.seeds),
            **self._facts.model_dump(exclude_defaults=True, exclude={"began"}),
        }.items():
            self.console.print(f"{name}: {fact}", markup=False)

    @property
    def seed(self) -> int:
        """The first, or the only one."""
        return self.seeds[0]

    @property
    def bars(self) -> list[Bar]:
        """Found so far."""
        return [bar for outcome in self._outcomes.values() for bar in outcome.bars]

    def rng(self, section: str) -> random.Random:
        """What a section draws from."""
        return random.Random(f"{self.seed} {section}")

    def tell(self, what: str) -> None:
        """A line with the time since the run began."""
        self.console.print(f"[dim]{time.monotonic() - self._began_s:6.0f} s[/] {escape(what)}", highlight=False)

    def found(self, section: str, outcome: Outcome) -> None:
        """A section is done, and was to give each of its bars a value."""
        outcome.bars = [bar.model_copy(update={"is_due": True}) for bar in outcome.bars]
        outcome.facts["done_after_s"] = round(time.monotonic() - self._began_s, 1)
        self._outcomes[section] = outcome
        for table in outcome.tables:
            self.console.print(rich_table(table))
        self._write(has_ended=False)

    def end(self, *, strict: bool) -> int:
        """Everything is done. The exit code: 1 where a bar was missed and the run is strict."""
        self._write(has_ended=True)
        print_bars(self.console, self.bars)
        ended = self._facts
        self.console.print(
            f"load at end: {ended.load_at_end}; {ended.wall_seconds:.0f} s; rows, charts and summary: {self.output}", markup=False
        )
        print_missed(self.console, self.bars)
        return int(strict and any(bar.is_missed for bar in self.bars))

    def _write(self, *, has_ended: bool) -> None:
        self._facts = self._facts.after(time.monotonic() - self._began_s, has_ended=has_ended)
        write(self.output, self._outcomes, self._facts, {"all": self.seeds})
