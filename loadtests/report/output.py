"""What several commands have: options for how results are written and for `--goodput ttft:500 tpot:50`, and one line on failure.

typer's options take one word each. Words after `--goodput` that look like parts of a target are given to it, as `vllm bench serve`
and Locust take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand


class Output(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Table for people, JSON for programs.")]


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line on stderr and leave with that exit code."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


OPTION: Final = "--goodput"
_PART: Final = re.compile(r"[a-z0-9]+:\S*")

GoodputOption = Annotated[
    list[str] | None,
    typer.Option(
        OPTION,
        metavar="ttft:MS tpot:MS",
        help="Also the share of requests within this target (ttft, tpot, e2el; milliseconds), and their tokens per second.",
    ),
]


class GoodputCommand(TyperCommand):
    """A command whose `--goodput` takes every part of a target that follows it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command's, with the option said again before each further part."""
        return list(super().parse_args(ctx, each_with_option(args)))


def each_with_option(arguments: Iterable[str]) -> list[str]:
    """The same words, with the option before each part of a target.

    >>> each_with_option(["runs/latest", "--goodput", "ttft:500", "tpot:50", "-o", "json"])
    ['runs/latest', '--goodput', 'ttft:500', '--goodput', 'tpot:50', '-o', 'json']
    """
    spread: list[str] = []
    for word in arguments:
        follows = len(spread) > 1 and spread[-2] == OPTION
        spread += [OPTION, word] if follows and _PART.fullmatch(word) else [word]
    return spread
