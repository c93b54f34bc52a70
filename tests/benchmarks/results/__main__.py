"""Keep a run's summary under docs/results, or print the page of all that are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tests.benchmarks.results import constants, kept, paper
from tests.benchmarks.results.kept import KeptError
from tests.benchmarks.results.page import PAGE, page

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command()
def keep(
    folder: Annotated[Path, typer.Argument(help="Of a run, such as runs/policy/latest.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also a quick or partial run, or one that broke off; marked as such.")
    ] = False,
) -> None:
    """Write a run's summary to docs/results, in place of what is kept of its bench, and the page.

    Refuses what is no evidence: a quick or partial run, and one that broke off or in which runs failed.
    """
    try:
        path = kept.keep(folder, anyway=anyway)
        PAGE.write_text(page(), encoding="utf-8")
    except KeptError as error:
        _fail(error)
    typer.echo(f"{path} and {PAGE} are written: look at them and commit both")


@app.command("page")
def print_page() -> None:
    """Print docs/results/README.md."""
    try:
        sys.stdout.write(page())
    except KeptError as error:
        _fail(error)


@app.command()
def keep_paper(
    folders: Annotated[list[Path], typer.Argument(help="Of runs of `make bench-policy` with --only paper and its like.")],
) -> None:
    """Keep the rows of the paper's comparison under docs/results, in place of those that are kept, and write their page."""
    fresh = paper.ROWS.with_suffix(".new")
    try:
        paper.keep(folders, fresh)
        text = paper.page(fresh)
        fresh.replace(paper.ROWS)
        paper.PAGE.write_text(text, encoding="utf-8")
    except KeptError as error:
        _fail(error)
    finally:
        fresh.unlink(missing_ok=True)
    typer.echo(f"{paper.ROWS} and {paper.PAGE} are written: look at them and commit both")


@app.command("paper")
def print_paper() -> None:
    """Print docs/results/paper.md."""
    try:
        sys.stdout.write(paper.page())
    except KeptError as error:
        _fail(error)


@app.command("constants")
def print_constants(
    folder: Annotated[Path, typer.Argument(help='Of a run of `make bench-policy ARGS="--only constants"`.')],
) -> None:
    """Print docs/results/constants.md: what each number of the planner is for, and what a run loses with it halved and doubled."""
    try:
        sys.stdout.write(constants.page(folder))
    except KeptError as error:
        _fail(error)


def _fail(error: KeptError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
