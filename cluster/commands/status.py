"""`nightjar status`: the fleet once. `nightjar watch`: the fleet as it changes."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import STATUS, OperationError
from nightjar.cluster.commands.options import Output, OutputOption, UrlOption, call, one_line_errors, open_client
from nightjar.cluster.display.fleet import fleet_view
from nightjar.policy.wire.status import FleetStatus

app = typer.Typer()

ROWS_BESIDE_REPLICAS: Final = 16
"""Of a terminal: what `watch` shows above and below its replicas, with two groups."""


@app.command()
def status(url: UrlOption = DEFAULT_URL, output: OutputOption = Output.TABLE) -> None:
    """Show every replica (batch, queue, KV use, K, acceptance, drafter) and every group: its plan and what it gained."""
    fleet = call(url, "", {}, STATUS)
    if output is Output.JSON:
        typer.echo(fleet.model_dump_json(exclude_none=True))
    else:
        Console().print(fleet_view(fleet))


@app.command()
def watch(
    url: UrlOption = DEFAULT_URL,
    output: OutputOption = Output.TABLE,
    every_s: Annotated[float, typer.Option("--every", min=0.2, max=3600.0, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Follow the fleet in a live table until Ctrl-C (-o json: one line per look). A service that restarts is waited for."""
    with one_line_errors({}), open_client(url) as client:
        fleet = client.call(STATUS)
        if output is Output.JSON:
            while True:
                typer.echo(fleet.model_dump_json(exclude_none=True))
                time.sleep(every_s)
                fleet = client.call(STATUS)
        console = Console()

        def seen(fleet: FleetStatus) -> RenderableType:
            return fleet_view(fleet, rows=max(console.height - ROWS_BESIDE_REPLICAS, 1) if console.is_terminal else None)

        view = seen(fleet)
        with Live(view, console=console, refresh_per_second=4, screen=console.is_terminal) as live:
            while True:
                time.sleep(every_s)
                try:
                    view = seen(client.call(STATUS))
                except OperationError as error:
                    view = Text(f"waiting: {error}", style="yellow")
                live.update(view)
