"""What every report's page has from its frame, whatever is on it."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from nightjar.loadtests.report.page import TEMPLATES, render

DRAWINGS = {"keys", "svg", "speeds"}
"""Of charts.py, which escapes the names that it draws."""


def test_a_value_is_text_on_a_page_and_never_markup() -> None:
    found = {"sentences": ["<script>alert(1)</script>"], "forests": [], "heads": ["a & b"], "ratios": [["<i>"]], "figure_heads": []}
    words = dict.fromkeys(("heading", "subtitle", "how", "meanings"), "<b>")
    page = render("compare.html", **found, **words, figures=[], facts=["'\""])
    assert "&lt;script&gt;" in page
    assert "<th>a &amp; b</th>" in page
    assert "<title>Nightjar: &lt;b&gt;</title>" in page
    assert page.endswith("</html>\n")
    assert not re.search("<script|<b>|<i>", page)


def test_only_drawings_are_put_in_as_markup() -> None:
    texts = [file.read_text(encoding="utf-8") for file in TEMPLATES.glob("*.html")]
    named = [name for text in texts for name in re.findall(r"([\w.]+)\s*\|\s*safe", text)]
    assert {name.rpartition(".")[2] for name in named} == DRAWINGS


def test_a_page_with_a_value_missing_is_an_error_and_no_page_with_a_hole() -> None:
    with pytest.raises(UndefinedError, match="is undefined"):
        render("assess.html")


@pytest.mark.parametrize("template", sorted(file.name for file in TEMPLATES.glob("*.html")))
def test_no_page_loads_anything_or_runs_a_script(template: str) -> None:
    assert not re.search(r"<script|<link|@import|url\(|src=|href=", (TEMPLATES / template).read_text(encoding="utf-8"))
