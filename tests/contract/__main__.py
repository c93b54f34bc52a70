"""`make contract`: every name of vLLM that we touch, in the sources of each version that we say we work with.

Exit code 1 if one is missing; each is told with the feature that it costs there. Any other version may be named, to see what moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from tests.contract.sources import Sources
from tests.contract.touched import FEATURES, IMPORTS, Missing, missing, needed
from tests.contract.wheels import NoSourcesError, sources_of

VERSIONS: Final = ("0.29.0", "0.32.0", "0.33.0")
"""What Ray's own LLM serving pins, what our images and tests run, the newest."""
FOLDER: Final = Path(".venv/opt/vllm-sources")


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Versions of vLLM.", show_default=", ".join(VERSIONS))] = None,
    folder: Annotated[Path, typer.Option(help="Where sources of versions that are not installed are kept.")] = FOLDER,
) -> None:
    """Look up in each version's sources what Nightjar touches of vLLM."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    found: dict[str, list[Missing]] = {}
    for version in versions or VERSIONS:
        try:
            found[version] = missing(Sources(sources_of(version, folder)), needed(version))
        except NoSourcesError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
    console.print(_table(found))
    for version, lacks in found.items():
        for one in lacks:
            console.print(f"vLLM {version} lacks, for {one.feature}: {one.what}")
    raise typer.Exit(1 if any(found.values()) else 0)


def _table(found: dict[str, list[Missing]]) -> Table:
    names = [f"{feature} ({len(hooks)} names)" for feature, hooks in FEATURES.items()]
    table = Table("vLLM", *names, IMPORTS)
    for version, lacks in found.items():
        counts = {feature: sum(one.feature == feature for one in lacks) for feature in (*needed(version), IMPORTS)}
        table.add_row(version, *(_cell(counts.get(feature)) for feature in (*FEATURES, IMPORTS)))
    return table


def _cell(count: int | None) -> str:
    """How many names of a feature are missing; None where the version does not need it."""
    if count is None:
        return "not needed"
    return f"{count} missing" if count else "all there"


if __name__ == "__main__":
    typer.run(main)
