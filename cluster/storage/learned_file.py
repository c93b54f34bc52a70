"""What a fleet has learned as one JSON file that a person can read, and everything that is refused of such a file.

First what it is about: when, from which incarnation, which groups and engines. Then each group as `policy.learned` stores it, with
a line for each cell: the batch and the step time that it means, and its sums. A file is data from a stranger (INV-10): its size is
bounded, its version and its checksum are looked at before its values, and every value is held to what an engine can do. Fails
closed: the first thing that is wrong raises `LearnedFileError` with one line, and nothing of the file is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from nightjar.cluster.storage.handover import ByHand
from nightjar.policy.learned import LearnedCell, LearnedGroup, LearnedMixedCell, Measurable
from nightjar.policy.priors import MAX_SEED_GROUPS
from nightjar.policy.status.stock_table import StockTable
from nightjar.policy.wire.batch_buckets import bucket_range
from nightjar.policy.wire.record import Reason, Record, to_plain
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.words import batch_range

FORMAT: Final = "nightjar-learned"
VERSION: Final = 2
READ_VERSIONS: Final = (1, 2)
"""For one release also the one before, in which a cell was a mapping."""
MAX_FILE_BYTES: Final = 4 << 20
CHECKSUM: Final = "sha256:"


class LearnedFileError(ValueError):
    """A file that cannot be used. The message is one line: what is wrong, the value, and what is allowed."""


class About(Record):
    """What a file is about, for the reader. `fleet_id` is the writing fleet's, the same over restarts of its policy: a fleet that
    is answered by itself knows it by this. `by_hand` is what operators had set there, for the cluster that takes its place; an
    import does not look at it. `vllm_tables` are the groups' evidence as vLLM's own tables, which nobody reads back. Older releases
    write none of these.
    """

    written_at: Annotated[str, Field(max_length=64)] = ""
    fleet_id: Annotated[str, Field(max_length=64)] = ""
    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    groups: Annotated[tuple[Reason, ...], Field(max_length=MAX_SEED_GROUPS)] = ()
    by_hand: ByHand | None = None
    vllm_tables: Annotated[tuple[StockTable, ...], Field(max_length=MAX_SEED_GROUPS)] | None = None


class LearnedFile(Record):
    """A file's contents."""

    about: About
    groups: Annotated[tuple[Measurable, ...], Field(max_length=MAX_SEED_GROUPS)] = ()

    def in_words(self) -> str:
        """`2 groups with 61 cells, written 2026-05-01T12:00:00+00:00 by incarnation 3`."""
        cells = sum(len(group.cells) + len(group.mixed_cells) for group in self.groups)
        written = self.about.written_at or "at an unknown time"
        groups = f"{len(self.groups)} group" + ("s" if len(self.groups) != 1 else "")
        return f"{groups} with {cells} cells, written {written} by incarnation {self.about.incarnation}"


def learned_file(
    groups: tuple[LearnedGroup, ...],
    incarnation: int,
    now_s: float,
    fleet_id: str = "",
    by_hand: ByHand | None = None,
    vllm_tables: tuple[StockTable, ...] | None = None,
) -> LearnedFile:
    """The file of what `incarnation` of a fleet knows at `now_s`, seconds since the epoch."""
    about = About(
        written_at=datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds"),
        fleet_id=fleet_id,
        incarnation=incarnation,
        groups=tuple(_headline(group.key) for group in groups),
        by_hand=by_hand,
        vllm_tables=vllm_tables,
    )
    return LearnedFile(about=about, groups=groups)


def chosen_groups(file: LearnedFile, group_ids: Sequence[str]) -> LearnedFile:
    """The file with the groups that are named alone, all where none is. Raises LearnedFileError for one that it does not hold."""
    held = [group.key.group_id for group in file.groups]
    for group_id in group_ids:
        if group_id not in held:
            near = get_close_matches(group_id, held, n=3, cutoff=0.3) or held[:3]
            raise LearnedFileError(f"group: {_short(group_id)} is not in the file, which holds {', '.join(near) or 'none'}")
    groups = tuple(group for group in file.groups if not group_ids or group.key.group_id in group_ids)
    return file.model_copy(update={"groups": groups})


def chosen_table(file: LearnedFile, group_id: str) -> StockTable:
    """The table of the group that is named, or of the only one. Raises LearnedFileError where there is none, with the reason."""
    tables = file.about.vllm_tables
    if tables is None:
        raise LearnedFileError("a release of Nightjar wrote this that makes no tables for vLLM; upgrade the policy")
    held = {table.group_id: table for table in tables}
    if not held:
        raise LearnedFileError("group: there is none, no replica has ever reported")
    if not group_id and len(held) > 1:
        raise LearnedFileError(f"group: there are {len(held)}, name one of {', '.join(list(held)[:5])}")
    if group_id and group_id not in held:
        near = get_close_matches(group_id, held, n=3, cutoff=0.3) or list(held)[:3]
        raise LearnedFileError(f"group: {_short(group_id)} is not known, there is {', '.join(near)}")
    table = held[group_id] if group_id else next(iter(held.values()))
    if table.why_none:
        raise LearnedFileError(f"group {table.group_id}: {table.why_none}")
    return table


def to_text(file: LearnedFile) -> bytes:
    """The file as UTF-8, a line for each cell."""
    about = to_plain(file.about)
    groups = [_plain_group(group) for group in file.groups]
    checksum = _checksum(about, groups)
    head = {"format": FORMAT, "version": VERSION, "checksum": checksum, "about": about}
    lines = [*json.dumps(head, indent=1).removesuffix("\n}").splitlines()]
    lines[-1] += ","
    lines.append(' "groups": [' + ("" if groups else "]"))
    for number, group in enumerate(groups, start=1):
        lines += _group_lines(group)
        lines.append("  }," if number < len(groups) else "  }")
    if groups:
        lines.append(" ]")
    return "\n".join([*lines, "}", ""]).encode()


def parse_learned_file(content: bytes) -> LearnedFile:
    """The file whose bytes are `content`. Takes up to half a second for the largest. Raises LearnedFileError."""
    if len(content) > MAX_FILE_BYTES:
        raise LearnedFileError(f"{len(content)} bytes or more, allowed are at most {MAX_FILE_BYTES}")
    try:
        document = json.loads(content, parse_constant=_refuse_constant)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            seen = document.get("format") if isinstance(document, dict) else document
            raise LearnedFileError(f"format: {_short(seen)}, allowed is {FORMAT!r}: no file that nightjar export wrote")
        if document.get("version") not in READ_VERSIONS:
            read = " and ".join(map(str, READ_VERSIONS))
            raise LearnedFileError(f"version: {_short(document.get('version'))}, this release reads {read}")
        about, groups = document.get("about"), document.get("groups")
        seen, computed = document.get("checksum"), _checksum(about, groups)
    except RecursionError as error:
        raise LearnedFileError("nested too deeply, allowed is what nightjar export writes") from error
    except LearnedFileError:
        raise
    except ValueError as error:
        raise LearnedFileError(f"not JSON ({error})") from error
    if seen != computed:
        raise LearnedFileError(f"checksum: {_short(seen)}, the contents give {computed[:15]}...; the file was cut or edited")
    try:
        file = LearnedFile.model_validate({"about": about, "groups": groups})
    except ValidationError as error:
        raise LearnedFileError(_first_problem(error)) from error
    _check_group_ids(file, groups)
    return file


def _headline(key: GroupKey) -> str:
    """A group as a person tells it from others."""
    draft = f"{key.drafter_kind} {key.draft}".rstrip()
    return f"{key.group_id}: {key.target} with {draft} on {key.accelerator}, engine {key.engine_version or 'unknown'}"[:1024]


def _plain_group(group: LearnedGroup) -> dict[str, Any]:
    """The stored form with columns for people: what share was accepted, what batch and step time the sums of a cell mean."""
    plain = to_plain(group)
    acceptance = plain["acceptance"]
    pairs = zip(acceptance["reached"], acceptance["accepted"], strict=True)
    return {
        "group_id": group.key.group_id,
        "key": plain["key"],
        "plan": plain["plan"],
        "acceptance": {"share": [round(kept / rows, 4) if rows else 0.0 for rows, kept in pairs], **acceptance},
        "catch_up": plain["catch_up"],
        **({"mixed_cells": _table(group.mixed_cells, plain["mixed_cells"], group.key)} if group.mixed_cells else {}),
        "cells": _table(group.cells, plain["cells"], group.key),
    }


def _table(cells: Sequence[LearnedCell | LearnedMixedCell], plain: Mapping[str, Any], key: GroupKey) -> dict[str, Any]:
    rows = [
        [batch_range(*bucket_range(one.batch_bucket, key.max_num_seqs)), float(f"{one.step_seconds * 1e3:.4g}"), *row]
        for one, row in zip(cells, plain["rows"], strict=True)
    ]
    return {"fields": ["batch", "step_ms", *plain["fields"]], "rows": rows}


def _group_lines(group: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value of the key, each row of the plan and of the cells, and each value of anything else."""
    yield "  {"
    for name, value in group.items():
        last = "" if name == "cells" else ","
        if name in {"cells", "mixed_cells"}:
            yield f'   "{name}": {{"fields": {json.dumps(value["fields"])}, "rows": ['
            yield from _lines(value["rows"])
            yield f"   ]}}{last}"
        elif isinstance(value, list) and value:
            yield f'   "{name}": ['
            yield from _lines(value)
            yield f"   ]{last}"
        else:
            yield f'   "{name}": {json.dumps(value)}{last}'


def _lines(items: Sequence[Any]) -> Iterator[str]:
    for number, item in enumerate(items, start=1):
        yield f"    {json.dumps(item)}" + ("," if number < len(items) else "")


def _checksum(about: object, groups: object) -> str:
    body = json.dumps({"about": about, "groups": groups}, sort_keys=True, separators=(",", ":"))
    return CHECKSUM + hashlib.sha256(body.encode()).hexdigest()


def _refuse_constant(name: str) -> float:
    raise LearnedFileError(f"value {name}: allowed are finite numbers")


def _first_problem(error: ValidationError) -> str:
    """`groups.0.cells.3.steps: ...` of the first value that is wrong, and how many more there are."""
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in detail["loc"]) or "file"
    value = detail["input"]
    seen = f" (value {_short(value)})" if isinstance(value, str | int | float) or value is None else ""
    more = error.error_count() - 1
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}{seen}" + (f"; and {more} more" if more else "")


def _check_group_ids(file: LearnedFile, groups: Any) -> None:
    """A key of another version may have fields that this one does not know: then its digest differs, and it is another group."""
    known: set[str] = set()
    for number, (group, plain) in enumerate(zip(file.groups, groups, strict=True)):
        group_id = group.key.group_id
        if plain.get("group_id") != group_id:
            raise LearnedFileError(
                f"groups.{number}.group_id: {_short(plain.get('group_id'))}, its key gives {group_id!r}; "
                "another version of Nightjar tells groups apart otherwise"
            )
        if group_id in known:
            raise LearnedFileError(f"groups.{number}.group_id: {group_id!r} is given twice, allowed is once")
        known.add(group_id)


def _short(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
