"""Every invariant is stated once, for everybody, and the tests that are said to show it name it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "invariants.md"
STATED: Final = dict(re.findall(r"^\| (INV-\d+) \|.*\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
"""By invariant: the cell of the table that names its tests."""
ROOMS: Final = ("policy", "cluster", "deployments", "loadtests", "tests", "helm", "docs", "README.md")


def cited() -> set[str]:
    """Every invariant that code, tests or a page cites."""
    found: set[str] = set()
    for room in ROOMS:
        path = ROOT / room
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.suffix in {".py", ".md", ".yaml"}:
                found.update(re.findall(r"\bINV-\d+\b", file.read_text(encoding="utf-8")))
    return found


def test_what_is_cited_is_stated_and_what_is_stated_is_cited() -> None:
    assert cited() == STATED.keys()


@pytest.mark.parametrize("invariant", STATED)
def test_the_tests_that_show_an_invariant_name_it(invariant: str) -> None:
    tests = re.findall(r"\]\(\.\./(tests/[^)]+)\)", STATED[invariant])
    assert tests
    for test in tests:
        assert re.search(rf"\b{invariant}\b", (ROOT / test).read_text(encoding="utf-8")), test
