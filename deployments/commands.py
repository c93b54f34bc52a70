"""`nightjar models`: build and list the small real models that run on CPU. Imports torch only when it builds."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nightjar.deployments.models import (
    BUILD_COMMAND,
    DEFAULT_COST,
    DEFAULT_NOISES,
    ModelError,
    ModelNote,
    build_models,
    list_models,
    models_folder,
)

app = typer.Typer(no_args_is_help=True, help="Small real models for CPU, built off-line from an installed package.")

_NOTE_ON_COST = "The target's cost is inflated by layers that add exactly zero; its function is unchanged."


class Output(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"


_OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Table for people, JSON for programs.")]


@app.command()
def build(
    cost: Annotated[int, typer.Option(help="The target costs this many times the real model.", min=2, max=64)] = DEFAULT_COST,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Relative weight noise of a draft, whole percents; may be repeated.",
            show_default=" and ".join(map(str, DEFAULT_NOISES)),
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild what is there already.")] = False,
    output: _OutputOption = Output.TABLE,
) -> None:
    """Build SmolLM2-135M, a target of the same function at several times the cost, and drafts.

    Into $NIGHTJAR_MODELS (default ~/.cache/nightjar/models); what is there already stays. About half a minute.
    """
    errors = Console(stderr=True)
    folder = models_folder()
    started_s = time.monotonic()
    try:
        with errors.status("building models") as status:

            def report(stage: str) -> None:
                errors.print(f"{time.monotonic() - started_s:5.1f} s  {stage}", highlight=False, soft_wrap=True)
                status.update(stage)

            notes = build_models(folder, cost=cost, noises=noise or DEFAULT_NOISES, force=force, report=report)
    except (ModelError, OSError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _show(folder, notes, output)


@app.command("list")
def list_(output: _OutputOption = Output.TABLE) -> None:
    """List the models that were built, and say what each is."""
    folder = models_folder()
    notes = list_models(folder)
    if not notes and output is Output.TABLE:
        Console(stderr=True).print(f"no built models in {folder}; build with `{BUILD_COMMAND}`", highlight=False, soft_wrap=True)
    _show(folder, notes, output)


def _show(folder: Path, notes: tuple[ModelNote, ...], output: Output) -> None:
    if output is Output.JSON:
        rows = [{"path": str(folder / note.name), **note.model_dump(mode="json")} for note in notes]
        typer.echo(json.dumps(rows))
        return
    if not notes:
        return
    table = Table("model", "what it is", "size", caption=_NOTE_ON_COST if any(note.cost > 1 for note in notes) else None)
    for note in notes:
        size_bytes = sum(path.stat().st_size for path in (folder / note.name).iterdir())
        table.add_row(note.name, note.description, f"{size_bytes / 2**20:.0f} MiB")
    Console().print(f"models in {folder}", highlight=False, soft_wrap=True)
    Console().print(table)
