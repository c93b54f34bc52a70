"""`nightjar compare`: arms in turns on one running system, and a page that says what may be said of the difference."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from pydantic import ValidationError

from nightjar.cluster.api.operations import OperationError
from nightjar.loadtests.arms.arm import FORM, ArmError, TurnError, parse_arms
from nightjar.loadtests.arms.load import PLACES, Load, filled
from nightjar.loadtests.arms.measures import ResultError
from nightjar.loadtests.arms.processes import as_keyboard_interrupt
from nightjar.loadtests.arms.session import Session, service_api
from nightjar.loadtests.compare.page import Findings, findings, page, sentences, table
from nightjar.loadtests.compare.run import (
    PAGE_FILE,
    TABLE_FILE,
    ComparePlan,
    Conductor,
    Facts,
    Learned,
    RunFiles,
    RunFilesError,
)
from nightjar.loadtests.load.openai_stream import AddressError, Server, first_model
from nightjar.loadtests.load.regimes import RegimeError, parse_regime
from nightjar.loadtests.load.rows import RowsError
from nightjar.loadtests.report.machine import commit, load_average, machine
from nightjar.loadtests.report.output import Output, OutputOption, fail
from nightjar.policy.wire.record import describe_validation_error

DEFAULT_ARMS: Final = ("off", "auto")
DEFAULT_REGIME: Final = "quiet:20@0.5,surge:20@3"
TURN_EXTRA_S: Final = 8.0
"""Of a switch, the load generator's start and the last answers."""
LEARNED_FILE: Final = "learned-before.json"
HIDDEN: Final = "--token"

app = typer.Typer(no_args_is_help=True)


@app.command()
def compare(
    arm: Annotated[list[str] | None, typer.Option(help=f"{FORM}. Repeatable.", show_default="off, auto")] = None,
    url: Annotated[
        str, typer.Option(envvar="NIGHTJAR_URL", show_envvar=True, help="Address of the Serve proxy, without the route prefix.")
    ] = "http://127.0.0.1:8000",
    token: Annotated[
        str, typer.Option(envvar="NIGHTJAR_API_TOKEN", show_envvar=True, help="API token, to set modes.", show_default=False)
    ] = "",
    regime: Annotated[str, typer.Option(help="Load of every turn, as of Locust's --regime.", show_default=DEFAULT_REGIME)] = "",
    trace: Annotated[str, typer.Option(help="CSV of a recorded load in place of a regime.", show_default=False)] = "",
    prompts: Annotated[str, typer.Option(help="JSON lines of texts for either.", show_default="built-in ones")] = "",
    tokenizer: Annotated[str, typer.Option(help="tokenizer.json, for --trace.", show_default="an estimate")] = "",
    time_scale: Annotated[float, typer.Option(help="Factor of a trace's times.")] = 1.0,
    trace_s: Annotated[float, typer.Option(help="Only so many seconds of a trace, 0 for all.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens per answer, of a regime.", min=2)] = 32,
    command: Annotated[
        str,
        typer.Option(
            help="Send the load with this instead: it must write a result of vllm bench serve to {result_file}. "
            f"Also filled in: {', '.join(f'{{{place}}}' for place in PLACES)}.",
            show_default=False,
        ),
    ] = "",
    rounds: Annotated[int, typer.Option(help="Rounds that count; each has every arm once.", min=1, max=1000)] = 6,
    lessons: Annotated[int, typer.Option(help="Rounds before those: planners learn, nothing is counted.", min=0, max=100)] = 1,
    warm_up_s: Annotated[
        float, typer.Option(help="Seconds at a turn's begin that do not count, of a regime or trace.", min=0)
    ] = 5.0,
    learned: Annotated[
        str, typer.Option(help="What planners have learned: keep it from turn to turn, or reset it before each of theirs.")
    ] = "keep",
    seed: Annotated[int, typer.Option(help="Of the order of arms and, with the round's number, of the load.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Folder of this run.", show_default="runs/compare/ and the time")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --folder; --rounds may be more.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare modes, planners and other servers in turns under one load, with intervals, and write a page of it.

    The first arm is what the others are compared with. Arms of the running system are set over the policy's API, one after the
    other in shuffled rounds; what ran before is put back at the end, also after Ctrl-C. Writes report.html, table.md and every raw
    row or result. Exit code 0 when the turns are played, whatever they show.
    """
    with _one_line_errors(None):
        load = _load(regime, trace, prompts, tokenizer, time_scale, trace_s, max_tokens, command, warm_up_s)
        if learned not in get_args(Learned):
            raise ArmError(f"--learned {learned!r}: allowed are {', '.join(get_args(Learned))}")
        plan = ComparePlan(
            arms=parse_arms(arm or DEFAULT_ARMS), url=Server(url.rstrip("/")).url, load=load, rounds=rounds, lessons=lessons,
            seed=seed, learned=cast("Learned", learned),
        )  # fmt: skip
        if resume and folder is None:
            raise RunFilesError("--resume needs --folder, the run to go on with")
    files = RunFiles(folder or Path("runs/compare") / time.strftime("%Y%m%d-%H%M%S"))
    signal.signal(signal.SIGTERM, as_keyboard_interrupt)
    with _one_line_errors(files):
        _run(plan, files, token, resumes=resume)
        show(files, output)


def show(files: RunFiles, output: Output) -> None:
    """Compute page and table of a folder again, and print sentences and table. Raises RunFilesError, RowsError, ResultError."""
    found = findings(files)
    (files.folder / PAGE_FILE).write_text(page(found), encoding="utf-8")
    (files.folder / TABLE_FILE).write_text(table(found), encoding="utf-8")
    if output is Output.JSON:
        typer.echo(_json(found))
        return
    typer.echo(table(found))
    for line in sentences(found):
        typer.echo(line)
    typer.echo(f"report: {files.folder / PAGE_FILE}")


def _run(plan: ComparePlan, files: RunFiles, token: str, *, resumes: bool) -> None:
    switched = any(not arm.url for arm in plan.arms)
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(service_api(plan.url, token)) if switched else None
        session = None if api is None else Session(api, "nightjar compare", learned_file=files.folder / LEARNED_FILE)
        facts = Facts(
            plan=plan, began=datetime.now(UTC).isoformat(timespec="seconds"), command=_command_line(), commit=commit(),
            machine=machine(), load_at_begin=load_average(), model=_model(plan),
        )  # fmt: skip
        if resumes:
            files.resumed(plan)
        if session is not None:
            stack.callback(_put_back, session)
            status = session.prepare()
            facts = facts.model_copy(update={"replicas": len(status.replicas), "mode_before": session.mode_before})
        if not resumes:
            files.begin(facts)
        _tell(_expected(plan, files))
        Conductor(plan, files, api, session, _tell).run()


def _put_back(session: Session) -> None:
    """Also on a failure, whose own line is told after this one."""
    try:
        words = session.put_back()
    except TurnError as error:
        _tell(f"error: {error}")
    else:
        if words:
            _tell(f"put back: {words}")


def _load(
    regime: str,
    trace: str,
    prompts: str,
    tokenizer: str,
    time_scale: float,
    trace_s: float,
    max_tokens: int,
    command: str,
    warm_up_s: float,
) -> Load:
    """The load that the options name, one of the three. Raises RegimeError or TurnError."""
    named = [name for name, value in (("--regime", regime), ("--trace", trace), ("--command", command)) if value]
    if len(named) > 1:
        raise TurnError(f"{' and '.join(named)}: a turn has one load, give one of them")
    if command:
        filled(command, {})
        if not any(f"{{{place}}}" in command for place in ("result_file", "result_name")):
            raise TurnError("command: it names neither {result_file} nor {result_name}, so nothing of its results would be found")
        return Load(command=command)
    if trace:
        return Load(trace=trace, prompts=prompts, tokenizer=tokenizer, time_scale=time_scale, trace_s=trace_s, warm_up_s=warm_up_s)
    return Load(regime=str(parse_regime(regime or DEFAULT_REGIME)), prompts=prompts, max_tokens=max_tokens, warm_up_s=warm_up_s)


def _model(plan: ComparePlan) -> str:
    """The first model that is served; empty where a command asks in its own way and nobody lists one."""
    try:
        return first_model(Server(plan.url))
    except ConnectionError:
        if plan.load.command:
            return ""
        raise


def _expected(plan: ComparePlan, files: RunFiles) -> str:
    left = len(plan.turns({(turn.round, turn.arm) for turn in files.played()}))
    words = f"{left} turns of {', '.join(arm.name for arm in plan.arms)} into {files.folder}"
    if plan.load.regime:
        seconds = left * (plan.load.warm_up_s + parse_regime(plan.load.regime).duration_s + TURN_EXTRA_S)
        words += f", about {seconds / 60:.0f} minutes"
    return words


def _command_line() -> str:
    """What a person types to run it again, without the token."""
    words = sys.argv[1:]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if HIDDEN not in {before, word} and not word.startswith(f"{HIDDEN}=")
    ]
    return f"nightjar {shlex.join(kept)}"


def _json(found: Findings) -> str:
    comparisons = [
        {
            "phase": one.phase, "arm": one.arm, "baseline": one.baseline, "rounds": one.rounds, "verdict": one.verdict,
            "failed": one.failed, "requests": one.requests, "ratios": {name: ratio.plain() for name, ratio in one.ratios.items()},
        }
        for one in found.comparisons
    ]  # fmt: skip
    return json.dumps({"facts": found.facts.model_dump(mode="json"), "comparisons": comparisons})


def _tell(line: str) -> None:
    typer.echo(line, err=True)


@contextlib.contextmanager
def _one_line_errors(files: RunFiles | None) -> Iterator[None]:
    """Expected failures as one line and exit code 2 before anything began, 1 after."""
    kept = f"; what was played is kept, --resume --folder {files.folder} goes on" if files is not None else ""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"stopped{kept}", 130)
    except ValidationError as error:
        fail(describe_validation_error(error), 2)
    except (ArmError, AddressError, RegimeError) as error:
        fail(str(error), 2)
    except (TurnError, OperationError) as error:
        fail(f"{error}{kept}", 1 if files is not None else 2)
    except RunFilesError as error:
        fail(str(error), 1 if files is not None else 2)
    except (RowsError, ResultError, ConnectionError, OSError) as error:
        fail(str(error))
