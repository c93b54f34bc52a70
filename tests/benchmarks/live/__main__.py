"""`make bench-live`: Nightjar's bars on a live system, two real replicas under Ray Serve. Never fails on timing.

One run does everything, in this order: cold starts, steady loads, the changing load, categories of prompts. What a section needs
from another is measured, too, where only the one was asked for. Ends with exit code 1 only if something broke.
"""

from __future__ import annotations

import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from nightjar.loadtests.simulation.evidence.bars import Bar
from tests.benchmarks.engine.environment import load_average, machine
from tests.benchmarks.engine.fixture import MAX_NUM_SEQS, SAYS, build
from tests.benchmarks.engine.outcome import MeasuredBar, Outcome
from tests.benchmarks.engine.report import print_bars, print_tables, write
from tests.benchmarks.live.categories import CategoriesError, measure_categories, read_categories
from tests.benchmarks.live.changing import measure_changing
from tests.benchmarks.live.cold import LOAD, ColdRun, judge_cold, run_cold
from tests.benchmarks.live.effort import FULL, QUICK, Effort
from tests.benchmarks.live.playing import Player
from tests.benchmarks.live.steady import Segments, measure_steady
from tests.benchmarks.live.stock_table import tuned_table
from tests.benchmarks.live.system import live_system

OUTPUT: Final = Path("runs/live/latest")
SECTIONS: Final = ("pooled", "steady", "changing", "categories")
NEEDS: Final = {"pooled": ("steady",), "changing": ("steady",)}
"""Speeds by K: to price what learning lost, and to tune the stock table."""
DATA_VARIABLE: Final = "NIGHTJAR_TEST_DATA"
PROMPTS_FILE: Final = "spec_bench_shared.jsonl"
MOST_TOLD_ERRORS: Final = 5


class Bench:
    """One run: a system, what was found, and where it is written."""

    def __init__(self, console: Console, effort: Effort, seed: int, output: Path, facts: dict[str, Any]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._console = console
        self._effort = effort
        self._seed = seed
        self._output = output
        self._facts = facts
        self._began_s = time.monotonic()

    def run(self, sections: tuple[str, ...], categories: dict[str, list[str]]) -> None:
        """The sections, in order."""
        models = build()
        self._tell("starting Ray Serve, the policy and two replicas")
        with live_system(models) as system:
            player = Player(system, self._tell)
            self._tell("both replicas serve")
            runs: list[ColdRun] = []
            if "pooled" in sections:
                runs = run_cold(player, self._effort, self._tell)
            if "steady" in sections:
                segments = self._steady(player, runs)
                if "changing" in sections:
                    self._changing(player, segments)
            if "categories" in sections:
                outcome = measure_categories(player, self._effort, categories, self._seed, self._tell)
                self._found("categories", outcome)
            self._found("requests", _requests(player))
            self._tell("stopping everything")

    def _steady(self, player: Player, runs: list[ColdRun]) -> Segments:
        outcome, segments = measure_steady(player, self._effort, self._rng("steady"), self._seed, self._tell)
        self._found("steady", outcome)
        if runs:
            self._found("pooled", judge_cold(runs, segments.speeds_by_length(LOAD, "odd"), self._seed))
        return segments

    def _changing(self, player: Player, segments: Segments) -> None:
        speeds = {load.rows: segments.speeds_by_length(load.name, "odd") for load in self._effort.loads}
        table = tuned_table(speeds, MAX_NUM_SEQS)
        self._tell(f"starting stock vLLM twice, with the table {table}")
        player.system.add_stock(table)
        outcome = measure_changing(player, self._effort, table, self._rng("changing"), self._seed, self._tell)
        self._found("changing", outcome)

    def _rng(self, section: str) -> random.Random:
        return random.Random(f"{self._seed} {section}")

    def _tell(self, what: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began_s:6.0f} s[/] {escape(what)}", highlight=False)

    def _found(self, section: str, outcome: Outcome) -> None:
        self.outcomes[section] = outcome
        outcome.facts["done_after_s"] = round(time.monotonic() - self._began_s, 1)
        print_tables(self._console, outcome)
        write(self._output, self.outcomes, self._facts)


def _requests(player: Player) -> Outcome:
    """Over everything that was played."""
    bar = Bar(
        name="failed_requests",
        meaning="requests of all sections that ended otherwise than whole, those not counted that the client itself cut off",
        direction="at most",
        limit=0.0,
        value=float(len(player.errors)),
        at=f"of {player.requests} requests",
        cells=player.requests,
    )
    outcome = Outcome(bars=[MeasuredBar(bar)])
    outcome.facts = {
        "requests": player.requests,
        "errors": player.errors[:MOST_TOLD_ERRORS],
        "tokens_of_clients_over_those_of_engines": round(player.clients_over_engines(), 4),
    }
    return outcome


def _prompts_file(named: Path | None) -> Path | None:
    """The file that was named, else Spec-Bench's in the data folder; None where that is absent."""
    if named is not None:
        return named
    usual = Path(os.environ.get(DATA_VARIABLE) or "../shared/data") / PROMPTS_FILE
    return usual if usual.is_file() else None


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Shorter segments and fewer rounds: a look, under 20 minutes.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run, of {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Draws every order; prompts and decoding are the same for any.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json, raw rows and charts.")] = OUTPUT,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with `category` and `turns`.", show_default=f"{PROMPTS_FILE} in ${DATA_VARIABLE} or ../shared/data"
        ),
    ] = None,
) -> None:
    """Measure the fleet planner on a live system: steady and changing loads, cold starts, acceptance by category."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    asked = set(only or SECTIONS)
    if unknown := asked - set(SECTIONS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: sections are {', '.join(SECTIONS)}", param_hint="--only")
    categories: dict[str, list[str]] = {}
    file = _prompts_file(prompts)
    if "categories" in asked and file is None:
        console.print(f"no section categories: {PROMPTS_FILE} is absent; --prompts or {DATA_VARIABLE} names it", style="yellow")
        asked.discard("categories")
    if "categories" in asked and file is not None:
        try:
            categories = read_categories(file)
        except CategoriesError as error:
            raise typer.BadParameter(str(error), param_hint="--prompts") from error
    wanted = asked.union(*(NEEDS.get(section, ()) for section in asked))
    sections = tuple(section for section in SECTIONS if section in wanted)
    facts: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "effort": "quick" if quick else "full",
        "sections": sections,
        "fixture": SAYS,
        "machine": machine(),
        "load_at_begin": load_average(),
    }
    for name in ("seed", "effort", "sections", "fixture", "machine", "load_at_begin"):
        console.print(f"{name}: {facts[name]}")
    bench = Bench(console, QUICK if quick else FULL, seed, output, facts)
    began = time.monotonic()
    bench.run(sections, categories)
    facts["load_at_end"] = load_average()
    facts["wall_seconds"] = round(time.monotonic() - began, 1)
    write(output, bench.outcomes, facts)
    print_bars(console, [measured for outcome in bench.outcomes.values() for measured in outcome.bars])
    console.print(f"load at end: {facts['load_at_end']}; {facts['wall_seconds']:.0f} s; rows, charts and summary: {output}")


if __name__ == "__main__":
    typer.run(main)
