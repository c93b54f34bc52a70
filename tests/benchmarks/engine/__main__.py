"""`make bench-engine`: Nightjar's bars on real engines and one pinned core.

One run does everything, in this order: off, crossover (with the changing load), bursts, restarts, simulator, moves, pressure.
What a section needs from an earlier one is measured first, also where only the later one was asked for. Ends with exit code 1 if
something broke, and with --strict if a bar was missed.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.loadtests.simulation.evidence.bars import StrictOption
from tests.benchmarks.engine.effort import FULL, QUICK, Effort
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.environment import pinned_to, restart_pinned
from tests.benchmarks.engine.fixture import PRESSED_ROLES, Role, build, says
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.sections.bursts import measure_bursts
from tests.benchmarks.engine.sections.changing_load import ChangingLoad, Run
from tests.benchmarks.engine.sections.crossover import Cells, measure_crossover
from tests.benchmarks.engine.sections.moves import measure_moves
from tests.benchmarks.engine.sections.off import OffTimes, measure_off
from tests.benchmarks.engine.sections.pressure import measure_pressure
from tests.benchmarks.engine.sections.restarts import measure_restarts
from tests.benchmarks.engine.sections.simulator import PREDICTED_ARMS, held_against, measure_simulator
from tests.benchmarks.measuring.run import BenchRun, effort_of, sections_to_run

OUTPUT: Final = Path("runs/engine/latest")
SECTIONS: Final = ("off", "crossover", "bursts", "restarts", "simulator", "moves", "pressure")
NEEDS: Final = {"simulator": ("off", "crossover", "restarts")}


class Bench:
    """The sections of one run, and what they hand to each other."""

    def __init__(self, run: BenchRun, effort: Effort) -> None:
        self._run = run
        self._effort = effort
        self._log = run.output / "engines.log"
        self._times = OffTimes()

    def measure(self) -> None:
        """The sections, in order."""
        models, sections = build(), self._run.sections
        self._run.output.mkdir(parents=True, exist_ok=True)
        if "off" in sections:
            self._off(models)
        if set(sections) - {"off", "moves", "pressure"}:
            self._one_engine(sections, models)
        if "moves" in sections:
            self._moves(models)
        if "pressure" in sections:
            self._pressure(models)

    def _one_engine(self, sections: tuple[str, ...], models: dict[str, str]) -> None:
        """The sections that look at the same engine."""
        with ExitStack() as stack:
            self._run.tell("starting our engine")
            ours = stack.enter_context(Engine("nightjar", models, self._log))
            link = FleetLink(ours, self._run.seed)
            cells, runs = self._crossover(ours, link) if "crossover" in sections else (Cells(), [])
            if "bursts" in sections:
                run = self._run
                run.found("bursts", measure_bursts(ours, link, self._effort.bursts, run.rng("bursts"), run.seed, run.tell))
            if "restarts" in sections:
                outcome, cost = measure_restarts(ours, self._effort, self._run.rng("restarts"), self._run.seed, self._run.tell)
                self._run.found("restarts", outcome)
            if "simulator" in sections:
                outcome, profile = measure_simulator(ours, cells, runs, self._times, cost, self._effort)
                (self._run.output / "profile.json").write_text(profile.model_dump_json(indent=2) + "\n")
                self._run.found("simulator", outcome)

    def _moves(self, models: dict[str, str]) -> None:
        self._run.tell("starting an engine whose draft leaves")
        with Engine("lends", models, self._log) as lends:
            self._run.found("moves", measure_moves(lends, self._effort, self._run.tell))

    def _off(self, models: dict[str, str]) -> None:
        def start(role: Role) -> Engine:
            return Engine(role, models, self._log)

        outcome, self._times = measure_off(start, self._effort, self._run.rng("off"), self._run.seed, self._run.tell)
        self._run.found("off", outcome)

    def _crossover(self, ours: Engine, link: FleetLink) -> tuple[Cells, list[Run]]:
        run, effort = self._run, self._effort
        beside, again = (held_against(effort), PREDICTED_ARMS) if "simulator" in run.sections else ({}, ())
        load = ChangingLoad(ours, link, effort, run.rng("changing load"), run.tell, again)
        outcome, cells = measure_crossover(
            ours, link, effort, run.rng("crossover"), run.seed, run.tell, beside, lambda _: load.play_round()
        )
        run.found("crossover", outcome)
        run.found("changing_load", load.outcome())
        return cells, load.runs

    def _pressure(self, models: dict[str, str]) -> None:
        with ExitStack() as stack:
            self._run.tell("starting three engines of equal memory")
            engines = {role: stack.enter_context(Engine(role, models, self._log)) for role in PRESSED_ROLES}
            outcome = measure_pressure(engines, self._effort, self._run.rng("pressure"), self._run.tell)
        self._run.found("pressure", outcome)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer batches, rounds and restarts: a look.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run, of {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[
        int, typer.Option(help="Draws every order, and when bursts come; prompts and decoding are the same for any.")
    ] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json, raw rows, charts and the fitted profile.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """Measure OFF, the crossover, bursts of long prompts, restarts, the simulator, a draft's moves and KV pressure."""
    sections = sections_to_run(only, SECTIONS, NEEDS)
    effort = effort_of(sections, SECTIONS, is_quick=quick)
    run = BenchRun("engine", seeds=[seed], sections=sections, output=output, effort=effort, subject=says(), machine=pinned_to())
    Bench(run, QUICK if quick else FULL).measure()
    raise typer.Exit(run.end(strict=strict))


if __name__ == "__main__":
    restart_pinned()
    typer.run(main)
