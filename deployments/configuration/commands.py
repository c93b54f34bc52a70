"""`nightjar check` and `nightjar migrate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from nightjar.deployments.configuration.check.description import describe
from nightjar.deployments.configuration.check.hosted import describe_hosted
from nightjar.deployments.configuration.check.report import Report, check_text
from nightjar.deployments.configuration.migrate.adoption import KEEP_HOST_OPTION
from nightjar.deployments.configuration.migrate.application import MigrationError
from nightjar.deployments.configuration.migrate.change import Change, plan_change, read_text
from nightjar.deployments.engine.environment import no_gpu_here

app = typer.Typer()


@app.command()
def check(
    files: Annotated[
        list[Path], typer.Argument(help="Serve config files, or RayService manifests; - for standard input.", metavar="FILE...")
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors and warnings alone.")] = False,
) -> None:
    """Check configuration files off-line: types, ranges, impossible combinations; runner, graphs and memory of each model.

    Needs neither Ray nor vLLM nor a GPU. Exit code 1 if any file has an error; warnings and advice fail nothing.
    """
    num_errors = 0
    for file in files:
        try:
            report = check_text(read_text(str(file)), no_gpu_here=no_gpu_here())
        except (OSError, UnicodeDecodeError) as error:
            typer.echo(f"{file}: error: cannot be read ({error})")
            num_errors += 1
            continue
        num_errors += report.num_errors
        _print(str(file), report, quiet=quiet)
    if num_errors:
        raise typer.Exit(1)


@app.command()
def migrate(
    source: Annotated[
        str,
        typer.Argument(
            help="A file with a Serve config, a RayService or a `vllm serve` command; - for standard input; or the command "
            "itself, in quotes.",
            metavar="FILE|COMMAND",
        ),
    ],
    remove: Annotated[bool, typer.Option("--remove", help="Take Nightjar out again.")] = False,
    keep_host: Annotated[
        bool, typer.Option(KEEP_HOST_OPTION, help="ray.serve.llm goes on serving, with its models, adapters and routers, steered.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write what the diff shows.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead.", show_default="the source, or a new file beside it")
    ] = None,
) -> None:
    """Show as a diff how Nightjar goes into a configuration, or out of it again. Comments and formatting stay.

    A `vllm serve` command becomes a Serve config of its own, and taken out again the same command.
    """
    try:
        change = plan_change(source, remove=remove, keep_host=keep_host, output=output)
        if write:
            change.write()
    except (MigrationError, OSError, UnicodeDecodeError) as error:
        line = f":{error.line}" if isinstance(error, MigrationError) else ""
        name = source.partition("\n")[0] or "''"
        typer.echo(f"{name}{line}: error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(change.diff(), nl=False)
    for note in _notes(change, remove=remove, keep_host=keep_host, written=write):
        typer.echo(note, err=True)


def _notes(change: Change, *, remove: bool, keep_host: bool, written: bool) -> Iterator[str]:
    if not change.changes_something:
        yield "nothing to change"
        return
    yield f"{'written: ' if written else 'with --write this goes to '}{change.path}"
    if keep_host and not remove:
        yield "the cluster's image needs nightjar-serve beside ray[llm]; docs/serve-llm.md says what is steered there"
        yield from (f"who may call {line} (docs/security.md)" for line in check_text(change.after).doors)
    elif not remove:
        yield "the cluster's image needs nightjar-serve[gpu] (or [cpu]); `nightjar check` says what the file means"


def _print(file: str, report: Report, *, quiet: bool) -> None:
    for line in report.lines:
        if not quiet or line.finding.severity != "advice":
            typer.echo(line.text(file))
    if quiet:
        return
    for model in report.models:
        typer.echo("\n".join(["", *describe(model)]))
    for hosted in report.hosted:
        typer.echo("\n".join(["", *describe_hosted(hosted)]))
    counts = {
        severity: sum(line.finding.severity == severity for line in report.lines) for severity in ("error", "warning", "advice")
    }
    for door in report.doors:
        typer.echo(f"\nwho may call {door} (docs/security.md)")
    of_what = ", of what was read" if report.not_read else ""
    typer.echo(f"\n{file}: errors {counts['error']}, warnings {counts['warning']}, advice {counts['advice']}{of_what}")
    for unread in report.not_read:
        typer.echo(f"  not read: {unread}")
