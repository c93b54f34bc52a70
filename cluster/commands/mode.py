"""`nightjar mode`: set by hand what the fleet, one application or one replica does, and say what ends that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import typer
from rich.console import Console

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import MODE, ModeBody
from nightjar.cluster.commands.options import Output, OutputOption, TokenOption, UrlOption, call, escaped
from nightjar.cluster.display.times import format_duration, parse_duration

app = typer.Typer()

OPTIONS: Final = {
    "max_step_ms": "--max-step-ms",
    "planner": "--planner",
    "learned": "--learned",
    "for_s": "--for",
    "reason": "--reason",
}
"""By field of POST /mode."""


def what_ends_it(answer: Mapping[str, object], for_s: float | None, take_back: str, scope: str = "fleet") -> Iterator[str]:
    """How long a word by hand holds and what ends it, a line each. `take_back` is the command that does; `answer` the policy's.

    >>> for line in what_ends_it({"outlives": {"head": False, "upgrade": True}}, 1800.0, "nightjar mode default"):
    ...     print(line)
    holds for 30m, or until `nightjar mode default`; new settings and a restart of the policy do not end it
    losing the head node ends it: no GCS fault tolerance. Then the settings' mode holds
    an upgrade that runs both clusters takes it along (seed_from)
    """
    until = f"for {format_duration(for_s)}, or until" if for_s is not None else "until"
    yield f"holds {until} `{take_back}`; new settings and a restart of the policy do not end it"
    outlives = answer.get("outlives")
    if scope == "replica":
        yield "ends with its replica"
    elif not isinstance(outlives, Mapping):
        yield "this policy does not say whether losing the head node or an upgrade ends it"
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
    planner: Annotated[
        str,
        typer.Option(
            "--planner",
            help="With auto or shadow, of the fleet: who decides, fleet, nightjar, fixed or schedule.",
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
    request: ModeBody = {"mode": value, "scope": scope, "name": name, "for_s": for_s, "reason": reason}
    if max_step_ms is not None:
        request["max_step_ms"] = max_step_ms
    if planner:
        request["planner"] = planner
    if learned != "keep":
        request["learned"] = learned
    options = OPTIONS | {"name": "--replica" if replica else "--application"}
    answer = call(url, token, options, MODE, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    until = f" for {format_duration(for_s)}" if for_s is not None else ""
    limit = f", steps of up to {max_step_ms:g} ms" if max_step_ms is not None else ""
    who = f", planner {planner}" if planner else ""
    console = Console(highlight=False)
    console.print(f"{escaped(f'{scope} {name}'.strip())}: mode {escaped(value)}{escaped(who)}{limit}{until}")
    if value != "default":
        take_back = " ".join(["nightjar mode default", *([f"--{scope} {name}"] if name else [])])
        for line in what_ends_it(answer, for_s, take_back, scope):
            console.print(f"  {escaped(line)}")
