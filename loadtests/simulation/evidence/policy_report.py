"""One page about a simulated run: bars, charts, every table. Self-contained HTML, no script, no other file.

Everything on it is computed from the run's raw rows. Charts of one row share their vertical scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from nightjar.loadtests.report.charts import ChartRow, Series, chart, legend, scale_for
from nightjar.loadtests.report.page import render
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, by_second
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.summary import NOT_JUDGED, SimulationSummary
from nightjar.loadtests.simulation.evidence.tables import bar_grid, failure_grid
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE

CAPTION: Final = (
    "Engines are simulated in virtual time; what decides is the very code that runs in production. Planners at one place and seed "
    "faced the same requests. Step costs come from the profile files, whose sources they name. docs/simulation.md says what is "
    "modelled and what is not."
)

CURVES: Final = (FLEET, ORACLE, "nightjar", "fixed-3", "turbospec", OFF, "banditspec", "sglang")
"""Whom the charts show, each in its colour (c0, c1, ...); everybody is in the tables."""

ChartsOf = Callable[[Sequence[RunRow]], ChartRow | None]
"""Draws a row of charts; None where their runs were not made."""

Named = Mapping[str, Sequence[tuple[float, float | None]]]
"""Curves of one chart by name."""


def render_policy_report(
    summary: SimulationSummary,
    rows: Sequence[RunRow],
    grids: Sequence[Grid],
    charts: Sequence[ChartsOf],
    *,
    judged: bool = True,
) -> str:
    """The page, with these tables and charts. Without bars where the run is not `judged`."""
    good = [row for row in rows if not row.error]
    first = [bar_grid(tuple(summary.bars.values()))] if judged else []
    if any(row.error for row in rows):
        first.append(failure_grid(rows))
    return render(
        "simulate.html",
        headline=summary.headline if judged else f"{NOT_JUDGED}.",
        facts=summary.facts,
        caption=CAPTION,
        first=first,
        rows_of_charts=[drawn for draw in charts if (drawn := draw(good))],
        grids=[grid for grid in grids if grid.rows],
    )


def _throughput_against_load(rows: Sequence[RunRow]) -> ChartRow | None:
    return _against_load(rows, GOODPUT, "Tokens per busy engine-second against load (Poisson)", 1.0)


def _latency_against_load(rows: Sequence[RunRow]) -> ChartRow | None:
    return _against_load(rows, "tpot_p50_s", "Median time per token against load (Poisson), milliseconds", 1e3)


def _against_load(rows: Sequence[RunRow], measure: str, title: str, factor: float) -> ChartRow | None:
    poisson = [row for row in rows if row.kind == "open_loop" and row.load.startswith("poisson") and not row.as_published]
    kept = [row for row in poisson if {measure, "requests_per_s"} <= row.measures.keys()]
    charts: dict[str, Named] = {}
    for profile in dict.fromkeys(row.profile for row in kept):
        mine = [row for row in kept if row.profile == profile]
        charts[profile] = {who: _by_load([row for row in mine if row.who == who], measure, factor) for who in CURVES}
    return panel(title, charts, "req/s", shared=False)


def _k_over_time(rows: Sequence[RunRow]) -> ChartRow | None:
    kept = [row for row in rows if row.kind == "open_loop" and "mean_k" in row.series and not row.as_published]
    charts = {
        place: {row.who: _by_second(row.series["mean_k"]) for row in kept if row.place == place}
        for place in dict.fromkeys(row.place for row in kept)
    }
    return panel("K over time, mean over engine steps of a second, one seed", charts, "s", shared=False)


def _learning(rows: Sequence[RunRow]) -> ChartRow | None:
    kept = [row for row in rows if row.kind == "pooling" and "lost_tokens_per_replica" in row.measures]
    charts = {
        place: {
            FLEET: _means(
                (float(row.replicas), row.measures["lost_tokens_per_replica"])
                for row in kept
                if row.place == place and row.planner == FLEET
            )
        }
        for place in dict.fromkeys(row.place for row in kept)
    }
    return panel(
        "Learning against fleet size: tokens lost per replica until within 2 % of the oracle", charts, "replicas", shared=False
    )


def panel(title: str, charts: Mapping[str, Named], x_unit: str, *, shared: bool) -> ChartRow | None:
    """A row of charts with one legend; None without a curve. `shared`: one vertical scale for all of them."""
    drawn = {name: {who: points for who, points in curves.items() if points} for name, curves in charts.items()}
    drawn = {name: curves for name, curves in drawn.items() if curves}
    if not drawn:
        return None
    styles = _styles(dict.fromkeys(who for curves in drawn.values() for who in curves))
    every = [y for curves in drawn.values() for points in curves.values() for _, y in points if y is not None]
    charted = []
    for name, curves in drawn.items():
        series = [Series(who, "line", styles[who], points) for who, points in curves.items()]
        if x_unit != "s":
            series += [Series(who, "dots", styles[who], points) for who, points in curves.items()]
        values = every if shared else [y for points in curves.values() for _, y in points if y is not None]
        scale = scale_for(max(x for points in curves.values() for x, _ in points), values, x_unit)
        charted.append((name, chart(series, scale)))
    return ChartRow(title, legend([Series(who, "line", style, ()) for who, style in styles.items()]), charted)


def _styles(whos: Iterable[str]) -> dict[str, str]:
    """A colour for each: known planners keep theirs, others take what is left."""
    known = {who: f"c{place}" for place, who in enumerate(CURVES)}
    whos = list(whos)
    free = iter([f"c{place}" for place in range(8) if f"c{place}" not in {known.get(who) for who in whos}] + ["c7"] * len(whos))
    return {who: known.get(who) or next(free) for who in whos}


def _by_load(rows: Sequence[RunRow], measure: str, factor: float) -> list[tuple[float, float | None]]:
    """One point a load: mean requests per second and engine, mean of the measure."""
    points = []
    for load in dict.fromkeys(row.load for row in rows):
        mine = [row for row in rows if row.load == load]
        rate = fmean(row.measures["requests_per_s"] / row.replicas for row in mine)
        points.append((rate, fmean(row.measures[measure] * factor for row in mine)))
    return sorted(points)


def _means(points: Iterable[tuple[float, float]]) -> list[tuple[float, float | None]]:
    """Mean y by x, ascending."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(round(x, 3), []).append(y)
    return [(x, fmean(ys)) for x, ys in sorted(by_x.items())]


def mean_series(series: Sequence[Sequence[float]]) -> list[tuple[float, float | None]]:
    """Mean over runs, second by second, as long as all of them go."""
    return _by_second(by_second(series))


def _by_second(values: Sequence[float]) -> list[tuple[float, float | None]]:
    return [(float(second), value) for second, value in enumerate(values)]


CHARTS: Final[tuple[ChartsOf, ...]] = (_throughput_against_load, _latency_against_load, _k_over_time, _learning)
"""A row of charts each."""
