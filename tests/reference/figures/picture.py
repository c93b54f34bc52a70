"""Charts in one SVG file, for a page that cannot style them: colours, titles and a legend are in the file.

The colours follow the reader's light or dark setting. It loads nothing, and has no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from nightjar.loadtests.report.charts import LEFT, Band, Scale, Series, drawing
from nightjar.loadtests.report.page import style

TITLE_HEIGHT: Final = 22
LEGEND_HEIGHT: Final = 20
MARGIN: Final = 6
STYLE: Final = (
    style("colours", "charts")
    + """text { font-family: system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 11px; font-weight: 600; } .key { font-size: 10px; } .back { fill: var(--paper); }
.line.soft { stroke: var(--dim); } .key.soft { fill: var(--dim); }
.key.main { fill: var(--main); } .key.second { fill: var(--second); }
"""
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart and its title. Panels of a picture have the same width."""

    title: str
    series: Sequence[Series]
    scale: Scale
    bands: Sequence[Band] = ()


def picture(described: str, panels: Sequence[Panel]) -> str:
    """The file: a legend of all series, then the panels, one below the other. `described` is read to who cannot see it."""
    width = max(panel.scale.width for panel in panels)
    parts, top = [_legend(panels)], LEGEND_HEIGHT
    for panel in panels:
        parts.append(f'<text class="title" x="{MARGIN}" y="{top + TITLE_HEIGHT - 7}">{escape(panel.title)}</text>')
        top += TITLE_HEIGHT
        parts.append(f'<g transform="translate(0 {top})">{drawing(panel.series, panel.scale, panel.bands)}</g>')
        top += panel.scale.height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}" role="img">'
    back = f'<rect class="back" width="{width}" height="{top}" rx="6"/>'
    return "\n".join([head, f"<title>{escape(described)}</title>", f"<style>{STYLE}</style>", back, *parts, "</svg>", ""])


def _legend(panels: Sequence[Panel]) -> str:
    names = dict.fromkeys((one.name, one.style) for panel in panels for one in panel.series)
    keys = (f'<tspan class="key {escape(style)}" dx="12">\N{BLACK SQUARE} {escape(name)}</tspan>' for name, style in names)
    return f'<text class="key" x="{LEFT - 12}" y="{LEGEND_HEIGHT - 4}">{"".join(keys)}</text>'
