"""`nightjar run FILE`: check a Serve YAML, serve it on a local Ray cluster of its own, stop all of it on Ctrl-C.

The whole of `nightjar check` is asked first, in this process: Serve drops misspelt fields in silence, and an engine that refuses an
argument says so a minute later, once a try, in a replica's traceback. Fails closed: a file with an error starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.cluster.commands.options import Output, OutputOption
from nightjar.cluster.local.session import LocalSession, module_command
from nightjar.deployments.configuration.check.findings import Finding
from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.engine.environment import no_gpu_here

MOST_LINES: Final = 20
"""What is shown of a file's mistakes, so that the sentence behind them stands on the same screen."""

app = typer.Typer()


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Serve YAML with one or more applications.", show_default=False)],
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.", show_default="FILE's, or a free one")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Serve a YAML file's applications on a local Ray cluster of its own, until Ctrl-C.

    The file is checked before anything starts, as by `nightjar check`: an error ends it, warnings are shown. No other cluster on
    the machine is touched. -o json prints one line when ready.
    Exit code 0 after a signal while serving, 128 + signal after one before, 1 for a bad file, port or application.
    """
    try:
        report = check_text(file.read_text(encoding="utf-8"), is_served_here=True, no_gpu_here=no_gpu_here())
    except (OSError, UnicodeDecodeError) as error:
        typer.echo(f"error: {file}: cannot be read ({error})", err=True)
        raise typer.Exit(1) from error
    if report.num_errors:
        errors = [finding for finding in report.findings if finding.severity == "error"]
        _say(file, errors)
        typer.echo(f"error: {file} has {_counted(len(errors))}; nothing was started", err=True)
        raise typer.Exit(1)
    _say(file, [finding for finding in report.findings if finding.severity == "warning"])
    arguments = [str(file), "" if port is None else str(port), output.value]
    raise typer.Exit(LocalSession(module_command("nightjar.cluster.local.cluster", *arguments)).run())


def _say(file: Path, findings: list[Finding]) -> None:
    for finding in findings[:MOST_LINES]:
        typer.echo(finding.text(str(file)), err=True)
    if len(findings) > MOST_LINES:
        typer.echo(f"and {len(findings) - MOST_LINES} more: nightjar check {file}", err=True)


def _counted(number: int) -> str:
    return "one error" if number == 1 else f"{number} errors"
