"""The file that goes from one fleet to another: a person can read it, and whatever is wrong with it is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.cluster.storage.learned_file import (
    MAX_FILE_BYTES,
    About,
    LearnedFile,
    LearnedFileError,
    _checksum,
    chosen_groups,
    learned_file,
    parse_learned_file,
    to_text,
)
from nightjar.policy.learned import LearnedCell, LearnedGroup, LearnedMixedCell
from nightjar.policy.priors import MAX_SEED_CELLS, MAX_SEED_GROUPS
from tests.cluster.protocol import EPOCH_S, GROUP
from tests.cluster.seeds import some_file, some_group

Change = Callable[[dict[str, Any]], None]


def sealed(change: Change) -> bytes:
    """A good file, changed by somebody who also put the checksum right."""
    document = json.loads(to_text(some_file()))
    change(document)
    if "checksum" in document:
        document["checksum"] = _checksum(document.get("about"), document.get("groups"))
    return json.dumps(document).encode()


def test_what_is_written_is_read_back() -> None:
    file = some_file()
    assert parse_learned_file(to_text(file)) == file


def test_a_fleet_that_knows_nothing_has_a_file_too() -> None:
    file = learned_file((), 1, EPOCH_S)
    assert parse_learned_file(to_text(file)) == file


def test_a_person_reads_first_what_it_is_about_and_then_a_line_for_each_cell() -> None:
    key = GROUP.model_copy(update={"draft": "smollm2-small", "accelerator": "H100", "engine_version": "0.32.0"})
    lines = to_text(learned_file((some_group(key),), 7, EPOCH_S)).decode().splitlines()
    head = "\n".join(lines[:12])
    assert '"written_at": "2023-11-14T22:13:20+00:00"' in head
    assert '"incarnation": 7' in head
    assert f"{key.group_id}: smollm2 with draft_model smollm2-small on H100, engine 0.32.0" in head
    (fields,) = [json.loads("{" + line.strip() + "]}}")["cells"]["fields"] for line in lines if '"step_ms"' in line]
    rows = [json.loads(line.strip().rstrip(",")) for line in lines if line.startswith("    [")]
    cells = [dict(zip(fields, row, strict=True)) for row in rows]
    assert len(cells) == len(some_group().cells)
    assert [(cell["batch"], cell["num_speculative_tokens"], cell["step_ms"], cell["age_s"]) for cell in cells[15:18]] == [
        ("4-5", 0, 10.0, 12.5),
        ("4-5", 1, 10.4, 12.5),
        ("4-5", 2, 10.8, 12.5),
    ]
    assert '"share": [0.8, 0.64, ' in "\n".join(lines)


@given(
    steps=st.floats(0.01, 1e6),
    mean_log=st.floats(-11.0, 6.0),
    rows=st.floats(4.0, 5.0),
    context=st.floats(0.0, 1e4),
)
def test_sums_come_back_to_the_last_bit(steps: float, mean_log: float, rows: float, context: float) -> None:
    cell = LearnedCell(
        batch_bucket=3,
        num_speculative_tokens=1,
        steps=steps,
        log_step_seconds=steps * mean_log,
        decode_rows=steps * rows,
        context_tokens=steps * context,
    )
    file = some_file(LearnedGroup(key=GROUP, cells=(cell,)))
    assert parse_learned_file(to_text(file)) == file


def test_steps_with_prefill_have_a_table_of_their_own_with_what_it_means() -> None:
    mixed = LearnedMixedCell(3, 1, steps=10.0, seconds=0.5, decode_rows=45.0, prefill_tokens=900.0, draft_tokens=45.0)
    file = some_file(some_group().model_copy(update={"mixed_cells": (mixed,)}))
    text = to_text(file)
    assert parse_learned_file(text) == file
    assert b'    ["4-5", 50.0, 3, 1, 10.0, 0.5, 45.0, 900.0, 45.0]' in text


def test_the_largest_export_fits_the_largest_import() -> None:
    steps = 1234.567890123456789
    cell = LearnedCell(
        batch_bucket=3,
        num_speculative_tokens=3,
        steps=steps,
        log_step_seconds=-steps / 0.3,
        decode_rows=steps * 4.321,
        context_tokens=steps * 12_345.678,
        age_s=123_456.789,
    )
    key = GROUP.model_copy(update={"target": "t" * 256, "draft": "d" * 256, "engine_version": "v" * 64})
    group = LearnedGroup.model_construct(key=key, cells=(cell,) * (MAX_SEED_CELLS // MAX_SEED_GROUPS))
    about = learned_file((LearnedGroup(key=key),), 1, EPOCH_S).about
    whole = About.model_construct(**{**dict(about), "groups": about.groups * MAX_SEED_GROUPS})
    text = to_text(LearnedFile.model_construct(about=whole, groups=(group,) * MAX_SEED_GROUPS))
    assert len(text) < MAX_FILE_BYTES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "format: [1, 2], allowed is 'nightjar-learned'"),
        (b'{"format": "grafana"}', "format: 'grafana', allowed is 'nightjar-learned'"),
        (b'{"format": "nightjar-learned", "version": 3}', "version: 3, this release reads 1 and 2"),
        (b'{"format": "nightjar-learned", "version": NaN}', "value NaN: allowed are finite numbers"),
        (b'{"format": "nightjar-learned", "version": 2}', "checksum: None, the contents give sha256:"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": "nightjar-learned", "version": 2, "groups": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b" " * (MAX_FILE_BYTES + 1), f"{MAX_FILE_BYTES + 1} bytes or more, allowed are at most {MAX_FILE_BYTES}"),
        (to_text(some_file())[:-40], "not JSON"),
        (to_text(some_file()).replace(b", 500.0,", b", 501.0,", 1), "checksum: 'sha256:"),
        (to_text(some_file()).replace(b'["1", 10.0,', b'["1", 11.0,', 1), "the file was cut or edited"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(LearnedFileError) as caught:
        parse_learned_file(content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def _drop_groups(document: dict[str, Any]) -> None:
    del document["groups"]


def _foreign_key(document: dict[str, Any]) -> None:
    document["groups"][0]["key"]["engine_version"] = "9.9"


def _twice(document: dict[str, Any]) -> None:
    document["groups"] *= 2


def _cell(**changes: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        table = document["groups"][0]["cells"]
        for name, value in changes.items():
            table["rows"][0][table["fields"].index(name)] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_groups, "groups: Input should be a valid tuple (value None)"),
        (lambda document: document.update(about=3), "about: "),
        (_foreign_key, "another version of Nightjar tells groups apart otherwise"),
        (_twice, "is given twice, allowed is once"),
        (lambda document: document.update(groups=document["groups"] * 65), "at most 64 items"),
        (_cell(steps=-1), "groups.0.cells.0.steps: Input should be greater than 0 (value -1)"),
        (_cell(steps="many"), "groups.0.cells.0.steps: Input should be a valid number"),
        (_cell(steps=10**400), "groups.0.cells.0.steps: "),
        (_cell(num_speculative_tokens=33), "num_speculative_tokens: Input should be less than or equal to 32 (value 33)"),
        (_cell(num_speculative_tokens=9), "groups.0: cell (bucket 0, K=9): K above the group's 5"),
        (_cell(log_step_seconds=math.log(1e-6) * 500), "s a step, allowed are 1e-05 to 600 s"),
        (_cell(batch_bucket=64), "batch_bucket: Input should be less than 64"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_place_and_what_is_allowed(change: Change, said: str) -> None:
    with pytest.raises(LearnedFileError) as caught:
        parse_learned_file(sealed(change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_do_worse_than_be_refused(content: bytes) -> None:
    with pytest.raises(LearnedFileError):
        parse_learned_file(content)


def test_groups_are_chosen_by_id_and_one_that_is_not_there_is_named_with_those_that_are() -> None:
    other = some_group(GROUP.model_copy(update={"target": "qwen"}))
    file = some_file(some_group(), other)
    assert chosen_groups(file, []).groups == file.groups
    assert chosen_groups(file, [other.key.group_id]).groups == (other,)
    with pytest.raises(LearnedFileError, match=f"group: 'qwem' is not in the file, which holds .*{other.key.group_id}"):
        chosen_groups(file, ["qwem"])
