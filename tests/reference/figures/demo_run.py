"""The figure of a recorded demo: K over time in each mode, and what the mode gave of off's tokens per second of engine time.

Real engines on a CPU, one run. A run's folder is larger than a repository should keep, so the rows that are drawn are taken out of
it and kept beside the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nightjar.loadtests.arms.samples import read_samples
from nightjar.loadtests.demo.report import BIN_S, ModeRun, k_over_time, mode_run
from nightjar.loadtests.demo.summary import RunSummary
from nightjar.loadtests.load.regimes import parse_regime
from nightjar.loadtests.load.rows import read_rows
from nightjar.loadtests.report.charts import Band, Scale, Series, round_marks
from nightjar.loadtests.report.machine import RunFacts
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import Record
from tests.reference.figures.picture import Panel, picture

ROWS_FILE: Final = "demo.json"
PICTURE_FILE: Final = "demo.svg"
STYLES: Final = ("soft", "second", "main")
"""Of off, of the fixed K and of auto, which is drawn on top."""
WIDTH: Final = 520
HEIGHT: Final = 132


class Stretch(Record):
    """A phase, in seconds from the load's start, and what a mode gave in it; `speed` is None where nobody asked, and of off."""

    phase: str
    start_s: float
    end_s: float
    speed: float | None


class Curve(Record):
    """One mode: its phases, and the mean K of every few seconds, which is None where no step ran."""

    mode: str
    stretches: tuple[Stretch, ...]
    mean_k: tuple[tuple[float, float | None], ...]


class Rows(Record):
    """A run, as it is kept."""

    headline: str
    regime: str
    run: RunFacts | None
    curves: tuple[Curve, ...]


def take(folder: Path) -> Rows:
    """Of a run's folder. Raises OSError, pydantic's ValidationError, RowsError and SamplesError for what is none."""
    summary = RunSummary.model_validate_json((folder / "summary.json").read_bytes())
    regime, rows, samples = (
        parse_regime(summary.regime),
        read_rows(folder / "requests.jsonl"),
        read_samples(folder / "samples.jsonl"),
    )
    runs = [run for mode in summary.modes if (run := mode_run(mode, regime, rows, samples)) is not None]
    return Rows(
        headline=summary.headline, regime=summary.regime, run=summary.run, curves=tuple(_curve(run, summary) for run in runs)
    )


def read(path: Path) -> Rows:
    """The rows that were kept. Raises OSError, and pydantic's ValidationError for what is none."""
    return Rows.model_validate_json(path.read_text(encoding="utf-8"))


def draw(rows: Rows) -> str:
    """The figure, as an SVG file."""
    last = rows.curves[-1].stretches
    end_s = max(curve.stretches[-1].end_s for curve in rows.curves)
    bands = [Band(one.phase, one.start_s, one.end_s, shaded=number % 2 == 1) for number, one in enumerate(last)]
    lengths = [_series(curve.mode, style, curve.mean_k) for curve, style in zip(rows.curves, STYLES, strict=False)]
    shares = [_series(curve.mode, style, _share(curve)) for curve, style in zip(rows.curves, STYLES, strict=False)]
    return picture(
        "K of Nightjar, of a fixed K and of no speculation while the load changes, and their tokens per second of engine time",
        (
            Panel(f"K: draft tokens per request and step, mean over {BIN_S:g} s", lengths, _scale(end_s, lengths), bands),
            Panel("Tokens per second of engine time, in percent of speculation off", shares, _scale(end_s, shares), bands),
        ),
    )


def _curve(run: ModeRun, summary: RunSummary) -> Curve:
    speeds = {(row.mode, row.phase): row.speed for row in summary.phases if row.requests}
    stretches = (
        Stretch(
            phase=one.phase,
            start_s=round(one.start_s - run.start_s, 1),
            end_s=round(one.end_s - run.start_s, 1),
            speed=speeds.get((run.mode, one.phase)),
        )
        for one in run.stretches
    )
    points = ((at_s, None if length is None else round(length, 2)) for at_s, length in k_over_time(run))
    return Curve(mode=run.mode, stretches=tuple(stretches), mean_k=tuple(points))


def _share(curve: Curve) -> list[tuple[float, float | None]]:
    """A level for each phase with requests, in percent; off is what the others are compared with."""
    points: list[tuple[float, float | None]] = []
    for one in curve.stretches:
        level = 100.0 if curve.mode == "off" else None if one.speed is None else 100.0 * one.speed
        points += [(one.start_s, level), (one.end_s, level), (one.end_s, None)]
    return points


def _series(mode: str, style: str, points: Sequence[tuple[float, float | None]]) -> Series:
    parsed = Mode.parse(mode)
    fixed = f"K = {parsed.num_speculative_tokens} always" if parsed.kind == "pin" else mode
    return Series({"off": "speculation off", "auto": "Nightjar"}.get(mode, fixed), "line", style, points)


def _scale(end_s: float, series: Sequence[Series]) -> Scale:
    marks = round_marks(max((y for one in series for _, y in one.points if y is not None), default=1.0))
    return Scale(end_s, marks[-1], marks, width=WIDTH, height=HEIGHT)
