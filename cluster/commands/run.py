"""`nightjar run FILE`: check a Serve YAML, serve it on a local Ray cluster of its own, stop all of it on Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nightjar.cluster.commands.options import Output, OutputOption
from nightjar.cluster.local_session import LocalSession, module_command

app = typer.Typer()


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Serve YAML with one or more applications.", show_default=False)],
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.", show_default="FILE's, or a free one")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Serve a YAML file's applications on a local Ray cluster of its own, until Ctrl-C.

    The file is checked before anything starts. No other cluster on the machine is touched. -o json prints one line when ready.
    Exit code 0 after a signal while serving, 128 + signal after one before, 1 for a bad file, port or application.
    """
    arguments = [str(file), "" if port is None else str(port), output.value]
    raise typer.Exit(LocalSession(module_command("nightjar.cluster.local_cluster", *arguments)).run())
