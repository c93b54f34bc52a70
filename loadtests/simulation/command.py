"""`nightjar simulate`: the planner against its rivals in virtual time, without engine, GPU or network.

Whatever the command line names is checked before anything runs: one line says what is unknown and what there is. A run that
breaks off fails the command; a bar that is missed is printed last and fails it only with --strict.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from nightjar.loadtests.arms.processes import as_keyboard_interrupt
from nightjar.loadtests.load.goodput import GoodputTarget, parse_goodput
from nightjar.loadtests.load.regimes import Regime, RegimeError, parse_regime
from nightjar.loadtests.load.rows import new_run_folder
from nightjar.loadtests.load.traces import read_trace
from nightjar.loadtests.report.machine import Effort as RunEffort
from nightjar.loadtests.report.machine import RunFacts, make_command, without_folders
from nightjar.loadtests.report.output import GoodputCommand, GoodputOption, Output, OutputOption, fail
from nightjar.loadtests.simulation.campaign.campaign import Campaign, ResumeError, resumed
from nightjar.loadtests.simulation.campaign.contestants import ContestantError, check_name
from nightjar.loadtests.simulation.campaign.efforts import (
    BENCH,
    FULL,
    QUICK,
    QUICK_EXPERIMENTS,
    QUICK_LOADS,
    QUICK_PROFILES,
    Effort,
)
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment, Suite
from nightjar.loadtests.simulation.campaign.loads import LOADS
from nightjar.loadtests.simulation.evidence.bars import StrictOption, print_missed
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.result_table import print_results
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.summary import NOT_JUDGED, SimulationSummary
from nightjar.loadtests.simulation.experiments.catalogue import EXPERIMENTS, SUITE
from nightjar.loadtests.simulation.experiments.goodput import UNDER_TARGET
from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, PUBLISHED_NAMES, Profile, ProfileError, read_profile

MAX_SEEDS: Final = 1000


class RefusedError(Exception):
    """The command line asks for something that does not exist. The message is one line."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, as it was typed."""

    profiles: Sequence[str]
    regimes: Sequence[str]
    planners: Sequence[str]
    only: Sequence[str]
    trace: Path | None
    seeds: int | None
    effort: Effort
    goodput: GoodputTarget | None = None


def simulate(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="A look in a minute: one profile, few seeds, no verdict.")] = False,
    full: Annotated[bool, typer.Option("--full", help="More seeds and longer runs than `make bench-policy`: hours.")] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Engine profile: a name, one from published numbers ({', '.join(PUBLISHED_NAMES)}), or a file. Repeatable.",
            show_default="all but those",
        ),
    ] = None,
    regime: Annotated[
        list[str] | None,
        typer.Option(help="Open-loop load: a name, or NAME:SECONDS@LOAD,... with rates of the whole service. Repeatable."),
    ] = None,
    planner: Annotated[list[str] | None, typer.Option(help="Run only these planners. Repeatable.", show_default="all")] = None,
    trace: Annotated[Path | None, typer.Option(help="CSV of a recorded load (docs/load-traces.md): one more load.")] = None,
    goodput: GoodputOption = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds where a bar looks, counted from 0.", min=1, max=MAX_SEEDS)] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these experiments: {', '.join(EXPERIMENTS)}. Repeatable.", show_default="those with a bar"),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes; 0: one per core.", min=0, max=1024)] = 0,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder for the runs; `latest` in it points to the newest.", show_default="runs/policy, or of its bench"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of a run of this very command that was stopped or killed: what it lacks is run."),
    ] = None,
    strict: StrictOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """The planner against the paper's, every static setting and published rivals, in virtual time.

    With --goodput and no --only: the highest load at which 95 % of requests are within the target, by planner.
    Prints the plan with its estimate, runs it on all cores, and writes rows.jsonl, summary.json (every bar under `bars`) and
    report.html. Deterministic: same seeds, same rows. Cells where we lose are printed, not dropped. Exit code 0 if every run
    came to its end, also where a bar was missed (see --strict); 1 if one broke off; 2 for a bad command line.
    """
    console, suite = Console(stderr=output is Output.JSON), context.find_object(Suite) or SUITE
    if quick and full:
        fail("--quick and --full: choose one of them", 2)
    if runs and resume:
        fail("--runs and --resume: a run that goes on stays in its folder; leave --runs out", 2)
    effort = QUICK if quick else FULL if full else BENCH
    try:
        asked = Asked(profile or (), regime or (), planner or (), only or (), trace, seeds, effort, parse_goodput(goodput or ()))
        campaign = Campaign(choose_experiments(asked, suite), choose(asked), jobs or cores(), suite)
    except (RefusedError, ProfileError, RegimeError, ContestantError, ValueError) as error:
        fail(str(error), 2)
    command = make_command(suite.bench, sys.argv[1:]) if suite.bench else simulate_command(sys.argv[2:])
    names = [experiment.name for experiment in campaign.experiments]
    facts = RunFacts.begun(suite.bench or "policy", command, effort_of(asked, suite), names)
    known: Sequence[RunRow] = ()
    if resume is not None:
        try:
            facts, known = resumed(resume, facts)
        except ResumeError as error:
            fail(str(error), 2)
    signal.signal(signal.SIGTERM, as_keyboard_interrupt)
    folder = resume or new_run_folder(runs or Path("runs") / (suite.bench or "policy"))
    try:
        summary, rows = campaign.run(folder, console, facts, known)
    except KeyboardInterrupt:
        fail(f"stopped; what was finished is in {folder}", 130)
    _show(summary, rows, suite.grids(rows), folder, console, output, judged=effort is not QUICK or strict)
    raise typer.Exit(1 if summary.failed or (strict and summary.missed) else 0)


def simulate_command(arguments: Sequence[str]) -> str:
    """What a person types to run it again, without where it writes.

    >>> simulate_command(["--quick", "--runs", "here"])
    'nightjar simulate --quick'
    """
    return shlex.join(("nightjar", "simulate", *without_folders(arguments)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def effort_of(asked: Asked, suite: Suite) -> RunEffort:
    """Whether a run with this command line is evidence for the bars: a whole bench, with at least as many seeds as they ask for."""
    if asked.effort is QUICK:
        return "quick"
    parts = (asked.profiles, asked.regimes, asked.planners, asked.only, asked.trace, asked.goodput)
    return "partial" if any(parts) or asked.seeds is not None or not suite.bench else "whole"


def choose_experiments(asked: Asked, suite: Suite) -> tuple[Experiment, ...]:
    """The experiments to run: those that a bar looks at, or fewer for a look, unless others are named, or only a target is.

    Raises RefusedError for an unknown one.
    """
    usual = [name for name in QUICK_EXPERIMENTS if name in suite.experiments] if asked.effort is QUICK else []
    only = asked.only or ([UNDER_TARGET.name] if asked.goodput else usual)
    for name in only:
        if command := suite.elsewhere.get(name):
            raise RefusedError(f"experiment {name} left this command: in a checkout of the repository, {command}")
        if name not in suite.experiments:
            raise RefusedError(f"experiment {_unknown(name, suite.experiments)}")
    if UNDER_TARGET.name in only and not asked.goodput:
        raise RefusedError(f"experiment {UNDER_TARGET.name} needs a target: --goodput ttft:500 tpot:50")
    return tuple(one for name, one in suite.experiments.items() if (name in only if only else one.bars))


def choose(asked: Asked) -> Choice:
    """What to run them about. Raises RefusedError, ProfileError, RegimeError, ContestantError or ValueError, each of one line."""
    effort = asked.effort
    if asked.seeds is not None:
        effort = effort.with_seeds(asked.seeds)
    if asked.trace is not None:
        read_trace(asked.trace)
    names = asked.profiles or (QUICK_PROFILES if effort.name == "quick" else PROFILE_NAMES)
    loads, regimes = _loads(asked)
    return Choice(
        profiles=_distinct([read_profile(name) for name in names]),
        loads=loads,
        effort=effort,
        regimes=regimes,
        planners=frozenset(map(check_name, asked.planners)) or None,
        trace=asked.trace,
        goodput=asked.goodput,
    )


def _loads(asked: Asked) -> tuple[tuple[str, ...], tuple[tuple[str, Regime], ...]]:
    """Loads by name, and regimes in the user's own words."""
    if not asked.regimes:
        return (QUICK_LOADS if asked.effort.name == "quick" else tuple(LOADS)), ()
    named = tuple(text for text in asked.regimes if text in LOADS)
    own = []
    for number, text in enumerate((text for text in asked.regimes if text not in LOADS), start=1):
        if "@" not in text:
            raise RefusedError(f"regime {_unknown(text, LOADS)}; or a regime in the form NAME:SECONDS@LOAD[,...]")
        own.append((f"regime-{number}", parse_regime(text)))
    return named, tuple(own)


def _distinct(profiles: list[Profile]) -> tuple[Profile, ...]:
    names = [profile.name for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(f"profile {name!r} is there more than once: rows are told apart by the profile's name")
    return tuple(profiles)


def _unknown(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"{name[:60]!r} is unknown{f', did you mean {near[0]}' if near else ''}; there are {', '.join(known)}"


def _show(
    summary: SimulationSummary,
    rows: Sequence[RunRow],
    grids: Sequence[Grid],
    folder: Path,
    console: Console,
    output: Output,
    *,
    judged: bool,
) -> None:
    """`judged`: whether the run is held against the bars."""
    if output is Output.JSON:
        typer.echo(summary.model_dump_json())
    else:
        print_results(summary, rows, grids, console, judged=judged)
        console.print(f"rows, summary and report: {folder}", markup=False, highlight=False, soft_wrap=True)
    if judged:
        print_missed(console, summary.bars.values())
    else:
        console.print(NOT_JUDGED, style="bold", highlight=False, soft_wrap=True)


app = typer.Typer(help="The planner in virtual time.")
app.command(cls=GoodputCommand)(simulate)
