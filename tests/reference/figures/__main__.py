"""Run what the figures show, keep the rows, and draw them: `python -m tests.reference.figures docs/figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tests.reference.figures import changing_load, demo_run


def main(
    folder: Annotated[Path, typer.Argument(help="Where rows and figures lie.")] = Path("docs/figures"),
    draw_only: Annotated[bool, typer.Option("--draw-only", help="From the rows that are there.")] = False,
    demo: Annotated[
        Path | None, typer.Option(help="Folder of a recorded demo, whose rows are taken in place of those that are there.")
    ] = None,
) -> None:
    """Write every figure, and the rows that it was drawn from. A demo is real engines: it is never run here, only taken."""
    folder.mkdir(parents=True, exist_ok=True)
    simulated = changing_load.read(folder / changing_load.ROWS_FILE) if draw_only else changing_load.run()
    _keep(folder / changing_load.ROWS_FILE, simulated.model_dump_json(indent=1))
    _keep(folder / changing_load.PICTURE_FILE, changing_load.draw(simulated))
    typer.echo(f"{folder}: {changing_load.PICTURE_FILE} is drawn from {changing_load.ROWS_FILE}")
    demo_rows = folder / demo_run.ROWS_FILE
    if demo is None and not demo_rows.is_file():
        return
    real = demo_run.read(demo_rows) if demo is None else demo_run.take(demo)
    _keep(demo_rows, real.model_dump_json(indent=1))
    _keep(folder / demo_run.PICTURE_FILE, demo_run.draw(real))
    typer.echo(f"{folder}: {demo_run.PICTURE_FILE} is drawn from {demo_run.ROWS_FILE}")


def _keep(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
