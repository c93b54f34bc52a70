"""`nightjar mode`, `freeze` and `canary`: set by hand what the fleet, one application or some replicas do; what ends that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import typer

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import CANARY, FREEZE, MODE, Body
from nightjar.cluster.commands.options import Output, OutputOption, TokenOption, UrlOption, as_it_is, call
from nightjar.cluster.display.times import format_duration, parse_duration
from nightjar.policy.wire.operator import OBJECTIVES, PLANNER_NAMES
from nightjar.policy.wire.status import NO_NEW

app = typer.Typer()

MODE_OPTIONS: Final = {
    "max_step_ms": "--max-step-ms",
    "objective": "--objective",
    "planner": "--planner",
    "learned": "--learned",
    "for_s": "--for",
    "reason": "--reason",
}
"""By field of POST /mode."""
CANARY_OPTIONS: Final = {
    "mode": "--mode",
    "share": "--share",
    "application": "--application",
    "max_step_ms": "--max-step-ms",
    "objective": "--objective",
    "settings": "--set",
    "for_s": "--for",
    "block_s": "--block",
    "reason": "--reason",
}
"""By field of POST /canary."""


def what_ends_it(answer: Mapping[str, object], for_s: float | None, take_back: str, scope: str = "fleet") -> Iterator[str]:
    """How long a word by hand holds and what ends it, a line each. `take_back` is the command that does; `answer` the policy's.

    >>> for line in what_ends_it({"outlives": {"head": False, "upgrade": True}}, 1800.0, "nightjar mode default"):
    ...     print(line)
    holds for 30m, or until `nightjar mode default`; new settings and a restart of the policy do not end it
    losing the head node ends it: no GCS fault tolerance. Then the settings' mode holds
    an upgrade that runs both clusters takes it along (seed_from)
    >>> list(what_ends_it({"outlives": {"head": False, "upgrade": False, "folder": "/state"}}, None, "nightjar mode default"))[1:]
    ['kept in /state: a server that starts with this folder goes on with it']
    >>> for line in what_ends_it({"outlives": {"folder": "/tmp/state", "process": False}}, None, "nightjar mode default"):
    ...     print(line)
    holds until `nightjar mode default`; new settings do not end it
    ends with this server, which could not have its state folder (state_not_kept in its log)
    """
    until = f"for {format_duration(for_s)}, or until" if for_s is not None else "until"
    outlives = answer.get("outlives")
    is_kept = not isinstance(outlives, Mapping) or outlives.get("process", True)
    yield f"holds {until} `{take_back}`; new settings {'and a restart of the policy ' if is_kept else ''}do not end it"
    if scope == "replica":
        yield "ends with its replica"
    elif not isinstance(outlives, Mapping):
        yield "this policy does not say whether losing the head node or an upgrade ends it"
    elif not is_kept:
        yield "ends with this server, which could not have its state folder (state_not_kept in its log)"
    elif folder := outlives.get("folder"):
        yield f"kept in {folder}: a server that starts with this folder goes on with it"
    else:
        yield (
            "losing the head node does not end it (GCS fault tolerance)"
            if outlives.get("head")
            else "losing the head node ends it: no GCS fault tolerance. Then the settings' mode holds"
        )
        yield (
            "an upgrade that runs both clusters takes it along (seed_from)"
            if outlives.get("upgrade")
            else "an upgrade to a new cluster ends it: seed_from names no policy. Then the settings' mode holds"
        )


def duration(text: str) -> float:
    """Parser of `--for`, in typer's terms."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def mode(
    value: Annotated[str, typer.Argument(help="auto, shadow, off, pin=K, or default to take an override back.", metavar="MODE")],
    application: Annotated[str, typer.Option("--application", help="Only this application.", show_default=False)] = "",
    replica: Annotated[str, typer.Option("--replica", help="Only this replica (its name as in status).", show_default=False)] = "",
    max_step_ms: Annotated[
        float | None,
        typer.Option(
            "--max-step-ms", help="With auto or shadow: no K whose steps may take longer.", show_default="no limit of its own"
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help=f"With auto or shadow: what K is chosen by, {' or '.join(OBJECTIVES)}.",
            show_default="the settings' own",
        ),
    ] = "",
    planner: Annotated[
        str,
        typer.Option(
            "--planner",
            help=f"With auto or shadow, of the fleet: who decides, {', '.join(PLANNER_NAMES)}.",
            show_default="the settings' own",
        ),
    ] = "",
    learned: Annotated[
        str, typer.Option("--learned", help="keep, or reset: every planner of the fleet forgets what it has learned.")
    ] = "keep",
    for_s: Annotated[
        float | None,
        typer.Option(
            "--for", parser=duration, metavar="DURATION", help="Expires after 90s, 30m, 2h, 1d.", show_default="until taken back"
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown in status.", show_default=False)] = "",
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Override the mode of the fleet, an application or a replica. The most specific override wins; requests go on.

    Prints how long that holds and what would end it.
    """
    if application and replica:
        raise typer.BadParameter("give --application or --replica, not both")
    scope = "replica" if replica else "application" if application else "fleet"
    name = replica or application
    request: Body = {"mode": value, "scope": scope, "name": name, "for_s": for_s, "reason": reason}
    if max_step_ms is not None:
        request["max_step_ms"] = max_step_ms
    if objective:
        request["objective"] = objective
    if planner:
        request["planner"] = planner
    if learned != "keep":
        request["learned"] = learned
    options = MODE_OPTIONS | {"name": "--replica" if replica else "--application"}
    answer = call(url, token, options, MODE, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    until = f" for {format_duration(for_s)}" if for_s is not None else ""
    limit = f", steps of up to {max_step_ms:g} ms" if max_step_ms is not None else ""
    who = f", planner {planner}" if planner else ""
    what = f", objective {objective}" if objective else ""
    console = as_it_is()
    console.print(f"{f'{scope} {name}'.strip()}: mode {value}{who}{limit}{what}{until}")
    if answer.get("was_set") is False:
        console.print(f"  no mode of this {scope} was set by hand: nothing has changed; `nightjar status` shows what is")
    if value != "default":
        take_back = " ".join(["nightjar mode default", *([f"--{scope} {name}"] if name else [])])
        for line in what_ends_it(answer, for_s, take_back, scope):
            console.print(f"  {line}")


@app.command()
def freeze(
    end: Annotated[bool, typer.Option("--end", help="End the freeze in force.")] = False,
    for_s: Annotated[
        float | None,
        typer.Option("--for", parser=duration, metavar="DURATION", help="Ends after 90s, 30m, 2h, 1d.", show_default="until ended"),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown in status.", show_default=False)] = "",
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep the fleet as it is: no new plan, measurement or lease, until --for or --end. Again: prolong it.

    Settings are renewed and leases run out. `nightjar mode`, limits, the guard of every engine and its kill switch act as ever. A
    replica that starts meanwhile runs its group's plan; a group that had none runs off.
    """
    if end and for_s is not None:
        raise typer.BadParameter("give --end or --for, not both")
    request: Body = {"frozen": not end, "reason": reason}
    if for_s is not None:
        request["for_s"] = for_s
    answer = call(url, token, {"for_s": "--for", "reason": "--reason"}, FREEZE, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    until = f" for {format_duration(for_s)}" if for_s is not None else ""
    console = as_it_is()
    console.print("fleet: not frozen" if end else f"fleet: frozen{until}: {NO_NEW}")
    for line in () if end else what_ends_it(answer, for_s, "nightjar freeze --end"):
        console.print(f"  {line}")


def setting(text: str) -> tuple[str, float | int | str]:
    """Parser of `--set`, in typer's terms: `dwell_steps=8`."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise typer.BadParameter(f"{text[:80]!r} is no NAME=VALUE, such as dwell_steps=8")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, int(number) if number.is_integer() else number


@app.command()
def canary(
    mode: Annotated[str, typer.Option("--mode", help="Mode to try: auto, shadow, off, pin=K.", show_default=False)] = "",
    share: Annotated[
        float | None,
        typer.Option("--share", help="Share of each group's replicas that tries, up to 0.5.", show_default="all"),
    ] = None,
    application: Annotated[str, typer.Option("--application", help="Only this application tries.", show_default=False)] = "",
    max_step_ms: Annotated[
        float | None, typer.Option("--max-step-ms", help="Limit of a step to try.", show_default="none of its own")
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help=f"Objective to try, {' or '.join(OBJECTIVES)}.", show_default=False)
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Setting to try; repeatable.", show_default=False)
    ] = None,
    for_s: Annotated[
        float | None,
        typer.Option("--for", parser=duration, metavar="DURATION", help="Ends after 30m, 2h, 1d.", show_default="until ended"),
    ] = None,
    block_s: Annotated[
        float | None,
        typer.Option("--block", parser=duration, metavar="DURATION", help="Time that is compared at once.", show_default="10s"),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Give what is tried to all, as `nightjar mode` does.")] = False,
    end: Annotated[bool, typer.Option("--end", help="End the canary that runs.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown in status.", show_default=False)] = "",
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a share of the replicas, or one application, try a mode or a setting against the rest.

    After a baseline its goodput at the same batch is held against the control's. Where it is lower beyond doubt, the canary goes
    back by itself; where it is higher, `nightjar status` says so, and --promote or --end is yours.
    """
    given = {
        "mode": mode or None,
        "share": share,
        "application": application or None,
        "max_step_ms": max_step_ms,
        "objective": objective or None,
        "settings": dict(map(setting, settings)) if settings else None,
        "for_s": for_s,
        "block_s": block_s,
    }
    request: Body = {name: value for name, value in given.items() if value is not None}
    if (promote or end) and (request or (promote and end)):
        raise typer.BadParameter("give --promote, --end, or what is to be tried, one of them")
    request["do"] = "promote" if promote else "end" if end else "begin"
    if reason:
        request["reason"] = reason
    answer = call(url, token, CANARY_OPTIONS, CANARY, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    found = answer["canary"] or {}
    as_it_is().print(found.get("words", "no canary runs"))
