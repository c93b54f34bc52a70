"""`nightjar export` and `nightjar import`: what the fleet has learned, out of one policy and into another, or into vLLM's table."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import IMPORT, LEARNED, ImportedGroup
from nightjar.cluster.commands.options import Output, OutputOption, TokenOption, UrlOption, as_it_is, call, fail
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES, LearnedFileError, chosen_groups, chosen_table, parse_learned_file
from nightjar.policy.status.stock_table import StockTable, as_yaml, in_words

app = typer.Typer()

T = TypeVar("T")


@app.command("export")
def export_file(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write; an older file gives way.", show_default=False)
    ] = None,
    vllm_table: Annotated[
        bool,
        typer.Option("--vllm-table", help="Print vLLM's own table of K by batch size instead, for an engine without Nightjar."),
    ] = False,
    group: Annotated[
        str, typer.Option("--group", help="With --vllm-table: whose (its id as in status).", show_default="the only one")
    ] = "",
    url: UrlOption = DEFAULT_URL,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write what the fleet has learned as one JSON file: step times by batch and K, acceptance, what catching up costs.

    Another policy takes it by `nightjar import FILE`, or starts with it by the setting seed_from. Reads only; needs no token.

    With --vllm-table it writes no file and prints `num_speculative_tokens_per_batch_size` as a line of YAML that belongs under
    `speculative_config`, below comments: what the table is predicted to lose against steering, and what to know of it.
    """
    if vllm_table == (file is not None):
        fail("give FILE, where to write, or --vllm-table, which prints; one of them")
    if group and not vllm_table:
        fail(f"--group {group[:60]}: goes with --vllm-table alone; a file has all groups")
    content = call(url, "", {}, LEARNED)
    learned = _or_fail(url, lambda: parse_learned_file(content))
    if file is None:
        _print_table(_or_fail(url, lambda: chosen_table(learned, group)), output)
        return
    try:
        _write(file, content)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")
    if output is Output.JSON:
        groups = [{"group_id": group.key.group_id, "cells": len(group.cells)} for group in learned.groups]
        typer.echo(json.dumps({"file": str(file), "incarnation": learned.about.incarnation, "groups": groups}))
        return
    console = as_it_is()
    console.print(f"{file}: {learned.in_words()}")
    for headline in learned.about.groups:
        console.print(f"  {headline}")


def _print_table(table: StockTable, output: Output) -> None:
    """As YAML below comments, or as JSON; never broken where the terminal ends, so that it can be pasted."""
    if output is Output.JSON:
        k, rows = table.num_speculative_tokens, table.vllm_rows
        config: dict[str, object] = {"num_speculative_tokens": k, "num_speculative_tokens_per_batch_size": rows}
        if table.adaptive_verification:
            config["enable_adaptive_verification"] = True
        lost = table.lost.model_dump() if table.lost is not None else None
        typer.echo(
            json.dumps({"group_id": table.group_id, "speculative_config": config, "lost": lost, "notes": [*in_words(table)]})
        )
        return
    typer.echo(as_yaml(table))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `nightjar export` wrote.", show_default=False)],
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="Only this group (its id as in the file); may be given again.", show_default="all"),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a running policy what another fleet learned. What it measured itself stays, and what it measures from now on wins.

    A group is matched by all that makes its step times what they are: models, GPU, parallelism, dtype, limits, engine version.
    One that no replica belongs to waits for the first that does.
    """
    group_ids = group or []
    content = _or_fail(str(file), lambda: _read(file))
    _or_fail(str(file), lambda: chosen_groups(parse_learned_file(content), group_ids))
    answer = call(url, token, {}, IMPORT, content, group_ids)
    if output is Output.JSON:
        typer.echo(json.dumps(answer))
        return
    for taken in answer["groups"]:
        as_it_is().print(_taken(taken))


def _taken(group: ImportedGroup) -> str:
    replicas = group["replicas"]
    fate = f"for its {replicas} replica{'s' if replicas > 1 else ''}" if replicas else "waits for a replica of its key"
    return f"{group['group_id']}: {group['cells']} cells, {fate}"


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LearnedFileError(error.strerror or str(error)) from error


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all: a file that was cut would be refused where it is needed. A link stays one."""
    file = file.resolve()
    if file.exists() and not file.is_file():  # a device would be replaced by a file
        raise OSError(errno.EINVAL, "a folder or a device; name a file")
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _or_fail(where: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except LearnedFileError as error:
        fail(f"{where}: {error}")
