"""`nightjar freeze`: keep the fleet as it is, or end that."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import FREEZE, FreezeBody
from nightjar.cluster.commands.mode import duration, what_ends_it
from nightjar.cluster.commands.options import Output, OutputOption, TokenOption, UrlOption, call
from nightjar.cluster.display.times import format_duration
from nightjar.policy.wire.status import NO_NEW

app = typer.Typer()


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
    request: FreezeBody = {"frozen": not end, "reason": reason}
    if for_s is not None:
        request["for_s"] = for_s
    answer = call(url, token, {"for_s": "--for", "reason": "--reason"}, FREEZE, request)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    until = f" for {format_duration(for_s)}" if for_s is not None else ""
    console = Console(highlight=False)
    console.print("fleet: not frozen" if end else f"fleet: frozen{until}: {NO_NEW}")
    for line in () if end else what_ends_it(answer, for_s, "nightjar freeze --end"):
        console.print(f"  {line}")
