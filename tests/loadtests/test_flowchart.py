"""Flowcharts: what a text says, where its boxes stand, and what is refused."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tests.reference.figures.flowchart import draw, parse

TEXT = """flowchart LR
  a["one<br/>and more"] --> b[two] --> c["three"]
  b --> d & e
  f <--> e
"""


def boxes(svg: str) -> list[tuple[int, int]]:
    """Where the boxes stand, in the order of the text."""
    return [(int(x), int(y)) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', svg)]


def test_boxes_and_arrows_are_read_with_lists_and_both_ways() -> None:
    chart = parse(TEXT)
    assert chart.boxes == {"a": "one<br/>and more", "b": "two", "c": "three", "d": "d", "e": "e", "f": "f"}
    assert chart.arrows == (("a", "b", False), ("b", "c", False), ("b", "d", False), ("b", "e", False), ("f", "e", True))


def test_a_box_stands_right_of_all_that_lead_to_it_and_below_those_named_before() -> None:
    a, b, c, d, e, f = boxes(draw(TEXT))
    assert a[0] == f[0] < b[0] < c[0] == d[0] == e[0]
    assert c[1] < d[1] < e[1]
    assert a[1] < f[1]


def test_a_drawing_is_xml_and_escapes_words() -> None:
    svg = draw('flowchart LR\n  a["<b> & c"] --> b')
    assert len(ET.fromstring(svg)) == 1 + 1 + 2 * 2
    assert "&lt;b&gt; &amp; c" in svg


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("graph TD\n a --> b", "begins with"),
        ("flowchart LR\n  a --> {b}", "no box"),
        ("flowchart LR\n  a --> b\n  b --> a", "circle"),
    ],
)
def test_what_is_not_known_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        draw(text)
