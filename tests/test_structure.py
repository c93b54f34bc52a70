"""The rooms stay such that they can be read from the ground floor up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.structure import (
    ROOT,
    CircleError,
    floors,
    imported_packages,
    imports_within,
    lines_of_code,
    pages_by_command,
    words_by_hand,
)


@pytest.mark.parametrize(("room", "most"), [("policy", 14), ("cluster", 7), ("deployments", 12), ("loadtests", 15)])
def test_a_room_has_no_circle_of_imports_and_no_more_floors_than_it_had(room: str, most: int) -> None:
    assert max(floors(imports_within(ROOT / room)).values()) <= most


@pytest.mark.parametrize("room", ["policy", "cluster", "deployments"])
def test_no_folder_of_a_room_has_more_than_14_files(room: str) -> None:
    files = Counter(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")
    assert {folder: count for folder, count in files.items() if count > 14} == {}


def test_no_module_of_the_product_imports_what_only_tests_have() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): only_in_tests
        for room in ("policy", "cluster", "deployments", "loadtests")
        for path in (ROOT / room).rglob("*.py")
        if (only_in_tests := imported_packages(path.read_text(encoding="utf-8")) & {"unittest", "pytest", "hypothesis", "tests"})
    }
    assert found == {}


def test_a_package_counts_as_imported_only_where_no_module_of_it_is(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "ground.py").write_text("import os\n")
    (room / "upper.py").write_text("from nightjar.room import ground\nfrom nightjar.room.ground import name\n")
    assert imports_within(room) == {"room": set(), "room.ground": set(), "room.upper": {"room.ground"}}


def test_a_circle_is_named_and_has_no_floors() -> None:
    assert floors({"a": {"b"}, "b": set()}) == {"b": 1, "a": 2}
    with pytest.raises(CircleError, match="b <- c <- b"):
        floors({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_docs_written_by_hand_are_at_most_30000_words() -> None:
    assert words_by_hand() <= 30_000


def test_the_pages_that_make_docs_writes_are_not_counted() -> None:
    written = pages_by_command((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert written == {"settings", "cli", "api", "metrics", "licences", "results/README", "results/paper"}


def test_what_explains_is_no_code() -> None:
    source = '"""Why.\n\nMore."""\n\nLIMIT = 3\n"""Of what."""\n\n\ndef at() -> int:\n    """How."""\n    return LIMIT  # why\n'
    assert lines_of_code(source) == 3
