"""`make contract`: what we touch of vLLM and what we assume of it, in the sources of each version that we say we work with.

Exit code 1 where a name is missing, told with the feature that it costs there, or where a function's body is not the one that was
read, told with what we assume of it. Any other version may be named, to see what moved. `--diff` shows the changed bodies, and
`--accept` writes down that they were read and that the sentences hold; a sentence that does not is mended first, or our code is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from tests.contract import bodies as read_bodies
from tests.contract.bodies import Body, Unread, unread
from tests.contract.sources import Sources
from tests.contract.touched import FEATURES, IMPORTS, Missing, missing, needed
from tests.contract.wheels import NoSourcesError, sources_of

VERSIONS: Final = ("0.29.0", "0.31.0", "0.32.0", "0.33.0")
"""What Ray's own LLM serving pins, what Dynamo pins, what our images and tests run, the newest that was read."""
FOLDER: Final = Path(".venv/opt/vllm-sources")
EVERYTHING: Final = "all"


class Judged(NamedTuple):
    """What one version lacks, and what changed in it."""

    version: str
    lacks: list[Missing]
    changed: list[Unread]


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Versions of vLLM.", show_default=", ".join(VERSIONS))] = None,
    diff: Annotated[bool, typer.Option(help="Show how each changed body differs from the one that was read.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(help=f"A function whose body was read and is as assumed, or {EVERYTHING!r}. With a version; may be repeated."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where sources of versions that are not installed are kept.")] = FOLDER,
    bodies: Annotated[Path, typer.Option(help="What was read.")] = read_bodies.FILE,
) -> None:
    """Look up in each version's sources what Nightjar touches of vLLM, and whether the bodies that it leans on were read."""

    @cache
    def sources(version: str) -> Sources:
        return Sources(sources_of(version, folder))

    known = read_bodies.load(bodies)
    accepted = _accepted(accept, known, versions) if accept else set()
    try:
        for version in versions or ():
            concerned = [body.function for body in known if body.feature in needed(version) and body.function in accepted]
            known = read_bodies.accept(known, concerned, version, sources(version))
        if accepted:
            read_bodies.save(known, bodies)
        judged = [_judged(version, known, sources) for version in versions or VERSIONS]
    except NoSourcesError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_table(judged, len(known)))
    for each in judged:
        for line in _lines(each, known, with_diff=diff):
            console.print(line)
    if any(each.changed for each in judged) and not diff:
        console.print("Read them (--diff shows how they differ). What is as assumed: --accept FUNCTION, with the version.")
    raise typer.Exit(1 if any(each.lacks or each.changed for each in judged) else 0)


def _accepted(named: list[str], known: list[Body], versions: list[str] | None) -> set[str]:
    """The functions that are accepted. Ends with exit code 2 where no version is named, or a function that we do not lean on."""
    functions = {body.function for body in known}
    problem = "" if versions else "--accept needs the version that was read, for example: 0.33.0 --accept all"
    for name in {*named} - {EVERYTHING, *functions}:
        near = get_close_matches(name, functions, n=1, cutoff=0.3)
        problem = f"{name} is no function of bodies.toml" + (f"; did you mean {near[0]}?" if near else "")
    if problem:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(2)
    return functions if EVERYTHING in named else {*named}


def _judged(version: str, known: list[Body], sources: Callable[[str], Sources]) -> Judged:
    changed = unread(known, version, needed(version), sources(version), sources)
    return Judged(version, missing(sources(version), needed(version)), changed)


def _lines(judged: Judged, known: list[Body], *, with_diff: bool) -> Iterator[str]:
    """What to tell of a version below the table."""
    for one in judged.lacks:
        yield f"vLLM {judged.version} lacks, for {one.feature}: {one.what}"
    for body in known:
        if body.digests.get(judged.version) == read_bodies.ABSENT:
            yield f"vLLM {judged.version} has no {body.function}, as was seen: {body.ours} does without it there"
    for each in judged.changed:
        yield f"{each.what}\n  {each.body.ours} assumes: {each.body.assumption}"
        if with_diff:
            yield "\n".join(f"    {line}" for line in each.diff)


def _table(judged: list[Judged], num_bodies: int) -> Table:
    """A column for each version: it is read where no more than 80 characters fit a line, too."""
    table = Table("vLLM", *(each.version for each in judged))
    for feature in (*FEATURES, IMPORTS):
        name = f"{feature} ({len(FEATURES[feature])} names)" if feature in FEATURES else feature
        table.add_row(name, *(_cell(_lacking(each, feature)) for each in judged))
    read = (f"{len(each.changed)} not read" if each.changed else "all read" for each in judged)
    table.add_row(f"bodies ({num_bodies})", *read)
    return table


def _lacking(judged: Judged, feature: str) -> int | None:
    """How many names of a feature a version lacks; None where it does not need it."""
    return sum(one.feature == feature for one in judged.lacks) if feature in (*needed(judged.version), IMPORTS) else None


def _cell(count: int | None) -> str:
    """How many names of a feature are missing; None where the version does not need it."""
    if count is None:
        return "not needed"
    return f"{count} missing" if count else "all there"


if __name__ == "__main__":
    typer.run(main)
