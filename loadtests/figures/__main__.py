"""Run what the figures show, keep the rows, and draw them: `python -m nightjar.loadtests.figures docs/figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nightjar.loadtests.figures import changing_load


def main(
    folder: Annotated[Path, typer.Argument(help="Where rows and figures lie.")] = Path("docs/figures"),
    draw_only: Annotated[bool, typer.Option("--draw-only", help="From the rows that are there.")] = False,
) -> None:
    """Write every figure, and the rows that it was drawn from."""
    folder.mkdir(parents=True, exist_ok=True)
    rows_path = folder / changing_load.ROWS_FILE
    rows = changing_load.read(rows_path) if draw_only else changing_load.run()
    rows_path.write_text(rows.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / changing_load.PICTURE_FILE).write_text(changing_load.draw(rows), encoding="utf-8")
    typer.echo(f"{folder}: {changing_load.PICTURE_FILE} is drawn from {changing_load.ROWS_FILE}")


if __name__ == "__main__":
    typer.run(main)
