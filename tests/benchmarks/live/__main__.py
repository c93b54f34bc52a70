"""`make bench-live`: Nightjar's bars on a live system, two real replicas under Ray Serve.

One run does everything, in this order: cold starts, steady loads, the changing load, categories of prompts. What a section needs
from another is measured, too, where only the one was asked for. Ends with exit code 1 if something broke, and with --strict if a
bar was missed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.loadtests.load.goodput import GoodputError, GoodputTarget, parse_goodput
from nightjar.loadtests.load.prompts import PromptsError
from nightjar.loadtests.report.output import GoodputCommand, GoodputOption
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from tests.benchmarks.engine.fixture import build, says
from tests.benchmarks.live.effort import FULL, QUICK, Effort
from tests.benchmarks.live.playing import Player
from tests.benchmarks.live.sections.categories import measure_categories, short_prompts
from tests.benchmarks.live.sections.changing import measure_changing
from tests.benchmarks.live.sections.cold import LOAD, ColdRun, judge_cold, run_cold
from tests.benchmarks.live.sections.steady import Segments, measure_steady
from tests.benchmarks.live.system import live_system
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun, effort_of, sections_to_run

NOISE: Final = 0.12
"""On the draft's weights: about six of ten first tokens are right, as of an EAGLE head beside an 8B model. So a full batch lies
beyond the crossover. With bench-engine's draft, right in eight of ten, K = 1 and off tie there on a processor with matrix units,
and no load crosses anything."""
OUTPUT: Final = Path("runs/live/latest")
SECTIONS: Final = ("pooled", "steady", "changing", "categories")
NEEDS: Final = {"pooled": ("steady",), "changing": ("steady",)}
"""Speeds by K: to price what learning lost, and to tune the stock table."""
DATA_VARIABLE: Final = "NIGHTJAR_TEST_DATA"
PROMPTS_FILE: Final = "spec_bench_shared.jsonl"
MOST_TOLD_ERRORS: Final = 5


class Bench:
    """The sections of one run, on one system."""

    def __init__(
        self,
        run: BenchRun,
        effort: Effort,
        categories: dict[str, list[str]],
        target: GoodputTarget | None = None,
        *,
        with_paper: bool = False,
    ) -> None:
        self._run = run
        self._with_paper = with_paper
        self._target = target
        self._effort = effort
        self._categories = categories

    def measure(self) -> None:
        """The sections, in order."""
        models, sections = build(NOISE), self._run.sections
        self._run.tell("starting Ray Serve, the policy and two replicas")
        with live_system(models) as system:
            player = Player(system, self._run.tell, self._target)
            self._run.tell("both replicas serve")
            runs: list[ColdRun] = []
            if "pooled" in sections:
                runs = run_cold(player, self._effort, self._run.tell)
            if "steady" in sections:
                segments = self._steady(player, runs)
                if "changing" in sections:
                    self._changing(player, segments)
            if "categories" in sections:
                outcome = measure_categories(player, self._effort, self._categories, self._run.seed, self._run.tell)
                self._run.found("categories", outcome)
            self._run.found("requests", _requests(player))
            self._run.tell("stopping everything")

    def _steady(self, player: Player, runs: list[ColdRun]) -> Segments:
        rng = self._run.rng("steady")
        outcome, segments = measure_steady(player, self._effort, rng, self._run.seed, self._run.tell, with_paper=self._with_paper)
        self._run.found("steady", outcome)
        if runs:
            self._run.found("pooled", judge_cold(runs, segments.speeds_by_k(LOAD), self._run.seed))
        return segments

    def _changing(self, player: Player, segments: Segments) -> None:
        speeds = {load.rows: segments.speeds_by_k(load.name) for load in self._effort.loads}
        outcome = measure_changing(player, self._effort, speeds, self._run.rng("changing"), self._run.seed, self._run.tell)
        self._run.found("changing", outcome)


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
    outcome = Outcome(bars=[bar])
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


def _categories(file: Path | None) -> dict[str, list[str]]:
    if file is None:
        raise typer.BadParameter(f"section categories needs a file: --prompts or {DATA_VARIABLE} names it", param_hint="--only")
    try:
        return short_prompts(file)
    except PromptsError as error:
        raise typer.BadParameter(str(error), param_hint="--prompts") from error


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter segments and fewer rounds: a look, 20 minutes, on slow cores 40.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run, of {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Draws every order; prompts and decoding are the same for any.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json, raw rows and charts.")] = OUTPUT,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with `category` and `turns`.", show_default=f"{PROMPTS_FILE} in ${DATA_VARIABLE} or ../shared/data"
        ),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Score the paper's planner at the steady loads, too: 3 to 5 minutes more.")
    ] = False,
    goodput: GoodputOption = None,
    strict: StrictOption = False,
) -> None:
    """Measure the fleet planner on a live system: steady and changing loads, cold starts, acceptance by category."""
    try:
        target = parse_goodput(goodput or ())
    except GoodputError as error:
        raise typer.BadParameter(str(error), param_hint="--goodput") from error
    file = _prompts_file(prompts)
    only = only or [section for section in SECTIONS if section != "categories" or file is not None]
    sections = sections_to_run(only, SECTIONS, NEEDS)
    categories = _categories(file) if "categories" in sections else {}
    effort = effort_of(sections, SECTIONS, is_quick=quick)
    run = BenchRun("live", seeds=[seed], sections=sections, output=output, effort=effort, subject=says(NOISE))
    if "categories" not in sections:
        run.tell(f"without the section categories; --prompts or {DATA_VARIABLE} names its file, {PROMPTS_FILE}")
    Bench(run, QUICK if quick else FULL, categories, target, with_paper=paper).measure()
    raise typer.Exit(run.end(strict=strict))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(cls=GoodputCommand)(main)
    app()
