"""What the last release of protocol 2 had learned, in both forms in which it stored it (releases/), as this one reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from nightjar.cluster.storage.checkpoint import Checkpoint, unseal
from nightjar.cluster.storage.journal import read_journal
from nightjar.cluster.storage.learned_file import LearnedFileError, parse_learned_file, to_text
from nightjar.policy.learned import LearnedGroup, LearnedTables
from tests.cluster.protocol import MemoryStore
from tests.cluster.record_release import RELEASES, read
from tests.cluster.seeds import some_group

FOLDER = RELEASES / "protocol_2"
SUMS = ("steps", "log_step_seconds", "decode_rows", "context_tokens", "log_step_seconds_squared")


def stored_columns() -> dict[str, Any]:
    """The only group of its checkpoint, as it stands there."""
    (group,) = unseal(read(2, "checkpoint_learned.json")["policy-v2:learned"])["groups"]
    assert group["steps"]
    return dict(group)


async def test_what_its_checkpoint_holds_by_column_comes_back_to_the_last_bit() -> None:
    remembered = await Checkpoint(MemoryStore(read(2, "checkpoint_learned.json"))).load()
    assert remembered.problems == ()
    assert remembered.learned is not None
    (group,), columns = remembered.learned.groups, stored_columns()
    keys = zip(columns["batch_buckets"], columns["num_speculative_tokens"], strict=True)
    assert [(cell.batch_bucket, cell.num_speculative_tokens) for cell in group.cells] == list(keys)
    for name in SUMS:
        assert [getattr(cell, name) for cell in group.cells] == list(columns[name])
    assert (group.acceptance.reached, group.acceptance.accepted) == (columns["reached"], columns["accepted"])
    catch_up = group.catch_up
    sums = (catch_up.steps, catch_up.tokens, catch_up.tokens_squared, catch_up.seconds, catch_up.token_seconds)
    assert sums == columns["catch_up"]
    assert remembered.waiting == (some_group(),)


async def test_an_entry_of_its_journal_is_read_as_its_checkpoint_is() -> None:
    remembered = await Checkpoint(MemoryStore(read(2, "checkpoint_learned.json"))).load()
    (entry,) = read_journal(FOLDER / "journal.jsonl")
    assert entry.learned == remembered.learned


def test_its_export_is_read_and_written_again_as_a_table() -> None:
    content = (FOLDER / "learned.json").read_bytes()
    before, file = json.loads(content), parse_learned_file(content)
    assert (before["version"], json.loads(to_text(file))["version"]) == (1, 2)
    for group, plain in zip(file.groups, before["groups"], strict=True):
        step_seconds = [one["step_ms"] / 1e3 for one in plain["cells"]]
        assert [cell.step_seconds for cell in group.cells] == pytest.approx(step_seconds, rel=1e-3)
        for name in ("batch_bucket", "num_speculative_tokens", *SUMS[:-1], "age_s"):
            assert [getattr(cell, name) for cell in group.cells] == [one[name] for one in plain["cells"]]
        assert [[one["reached"], one["accepted"]] for one in plain["acceptance"]] == [
            list(pair) for pair in zip(group.acceptance.reached, group.acceptance.accepted, strict=True)
        ]
        assert group.plan
    assert parse_learned_file(to_text(file)) == file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": (1.0,)}, "cells; equal ones needed"),
        ({"steps": 3}, "a column of cells that is no list"),
        ({"batch_buckets": None}, "a column of cells that is no list"),
        ({"reached": (1.0,)}, "equally many needed"),
        ({"catch_up": (1.0,)}, "shorter"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LearnedGroup.model_validate({**stored_columns(), **change})


def test_tables_of_a_version_that_is_not_known_are_refused() -> None:
    with pytest.raises(ValidationError, match="version"):
        LearnedTables.model_validate({"version": 3})


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"fields": "steps", "rows": []}, "a table of `fields`, their names, and `rows`"),
        ({"fields": [["steps"]], "rows": []}, "a table of `fields`, their names, and `rows`"),
        ({"fields": ["steps"]}, "a table of `fields`, their names, and `rows`"),
        ({"fields": ["steps"], "rows": [[1.0], [1.0, 2.0]]}, "row 1 has not the 1 values of `fields`"),
        ({"fields": ["steps"], "rows": [3]}, "row 0 has not the 1 values of `fields`"),
        ({"fields": ["steps"], "rows": [[1.0]]}, "batch_bucket"),
        (3, "valid tuple"),
    ],
)
def test_a_table_that_is_none_is_refused(cells: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LearnedGroup.model_validate({"key": some_group().key.model_dump(), "cells": cells})


def test_what_is_no_version_of_the_file_is_refused_with_those_that_are() -> None:
    with pytest.raises(LearnedFileError, match="version: 3, this release reads 1 and 2"):
        parse_learned_file(b'{"format": "nightjar-learned", "version": 3}')
