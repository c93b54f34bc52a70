"""One run of a benchmark: which sections, its facts, and what it found so far, told and written as it comes.

A run that breaks leaves what it had. Never fails on what was measured.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from tests.benchmarks.measuring.machine import load_average, machine
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.report import print_bars, print_tables, write


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


class BenchRun:
    """Begins when it is made, and says with what; `end` prints the bars."""

    def __init__(self, *, seed: int, sections: tuple[str, ...], output: Path, is_quick: bool, facts: Mapping[str, Any]) -> None:
        self.seed = seed
        self.sections = sections
        self.output = output
        self.console = Console(width=None if sys.stdout.isatty() else 140)
        self._outcomes: dict[str, Outcome] = {}
        self._began_s = time.monotonic()
        self._facts: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "effort": "quick" if is_quick else "full",
            "sections": sections,
            **facts,
            "machine": machine() | facts.get("machine", {}),
            "load_at_begin": load_average(),
        }
        for name, fact in self._facts.items():
            if name != "began":
                self.console.print(f"{name}: {fact}")

    def rng(self, section: str) -> random.Random:
        """What a section draws from."""
        return random.Random(f"{self.seed} {section}")

    def tell(self, what: str) -> None:
        """A line with the time since the run began."""
        self.console.print(f"[dim]{time.monotonic() - self._began_s:6.0f} s[/] {escape(what)}", highlight=False)

    def found(self, section: str, outcome: Outcome) -> None:
        """A section is done."""
        self._outcomes[section] = outcome
        outcome.facts["done_after_s"] = round(time.monotonic() - self._began_s, 1)
        print_tables(self.console, outcome)
        write(self.output, self._outcomes, self._facts)

    def end(self) -> None:
        """Everything is done."""
        wall_seconds = time.monotonic() - self._began_s
        self._facts |= {"load_at_end": load_average(), "wall_seconds": round(wall_seconds, 1)}
        write(self.output, self._outcomes, self._facts)
        print_bars(self.console, [measured for outcome in self._outcomes.values() for measured in outcome.bars])
        load = self._facts["load_at_end"]
        self.console.print(f"load at end: {load}; {wall_seconds:.0f} s; rows, charts and summary: {self.output}")
