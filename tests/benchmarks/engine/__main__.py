"""`make bench-engine`: Nightjar's bars on real engines and one pinned core. Prints against the aims, never fails on timing.

One run does everything, in this order: off, crossover (with the changing load), restarts, simulator, pressure. What a section needs
from an earlier one is measured first, also where only the later one was asked for. Ends with exit code 1 only if something broke.
"""

from __future__ import annotations

import random
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tests.benchmarks.engine.changing_load import Run, measure_changing_load
from tests.benchmarks.engine.crossover import Cells, measure_crossover
from tests.benchmarks.engine.effort import FULL, QUICK, Effort
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.environment import load_average, machine, restart_pinned
from tests.benchmarks.engine.fixture import PRESSED_ROLES, SAYS, Role, build
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.off import OffTimes, measure_off
from tests.benchmarks.engine.outcome import Outcome
from tests.benchmarks.engine.pressure import measure_pressure
from tests.benchmarks.engine.report import print_bars, print_tables, write
from tests.benchmarks.engine.restarts import measure_restarts
from tests.benchmarks.engine.simulator import measure_simulator

OUTPUT: Final = Path("runs/engine/latest")
SECTIONS: Final = ("off", "crossover", "restarts", "simulator", "pressure")
NEEDS: Final = {"simulator": ("off", "crossover", "restarts")}


class Bench:
    """One run: engines, what was found, and where it is written."""

    def __init__(self, console: Console, effort: Effort, seed: int, output: Path, facts: dict[str, Any]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._console = console
        self._effort = effort
        self._seed = seed
        self._output = output
        self._log = output / "engines.log"
        self._facts = facts
        self._began_s = time.monotonic()
        self._times = OffTimes()

    def run(self, sections: tuple[str, ...]) -> None:
        """The sections, in order."""
        models = build()
        self._output.mkdir(parents=True, exist_ok=True)
        if "off" in sections:
            self._off(models)
        if set(sections) - {"off", "pressure"}:
            self._one_engine(sections, models)
        if "pressure" in sections:
            self._pressure(models)

    def _one_engine(self, sections: tuple[str, ...], models: dict[str, str]) -> None:
        """The sections that look at the same engine."""
        with ExitStack() as stack:
            self._tell("starting our engine")
            ours = stack.enter_context(Engine("nightjar", models, self._log))
            link = FleetLink(ours, self._seed)
            cells, runs = self._crossover(ours, link) if "crossover" in sections else (Cells(), [])
            if "restarts" in sections:
                outcome, cost = measure_restarts(ours, self._effort, self._rng("restarts"), self._seed, self._tell)
                self._found("restarts", outcome)
            if "simulator" in sections:
                outcome, profile = measure_simulator(
                    ours, link, cells, runs, self._times, cost, self._effort, self._rng("simulator"), self._tell
                )
                (self._output / "profile.json").write_text(profile.model_dump_json(indent=2) + "\n")
                self._found("simulator", outcome)

    def _off(self, models: dict[str, str]) -> None:
        def start(role: Role) -> Engine:
            return Engine(role, models, self._log)

        outcome, self._times = measure_off(start, self._effort, self._rng("off"), self._seed, self._tell)
        self._found("off", outcome)

    def _crossover(self, ours: Engine, link: FleetLink) -> tuple[Cells, list[Run]]:
        outcome, cells = measure_crossover(ours, link, self._effort, self._rng("crossover"), self._seed, self._tell)
        self._found("crossover", outcome)
        outcome, runs = measure_changing_load(ours, link, self._effort, self._rng("changing load"), self._tell)
        self._found("changing_load", outcome)
        return cells, runs

    def _pressure(self, models: dict[str, str]) -> None:
        with ExitStack() as stack:
            self._tell("starting three engines of equal memory")
            engines = {role: stack.enter_context(Engine(role, models, self._log)) for role in PRESSED_ROLES}
            outcome = measure_pressure(engines, self._effort, self._rng("pressure"), self._tell)
        self._found("pressure", outcome)

    def _rng(self, section: str) -> random.Random:
        return random.Random(f"{self._seed} {section}")

    def _tell(self, what: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began_s:6.0f} s[/] {what}")

    def _found(self, section: str, outcome: Outcome) -> None:
        self.outcomes[section] = outcome
        outcome.facts["done_after_s"] = round(time.monotonic() - self._began_s, 1)
        print_tables(self._console, outcome)
        write(self._output, self.outcomes, self._facts)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer batches, rounds and restarts: a look.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run, of {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Draws every order; prompts and decoding are the same for any.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json, raw rows, charts and the fitted profile.")] = OUTPUT,
) -> None:
    """Measure OFF, the crossover, restarts, the simulator and KV pressure on real engines."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    asked = set(only or SECTIONS)
    if unknown := asked - set(SECTIONS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: sections are {', '.join(SECTIONS)}", param_hint="--only")
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
    bench.run(sections)
    facts["load_at_end"] = load_average()
    facts["wall_seconds"] = round(time.monotonic() - began, 1)
    write(output, bench.outcomes, facts)
    print_bars(console, [measured for outcome in bench.outcomes.values() for measured in outcome.bars])
    console.print(f"load at end: {facts['load_at_end']}; {facts['wall_seconds']:.0f} s; rows, charts and summary: {output}")


if __name__ == "__main__":
    restart_pinned()
    typer.run(main)
