"""Options that several commands share, and how every command fails: one line on stderr, exit code 1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from nightjar.cluster.api.access import (
    READ_TOKEN_VARIABLE,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    TokenError,
    checked_token,
    configured_token,
)
from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import Answer, Operation, OperationError, P
from nightjar.policy.wire.operator import SettingsError, parse_operator_settings


class Output(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"


UrlOption = Annotated[
    str,
    typer.Option("--url", envvar="NIGHTJAR_URL", help="Address of the Serve proxy, without the route prefix.", show_envvar=True),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        help=f"API token; better from {TOKEN_VARIABLE}, or {READ_TOKEN_VARIABLE} to read, or the file {TOKEN_FILE_VARIABLE}.",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs.")]


def settings_of(option: str, file: Path) -> dict[str, object]:
    """The policy's settings in a YAML file: a `user_config`. Raises SettingsError, which names the `option`, for what is none."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{option} {file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, Mapping):
        raise SettingsError(f"{option} {file}: a mapping of settings is needed, such as mode: auto (got {str(values)[:80]!r})")
    try:
        parse_operator_settings(values)
    except SettingsError as error:
        raise SettingsError(f"{option} {file}: {error}") from error
    return dict(values)


def open_client(url: str, token: str = "") -> HttpClient:
    """The client of `url`, with the token given or the one of the environment. Raises OperationError, TokenError."""
    return HttpClient(
        url,
        token=checked_token("--token", token) if token else configured_token() or configured_token(variable=READ_TOKEN_VARIABLE),
    )


def call(
    url: str, token: str, options: Mapping[str, str], operation: Operation[P, Answer], *arguments: P.args, **named: P.kwargs
) -> Answer:
    """Have the policy at `url` do an operation. Fails as `one_line_errors` does."""
    with one_line_errors(options), open_client(url, token) as client:
        return client.call(operation, *arguments, **named)


@contextmanager
def one_line_errors(options: Mapping[str, str]) -> Iterator[None]:
    """Turn an expected failure into one line on stderr and exit code 1.

    The API names fields of a request; `options` has those that the command's user wrote, by field.
    """
    try:
        yield
    except (OperationError, TokenError) as error:
        fail(in_options(str(error), options))


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A message whose fields, at its beginning and behind each semicolon, are named as the command's options.

    >>> in_options("share: 2 is too much; settings.dwell_steps: 'x' is no number", {"share": "--share", "settings": "--set"})
    "--share: 2 is too much; --set dwell_steps: 'x' is no number"
    """

    def named(found: re.Match[str]) -> str:
        before, field, below = found.groups()
        return f"{before}{options[field]} {below[1:]}".rstrip() + ": " if field in options else found[0]

    return re.sub(r"(^|; )(\w+)((?:\.\w+)*): ", named, message)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and leave with exit code 1."""
    Console(stderr=True).print(Text.assemble(("error:", "red"), f" {message}"), soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def as_it_is() -> Console:
    """A console that takes nothing in a text for its own marks: no brackets, no names of emoji, as `:a:` in an address."""
    return Console(highlight=False, markup=False, emoji=False)


def escaped(text: str) -> str:
    """Text from elsewhere, safe to print between rich's tags."""
    return escape(text)
