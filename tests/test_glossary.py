"""docs/glossary.md: the words of the code and the pages, each in one sentence and each really used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
GLOSSARY: Final = ROOT / "docs" / "glossary.md"
ROW: Final = re.compile(r"^\| (?P<term>[^|]+) \| (?P<meaning>[^|]+) \|$", flags=re.MULTILINE)


def entries() -> list[tuple[str, str]]:
    found = [(row["term"], row["meaning"]) for row in ROW.finditer(GLOSSARY.read_text(encoding="utf-8"))]
    return [(term, meaning) for term, meaning in found if term not in {"term", "---"}]


@pytest.fixture(scope="module")
def written() -> str:
    """Code and pages, the glossary left out, as one text in lower case with single spaces."""
    pages = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page != GLOSSARY]
    code = [path for room in ("policy", "cluster", "deployments") for path in sorted((ROOT / room).rglob("*.py"))]
    return " ".join(" ".join(path.read_text(encoding="utf-8") for path in (*pages, *code)).lower().split())


def test_the_glossary_is_there_and_in_alphabetical_order() -> None:
    terms = [term.lower() for term, _ in entries()]
    assert len(terms) > 40
    assert terms == sorted(set(terms))


@pytest.mark.parametrize(("term", "meaning"), entries(), ids=[term for term, _ in entries()])
def test_each_term_has_one_sentence_and_occurs_in_code_or_pages(term: str, meaning: str, written: str) -> None:
    assert meaning.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", meaning), "one sentence"
    spelt = re.sub(r"[ -]", "[ _-]", term.lower())
    assert re.search(rf"\b{spelt}(s|es)?\b", written), f"{term} is used nowhere"


def test_readme_and_the_planners_page_lead_to_it() -> None:
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(glossary.md)" in (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
