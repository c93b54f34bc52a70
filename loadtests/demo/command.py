"""`nightjar demo` and `nightjar report`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.measure import Measurement

from nightjar.cluster.api.operations import OperationError
from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.arms.measures import ResultError, load_summary, read_result
from nightjar.loadtests.arms.processes import ENDING, ProcessError, as_keyboard_interrupt
from nightjar.loadtests.arms.samples import SamplesError, read_samples
from nightjar.loadtests.compare.command import show
from nightjar.loadtests.compare.run import PLAN_FILE, RunFiles, RunFilesError
from nightjar.loadtests.demo.caption import sentence
from nightjar.loadtests.demo.machine import NeedsError, machine_facts, read_served, warnings_for
from nightjar.loadtests.demo.report import render_report
from nightjar.loadtests.demo.run import Demo, DemoPlan
from nightjar.loadtests.demo.summary import RunSummary, summarise
from nightjar.loadtests.demo.watch import result_table
from nightjar.loadtests.load.figures import LOAD_FILE, LoadSummary, lines_of
from nightjar.loadtests.load.goodput import GoodputError, GoodputTarget, parse_goodput
from nightjar.loadtests.load.prompts import COMPARISON_PROMPTS
from nightjar.loadtests.load.regimes import RegimeError, parse_regime
from nightjar.loadtests.load.rows import RowsError, as_latest, read_rows, unnamed_run_folder
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.report.output import GoodputCommand, GoodputOption, Output, OutputOption, fail
from nightjar.policy.wire.record import describe_validation_error

DEMO_REGIME: Final = "quiet:38@=0.35,surge:16@4,drain:18@0,calm:32@=0.35"
"""Quiet is one request at a time on each of two replicas: at more, off has larger batches than drafts, and gains by it."""
LONG_REGIME: Final = "quiet:80@=0.27,surge:32@4,drain:36@0,calm:60@=0.27"
QUICK_REGIME: Final = "quiet:12@=0.6,surge:8@5,drain:8@0,calm:12@=0.6"

MOST_COLUMNS: Final = 200

app = typer.Typer(no_args_is_help=True, help="Load and evidence.")


class _Size(NamedTuple):
    """How much a demo sends and compares."""

    regime: str
    max_tokens: int
    comparison_tokens: int
    comparison_prompts: int

    effort: Effort = "whole"

    def plan(self, regime: str, seed: int, max_tokens: int | None) -> DemoPlan:
        """The plan of this size, with what the user asked for in place of it. Raises RegimeError."""
        return DemoPlan(
            regime=parse_regime(regime or self.regime),
            seed=seed,
            max_tokens=max_tokens or self.max_tokens,
            comparison_tokens=self.comparison_tokens,
            comparison_prompts=COMPARISON_PROMPTS[: self.comparison_prompts],
            effort=self.effort,
        )


USUAL: Final = _Size(DEMO_REGIME, max_tokens=24, comparison_tokens=24, comparison_prompts=4)
LONG: Final = _Size(LONG_REGIME, max_tokens=32, comparison_tokens=32, comparison_prompts=len(COMPARISON_PROMPTS))
QUICK: Final = _Size(QUICK_REGIME, max_tokens=24, comparison_tokens=16, comparison_prompts=2, effort="quick")


@app.command()
def demo(
    regime: Annotated[str, typer.Option(help="Load that every mode faces.", show_default=DEMO_REGIME)] = "",
    seed: Annotated[int, typer.Option(help="Seed of the arrivals and of the order of prompts.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens per answer under load.", min=2, show_default="24; 32 with --long")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the runs; `latest` in it points to the newest that has a report.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A short load and few compared texts: a trial, not evidence.")] = False,
    long: Annotated[bool, typer.Option("--long", help="A longer load, longer answers, more texts: a quarter of an hour.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Two real replicas under a changing load: off, a fixed K and auto compared.

    Builds the models if they are missing, starts the replicas, sends the same load under each mode (auto begins without knowledge),
    kills the policy actor once, compares texts, stops everything and writes report.html, requests.jsonl, decisions.jsonl,
    samples.jsonl and summary.json. Exit code 0 if no request failed, the texts are equal, every replica was steered, each K has its
    reason and the policy came back; a time never decides. About eight minutes on two cores, and one more where models are built.
    """
    console = Console(stderr=output is Output.JSON)
    if quick and long:
        raise typer.BadParameter("--quick and --long: name one of them", param_hint="--quick")
    size = QUICK if quick else LONG if long else USUAL
    try:
        plan = size.plan(regime, seed, max_tokens)
    except RegimeError as error:
        raise typer.BadParameter(str(error), param_hint="--regime") from error
    for number in ENDING:  # SIGINT, too: a shell's background jobs ignore it, and so would all that they start
        signal.signal(number, as_keyboard_interrupt)
    try:
        served = read_served(plan.config)
        for warning in warnings_for(served, machine_facts()):
            console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
        folder = unnamed_run_folder(runs)
    except (NeedsError, OSError) as error:
        fail(str(error))
    try:
        summary = Demo(plan, served, folder, console).run()
        folder = as_latest(folder)
    except KeyboardInterrupt:
        fail(f"stopped; nothing was left running, what was recorded is in {folder}", 130)
    except (TurnError, ProcessError, OperationError, RowsError, OSError) as error:
        fail(f"{error}\nwhat was recorded is in {folder}")
    _show(summary, folder, console, output)
    raise typer.Exit(0 if summary.passed else 1)


@app.command(cls=GoodputCommand)
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a recorded run or comparison, or a result file of vllm bench serve.")
    ] = Path("runs/demo/latest"),
    goodput: GoodputOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compute table and report.html of a recorded run or comparison again, from its rows; or show the figures of a load test.

    What the run checked while it had the engines at hand (texts, decisions) stays as summary.json says.
    """
    try:
        target = parse_goodput(goodput or ())
    except GoodputError as error:
        fail(str(error), 2)
    if folder.is_file():
        _report_result(folder, output)
        return
    if (folder / PLAN_FILE).is_file():
        try:
            show(RunFiles(folder), output)
        except (RunFilesError, RowsError, ResultError, OSError) as error:
            fail(str(error))
        return
    if (folder / LOAD_FILE).is_file():
        _report_load(folder, target, output)
        return
    try:
        recorded = RunSummary.model_validate_json((folder / "summary.json").read_bytes())
        rows, samples = read_rows(folder / "requests.jsonl"), read_samples(folder / "samples.jsonl")
        regime = parse_regime(recorded.regime)
    except OSError as error:
        fail(f"{folder} is no recorded run: {error.strerror} ({error.filename}); `nightjar demo` records one")
    except ValidationError as error:
        fail(f"{folder}/summary.json is no summary: {describe_validation_error(error)}")
    except (RowsError, SamplesError, RegimeError) as error:
        fail(str(error))
    phases = summarise(regime, recorded.modes, rows, samples, target)
    summary = recorded.model_copy(update={"phases": phases, "headline": sentence(phases, recorded.modes, recorded.others)})
    (folder / "report.html").write_text(render_report(summary, regime, rows, samples), encoding="utf-8")
    _show(summary, folder, Console(stderr=output is Output.JSON), output)


def _report_load(folder: Path, target: GoodputTarget | None, output: Output) -> None:
    """What a load test found, with the goodput of its rows under another target where one is given."""
    try:
        summary = LoadSummary.model_validate_json((folder / LOAD_FILE).read_bytes())
        rows = read_rows(folder / "requests.jsonl") if target else ()
    except OSError as error:
        fail(f"{folder} is no recorded load test: {error.strerror} ({error.filename})")
    except ValidationError as error:
        fail(f"{folder / LOAD_FILE} is none: {describe_validation_error(error)}")
    except RowsError as error:
        fail(str(error))
    if target:
        summary = summary.with_goodput(target, rows)
    _show_load(summary, output)


def _report_result(path: Path, output: Output) -> None:
    """What `vllm bench serve` found, as a load test of ours is shown."""
    try:
        _show_load(load_summary(path, read_result(path)), output)
    except ResultError as error:
        fail(str(error))


def _show_load(summary: LoadSummary, output: Output) -> None:
    if output is Output.JSON:
        typer.echo(summary.model_dump_json())
        return
    for name, value in lines_of(summary):
        typer.echo(f"{name}: {value}")


def _show(summary: RunSummary, folder: Path, console: Console, output: Output) -> None:
    if output is Output.JSON:
        typer.echo(summary.model_dump_json())
        return
    table = result_table(summary)
    needed = Measurement.get(console, console.options.update(max_width=MOST_COLUMNS), table).maximum
    wide = console if console.width >= needed else Console(width=needed)  # the terminal breaks its lines, but nothing is cut
    wide.print(table, "")
    for check in summary.checks:
        console.print(
            f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}", markup=False, highlight=False, soft_wrap=True
        )
    if summary.run and summary.memory:
        told = f"{summary.run.wall_seconds / 60:.1f} minutes on {summary.run.machine.get('processor', 'an unknown processor')}"
        console.print(f"took {told}", f"memory at most {summary.memory}", sep="\n", markup=False, highlight=False, soft_wrap=True)
    console.print(f"all of it: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    console.print(summary.headline, style="bold", markup=False, highlight=False, soft_wrap=True)
