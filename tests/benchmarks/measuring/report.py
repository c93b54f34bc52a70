"""What is written and printed: summary.json with every bar, raw rows as JSON lines, one SVG a chart, tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from nightjar.loadtests.report.charts import Series, chart, scale_for
from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.evidence.bars import Bar, BenchSummary, by_name
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid
from nightjar.loadtests.simulation.evidence.result_table import rich_table
from tests.benchmarks.measuring.outcome import Lines, Outcome

COLOURS: Final = ("#1f6f8b", "#c8553d", "#2e7d4f", "#8a5a9e", "#b58a00", "#1d2430")
STYLE: Final = (
    ".grid{stroke:#e2e5ea}.tick{font:9px sans-serif;fill:#6b7686}.tick.y{text-anchor:end}.tick.x{text-anchor:middle}"
    ".line{fill:none;stroke-width:1.5}.name{font:9px sans-serif}"
)


class MeasuredSummary(BenchSummary):
    """What every bench tells, and `found`: each section's own facts."""

    found: Mapping[str, Any]


def print_bars(console: Console, bars: Sequence[Bar]) -> None:
    """Every bar with what is wanted, its interval and what that is."""
    heads = ("bar", "value", "interval", "which is", "wanted", "verdict", "at")
    rows = []
    for bar in bars:
        value = DASH if bar.value is None else f"{bar.value:.3f}"
        interval = ("", "") if bar.interval is None else (str(bar.interval), bar.interval.kind)
        rows.append((bar.name, value, *interval, bar.want, bar.verdict, bar.at))
    console.print(rich_table(Grid("Bars", heads, rows)))


def write(folder: Path, outcomes: Mapping[str, Outcome], run: RunFacts, seeds: Mapping[str, tuple[int, ...]]) -> None:
    """Everything that was found so far; called after each section, so that a broken run leaves what it had."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = MeasuredSummary(
        run=run,
        seeds=seeds,
        bars=by_name(bar for outcome in outcomes.values() for bar in outcome.bars),
        found={section: outcome.facts for section, outcome in outcomes.items()},
    )
    (folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")
    for outcome in outcomes.values():
        for name, rows in outcome.rows.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number, lines in enumerate(outcome.charts):
            name = "".join(letter if letter.isalnum() else "-" for letter in lines.title.lower())
            (folder / f"{number}-{name}.svg").write_text(_svg(lines))


def _svg(lines: Lines) -> str:
    """The project's own chart with its colours and names inside, since no page stands around it."""
    series = [Series(name, "line", f"c{number}", points) for number, (name, points) in enumerate(lines.curves.items())]
    points = [point for curve in lines.curves.values() for point in curve]
    scale = scale_for(max(x for x, _ in points), [y for _, y in points], lines.x_unit)
    colours = "".join(f".c{number}{{stroke:{COLOURS[number % len(COLOURS)]}}}" for number in range(len(series)))
    names = "".join(
        f'<text class="name" x="{50 + 55 * number}" y="9" fill="{COLOURS[number % len(COLOURS)]}">{one.name}</text>'
        for number, one in enumerate(series)
    )
    drawn = chart(series, scale).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace("</svg>", f"<style>{STYLE}{colours}</style>{names}<title>{lines.title}</title></svg>")
