"""Flowcharts in Mermaid's language as SVG, for a site that may load no script: boxes from left to right, and lines between them.

Of the language it knows `flowchart LR` and lines of boxes and arrows: `a["words<br/>more"] --> b["..."] & c["..."]`, `<-->` for
both ways. A box's column is how many arrows lead to it at most, its row the order in which it is named there; a line turns just
before the column that it leads to. Fails closed: what it does not know raises ValueError with the line.

>>> draw('flowchart LR\\n  a["one"] --> b["two"]').count("<rect")
2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import Final

HEAD: Final = "flowchart LR"
BOX: Final = re.compile(r'^(?P<name>\w+)(?:\["(?P<quoted>[^"]*)"\]|\[(?P<bare>[^\]"]*)\])?$')
AND: Final = re.compile(r"\s+&\s+(?![^\[]*\])")
ARROW: Final = re.compile(r"\s+(<?-->)\s+")
BOX_WIDTH: Final = 138
GAP: Final = 34
LINE_HEIGHT: Final = 15
PADDING: Final = 9
ROW_GAP: Final = 14
MARGIN: Final = 8
LONGEST_LINE: Final = 21
"""Characters; longer lines of a box are broken."""


@dataclass(frozen=True, slots=True)
class Flowchart:
    """Words of each box by its name, in the order of the text, and the arrows: from, to, whether both ways."""

    boxes: dict[str, str]
    arrows: tuple[tuple[str, str, bool], ...]


def parse(text: str) -> Flowchart:
    """What a text says. Raises ValueError for a line that is none of this language's small part."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or lines[0] != HEAD:
        raise ValueError(f"a flowchart begins with {HEAD!r}, not {lines[0] if lines else ''!r}")
    boxes: dict[str, str] = {}
    arrows: list[tuple[str, str, bool]] = []
    for line in lines[1:]:
        first, *rest = ARROW.split(line)
        left = _boxes(first, boxes)
        for arrow, words in zip(rest[::2], rest[1::2], strict=True):
            right = _boxes(words, boxes)
            arrows += [(one, other, arrow.startswith("<")) for one in left for other in right]
            left = right
    return Flowchart(boxes, tuple(arrows))


def draw(text: str) -> str:
    """An `<svg>` element in the page's own colour. Raises ValueError."""
    chart = parse(text)
    words = {name: _wrapped(said) for name, said in chart.boxes.items()}
    columns = _columns(chart)
    height = max(len(lines) for lines in words.values()) * LINE_HEIGHT + 2 * PADDING
    places: dict[str, tuple[int, int]] = {}
    for name in chart.boxes:
        row = sum(columns[other] == columns[name] for other in places)
        places[name] = (MARGIN + columns[name] * (BOX_WIDTH + GAP), MARGIN + row * (height + ROW_GAP))
    width = max(x for x, _ in places.values()) + BOX_WIDTH + MARGIN
    bottom = max(y for _, y in places.values()) + height + MARGIN
    parts = [_arrow(places[one], places[other], height, both_ways=both) for one, other, both in chart.arrows]
    parts += [_box(places[name], height, words[name]) for name in chart.boxes]
    head = '<path d="M0 0L7 3.5L0 7z" fill="currentColor"/>'
    size = 'viewBox="0 0 7 7" refX="7" refY="3.5" markerWidth="7" markerHeight="7" orient="auto-start-reverse"'
    marker = f'<marker id="head" {size}>{head}'
    box = f'viewBox="0 0 {width} {bottom}" style="max-width:{width}px;width:100%;height:auto" role="img"'
    label = escape(", ".join(" ".join(lines) for lines in words.values()))
    return f'<svg {box} aria-label="{label}"><defs>{marker}</marker></defs>{"".join(parts)}</svg>'


def _boxes(words: str, known: dict[str, str]) -> list[str]:
    """Names of the boxes that are joined by `&`; new ones are added to `known`."""
    names = []
    for one in AND.split(words):
        found = BOX.match(one.strip())
        if found is None:
            raise ValueError(f"{one.strip()!r} is no box: NAME or NAME[WORDS]")
        name, said = found["name"], found["quoted"] if found["quoted"] is not None else found["bare"]
        if said is not None or name not in known:
            known[name] = said if said is not None else name
        names.append(name)
    return names


def _columns(chart: Flowchart) -> dict[str, int]:
    """By box: the most arrows that lead to it, one behind the other. Raises ValueError for a circle."""
    columns = dict.fromkeys(chart.boxes, 0)
    for _ in chart.boxes:
        moved = {other: columns[one] + 1 for one, other, _ in chart.arrows if columns[other] <= columns[one]}
        if not moved:
            return columns
        columns |= moved
    raise ValueError("arrows lead in a circle")


def _wrapped(said: str) -> list[str]:
    lines = []
    for part in re.split(r"<br\s*/?>", said):
        line = ""
        for word in part.split():
            if line and len(line) + 1 + len(word) > LONGEST_LINE:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _box(place: tuple[int, int], height: int, lines: list[str]) -> str:
    x, y = place
    first = y + (height - len(lines) * LINE_HEIGHT) / 2 + LINE_HEIGHT - 4
    middle = x + BOX_WIDTH / 2
    said = (f'<text x="{middle:g}" y="{first + number * LINE_HEIGHT:g}">{escape(line)}</text>' for number, line in enumerate(lines))
    size = f'x="{x}" y="{y}" width="{BOX_WIDTH}" height="{height}"'
    rect = f'<rect {size} rx="5" fill="none" stroke="currentColor" stroke-opacity=".5"/>'
    return f'{rect}<g font-size="12" text-anchor="middle" fill="currentColor">{"".join(said)}</g>'


def _arrow(start: tuple[int, int], end: tuple[int, int], height: int, *, both_ways: bool) -> str:
    (x1, y1), (x2, y2) = (start[0] + BOX_WIDTH, start[1] + height / 2), (end[0], end[1] + height / 2)
    heads = 'marker-end="url(#head)"' + (' marker-start="url(#head)"' if both_ways else "")
    return f'<path d="M{x1} {y1:g}H{x2 - GAP // 2}V{y2:g}H{x2}" fill="none" stroke="currentColor" {heads}/>'
