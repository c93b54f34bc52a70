"""`nightjar canary`: let some replicas try a mode or a setting against the rest; it goes back by itself where it loses."""

from __future__ import annotations

import json
from typing import Annotated, Final, cast

import typer
from rich.console import Console

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import CANARY, CanaryBody
from nightjar.cluster.commands.mode import duration
from nightjar.cluster.commands.options import Output, OutputOption, TokenOption, UrlOption, call, escaped

app = typer.Typer()

OPTIONS: Final = {
    "mode": "--mode",
    "share": "--share",
    "application": "--application",
    "max_step_ms": "--max-step-ms",
    "settings": "--set",
    "for_s": "--for",
    "block_s": "--block",
    "reason": "--reason",
}
"""By field of POST /canary."""


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
        "settings": dict(map(setting, settings)) if settings else None,
        "for_s": for_s,
        "block_s": block_s,
    }
    request = cast("CanaryBody", {name: value for name, value in given.items() if value is not None})
    if (promote or end) and (request or (promote and end)):
        raise typer.BadParameter("give --promote, --end, or what is to be tried, one of them")
    request["do"] = "promote" if promote else "end" if end else "begin"
    if reason:
        request["reason"] = reason
    answer = call(url, token, OPTIONS, CANARY, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    found = answer["canary"] or {}
    Console().print(escaped(str(found.get("words", "no canary runs"))), highlight=False)
