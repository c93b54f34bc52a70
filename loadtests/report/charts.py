"""Small charts as inline SVG: no library, no script, no file beside the page.

A panel is drawn on given scales, so that charts side by side can be compared by eye. Colours and fonts come from the page's
style sheet by class name, which also makes the charts follow its light and dark variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal, NamedTuple

WIDTH: Final = 380
HEIGHT: Final = 150
LEFT: Final = 44
RIGHT: Final = 8
TOP: Final = 10
BOTTOM: Final = 22

LETTER: Final = 5
"""Width of a letter beside a forest, about."""
FOREST_RIGHT: Final = 128
FOREST_ROW: Final = 15
LEAST_SPAN: Final = 0.2

Kind = Literal["line", "steps", "dots", "bars"]


@dataclass(frozen=True, slots=True)
class Series:
    """Points to draw, x ascending. A None for y leaves a gap. `style` is the CSS class that colours it."""

    name: str
    kind: Kind
    style: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Band:
    """A named stretch of the x axis, shaded where `shaded`."""

    name: str
    first: float
    last: float
    shaded: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio with its interval, and what is written beside it. `style` is the CSS class: faster, slower, or another."""

    name: str
    value: float
    low: float
    high: float
    words: str
    style: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Both axes: x from 0 to `x_max`, y from 0 to `y_max`, marks at `y_marks`; `x_unit` is written at the marks of x.

    `width` and `height` are the whole chart's, in pixels.
    """

    x_max: float
    y_max: float
    y_marks: tuple[float, ...]
    x_unit: str = "s"
    width: int = WIDTH
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Horizontal place in pixels."""
        return LEFT + (self.width - LEFT - RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        """Vertical place in pixels."""
        return TOP + (self.height - TOP - BOTTOM) * (1 - value / self.y_max)


class ChartRow(NamedTuple):
    """Charts side by side, each as SVG with its name, and one legend for all."""

    title: str
    keys: str
    charts: Sequence[tuple[str, str]]


def scale_for(x_max: float, values: Sequence[float], x_unit: str = "s") -> Scale:
    """A scale that holds every value, its marks at round numbers.

    >>> scale_for(60, [0.0, 7.3]).y_marks
    (0.0, 2.0, 4.0, 6.0, 8.0)
    """
    marks = round_marks(max(values, default=0.0))
    return Scale(max(x_max, 1e-9), marks[-1], marks, x_unit)


def round_marks(highest: float) -> tuple[float, ...]:
    """At most five round numbers from 0 to the first at or above `highest`.

    >>> round_marks(0.9)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    highest = highest or 1.0
    magnitude = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * 4 >= highest * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return tuple(round(mark * step, 12) for mark in range(count + 1))


def chart(series: Sequence[Series], scale: Scale, bands: Sequence[Band] = (), marker: tuple[float, str] | None = None) -> str:
    """One chart as an `<svg>` element. `marker` is a vertical line at an x, with what happened there."""
    return f'<svg viewBox="0 0 {scale.width} {scale.height}" role="img">{drawing(series, scale, bands, marker)}</svg>'


def drawing(series: Sequence[Series], scale: Scale, bands: Sequence[Band] = (), marker: tuple[float, str] | None = None) -> str:
    """What such an element holds."""
    parts = [_band(band, scale) for band in bands]
    parts += [_y_mark(mark, scale) for mark in scale.y_marks]
    parts += [_x_mark(mark, scale) for mark in _x_marks(scale)]
    parts += [_DRAW[one.kind](one, scale) for one in series]
    if marker is not None:
        x = scale.x(marker[0])
        place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{scale.height - BOTTOM}"'
        parts.append(f'<line class="marker" {place}><title>{escape(marker[1])}</title></line>')
    return "".join(parts)


def forest(groups: Sequence[tuple[str, Sequence[Estimate]]], reference: str, label: str) -> str:
    """Ratios with their intervals beside the line of no difference, group by group, as an `<svg>` element.

    `reference` names the line at 1, `label` what the ratios are of. The axis holds every interval, and a fifth on each side.
    """
    rows = [one for _, estimates in groups for one in estimates]
    left = min(8 + LETTER * max((len(one.name) for one in rows), default=0) + 8, WIDTH // 3)
    low = min([1.0 - LEAST_SPAN, *(one.low for one in rows)])
    high = max([1.0 + LEAST_SPAN, *(one.high for one in rows)])

    def x(value: float) -> float:
        return left + (WIDTH - left - FOREST_RIGHT) * (value - low) / (high - low)

    parts, y = [], float(TOP)
    for name, estimates in groups:
        if name:
            parts.append(f'<text class="group" x="0" y="{y + FOREST_ROW - 3:.1f}">{escape(name)}</text>')
            y += FOREST_ROW + 2
        for one in estimates:
            parts.append(_estimate(one, x, y + FOREST_ROW / 2))
            y += FOREST_ROW
    axis = f'<line class="axis" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{TOP}" y2="{y:.1f}"/>'
    foot = f'<text class="value middle" x="{x(1):.1f}" y="{y + 11:.1f}">{escape(reference)} = 1</text>'
    box = f'viewBox="0 0 {WIDTH} {y + FOREST_ROW:.0f}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="forest" {box}>{axis}{"".join(parts)}{foot}</svg>'


def legend(series: Sequence[Series]) -> str:
    """The names of the series, each in its colour."""
    return " ".join(f'<span class="key {escape(one.style)}">{escape(one.name)}</span>' for one in series)


def _estimate(one: Estimate, x: Callable[[float], float], y: float) -> str:
    return (
        f'<g class="{one.style}"><text class="name" x="8" y="{y + 3:.1f}">{escape(one.name)}</text>'
        f'<line class="whisker" x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="point" cx="{x(one.value):.1f}" cy="{y:.1f}" r="3.5"/>'
        f'<text class="value" x="{WIDTH - FOREST_RIGHT + 8}" y="{y + 3:.1f}">{escape(one.words)}</text></g>'
    )


def _band(band: Band, scale: Scale) -> str:
    x, width = scale.x(band.first), max(scale.x(min(band.last, scale.x_max)) - scale.x(band.first), 0.0)
    box = f'x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{scale.height - TOP - BOTTOM}"'
    shade = f'<rect class="band" {box}/>' if band.shaded else ""
    return f'{shade}<text class="phase" x="{x + width / 2:.1f}" y="{TOP + 8}">{escape(band.name)}</text>'


def _y_mark(mark: float, scale: Scale) -> str:
    y = scale.y(mark)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{scale.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick y" x="{LEFT - 5}" y="{y + 3:.1f}">{mark:g}</text>'
    )


def _x_marks(scale: Scale) -> list[float]:
    if scale.x_unit != "s":
        return [mark for mark in round_marks(scale.x_max) if mark <= scale.x_max * (1 + 1e-9)]
    step = next((step for step in (10, 30, 60, 120, 300, 600, 1800, 3600) if scale.x_max / step <= 6), 86_400)
    return [float(mark) for mark in range(0, int(scale.x_max) + 1, step)]


def _x_mark(mark: float, scale: Scale) -> str:
    return f'<text class="tick x" x="{scale.x(mark):.1f}" y="{scale.height - 8}">{mark:g} {escape(scale.x_unit)}</text>'


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Points without the gaps, one list per unbroken run."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(series: Series, scale: Scale) -> str:
    paths = []
    for run in _runs(series.points):
        path = "M" + "L".join(f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in run)
        paths.append(f'<path class="line {escape(series.style)}" d="{path}"/>')
    return "".join(paths)


def _steps(series: Series, scale: Scale) -> str:
    paths = []
    for run in _runs(series.points):
        path = f"M{scale.x(run[0][0]):.1f} {scale.y(run[0][1]):.1f}"
        path += "".join(f"H{scale.x(x):.1f}V{scale.y(y):.1f}" for x, y in run[1:])
        paths.append(f'<path class="line {escape(series.style)}" d="{path}"/>')
    return "".join(paths)


def _dots(series: Series, scale: Scale) -> str:
    return "".join(
        f'<circle class="dot {escape(series.style)}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2">'
        f"<title>{y:.3g}</title></circle>"
        for x, y in series.points
        if y is not None
    )


def _bars(series: Series, scale: Scale) -> str:
    """Bars from each x to the next; the last is as wide as the one before it."""
    xs = [x for x, _ in series.points]
    width = xs[1] - xs[0] if len(xs) > 1 else scale.x_max
    bars = []
    for x, y in series.points:
        if y:
            left, right, top = scale.x(x), scale.x(min(x + width, scale.x_max)), scale.y(y)
            box = f'x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 0.5, 0.5):.1f}" height="{scale.y(0) - top:.1f}"'
            bars.append(f'<rect class="bar {escape(series.style)}" {box}/>')
    return "".join(bars)


_DRAW: Final = {"line": _line, "steps": _steps, "dots": _dots, "bars": _bars}
