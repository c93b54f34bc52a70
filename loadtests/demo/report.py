"""One page of evidence: what load came, what was decided, what it cost. Self-contained HTML, no script, no other file.

The story stands first: one sentence, what each mode gave in each phase, and what the last one did meanwhile. Everything is computed
from the run's recorded rows and samples; scales are shared between the modes of a row of charts, so that the eye compares what the
numbers say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nightjar.loadtests.arms.samples import EngineHistory, StatusSample, acceptance_rate, all_work, mean_k
from nightjar.loadtests.demo.caption import arm_name, arrivals, demo_caption, learning_in_words
from nightjar.loadtests.demo.summary import ALL_PHASES, PhaseSummary, RunSummary, Stretch, Times, stretches
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.load.rows import RequestRow, regime_start_s
from nightjar.loadtests.report.charts import Band, ChartRow, Estimate, Series, chart, forest, legend, scale_for
from nightjar.loadtests.report.page import cell, render
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.status import FleetStatus
from nightjar.policy.words import step_codes

BIN_S: Final = 5.0
"""Width of the bins in which rates are shown, in seconds."""

COLUMNS: Final = (
    "mode", "phase", "requests", "tokens/s", "engine ms per token", "of off", "TTFT s p50 / max", "TPOT ms p50 / max", "mean K",
    "steps off",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModeRun:
    """One mode's part of the recorded run; times of its series count from the start of its regime."""

    mode: str
    start_s: float
    stretches: tuple[Stretch, ...]
    rows: Sequence[RequestRow]
    samples: Sequence[StatusSample]
    history: EngineHistory

    @property
    def duration_s(self) -> float:
        """Of its load, until the last answer."""
        return self.stretches[-1].end_s - self.start_s


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    draw: Callable[[ModeRun], list[Series]]


def render_report(summary: RunSummary, regime: Regime, rows: Sequence[RequestRow], samples: Sequence[StatusSample]) -> str:
    """The page. Modes without a single row have no charts."""
    runs = [run for mode in summary.modes if (run := mode_run(mode, regime, rows, samples)) is not None]
    killed_at_s = summary.policy_killed_at_s
    return render(
        "demo.html",
        summary=summary,
        facts="; ".join(_facts(summary)),
        run="; ".join(_run_facts(summary)),
        speeds=_speeds(summary),
        ks=_drawn(_K, runs[-1:], killed_at_s) if runs else None,
        learning=learning_in_words(samples, summary.modes[-1]) if summary.modes else "",
        heads=columns(summary.phases),
        rows=[(table_cells(row), row.phase == ALL_PHASES) for row in shown_rows(summary.phases)],
        caption=demo_caption(samples),
        panels=[_drawn(panel, runs, killed_at_s) for panel in _PANELS] if runs else [],
    )


def columns(rows: Sequence[PhaseSummary]) -> tuple[str, ...]:
    """Heads of the table of these rows: with those of goodput where a target was asked for."""
    target = next((row.goodput.target for row in rows if row.goodput), None)
    return COLUMNS if target is None else (*COLUMNS, f"within {target}", "their tokens/s")


def shown_rows(rows: Sequence[PhaseSummary]) -> list[PhaseSummary]:
    """Those with requests: what ran in a phase without arrivals was asked for before it, and would read as that phase's."""
    return [row for row in rows if row.requests]


def table_cells(row: PhaseSummary) -> tuple[str, ...]:
    """A row of the table as text, in the order of `columns`; a dash where there is nothing to show."""
    return (
        row.mode,
        row.phase,
        f"{row.requests}{f', {row.errors} failed' if row.errors else ''}",
        f"{row.tokens_per_s:.1f}",
        cell(row.engine_seconds_per_token, ".1f", 1e3),
        cell(row.speed, ".2f"),
        _times(row.ttft, _seconds),
        _times(row.tpot, _milliseconds),
        cell(row.mean_num_speculative_tokens, ".2f"),
        cell(row.share_of_steps_off, ".0%"),
        *_goodput_cells(row),
    )


def _facts(summary: RunSummary) -> list[str]:
    """When, on what, of what and how long."""
    found = [f"model {summary.model}", f"load {summary.regime}"]
    if (run := summary.run) is None:
        return found
    when = f"{run.began.replace('T', ' ').partition('+')[0]} UTC"
    processor = f"{run.machine.get('processor', 'unknown processor')}, {run.machine.get('cores', '?')} cores"
    effort = [] if run.effort == "whole" else ["a quick look, no evidence"]
    return [when, processor, *found, f"{run.wall_seconds / 60:.1f} minutes", *effort]


def _run_facts(summary: RunSummary) -> list[str]:
    """What else a reader needs to run it again."""
    found = [f"Seed {summary.seed}"]
    if (run := summary.run) is not None:
        versions = [f"{name} {value}" for name, value in run.machine.items() if name not in {"processor", "cores"}]
        found = [f"Command: {run.command}", *found, ", ".join(versions), *([f"commit {run.commit}"] if run.commit else [])]
    return [*found, *([f"memory of all processes at most {summary.memory}"] if summary.memory else [])]


def _goodput_cells(row: PhaseSummary) -> tuple[str, ...]:
    goodput = row.goodput
    if goodput is None:
        return ()
    return (cell(goodput.share, ".1%"), f"{goodput.tokens_per_s:.1f}")


def _speeds(summary: RunSummary) -> str:
    """The first figure: what every mode gave beside the first one, phase by phase; empty where there is no other."""
    if len(summary.modes) < 2:
        return ""
    first, *others = summary.modes
    by_key = {(row.mode, row.phase): row for row in summary.phases}
    groups = []
    for reference in arrivals(summary.phases, first):
        found = [row for mode in others if (row := by_key.get((mode, reference.phase))) is not None and row.speed is not None]
        costs = [f"{arm_name(row.mode)} {cell(row.engine_seconds_per_token, '.0f', 1e3)}" for row in (reference, *found)]
        groups.append((f"{reference.phase}, engine ms per token: {', '.join(costs)}", [_estimate(row) for row in found]))
    return forest(groups, first, f"Tokens per second of engine time over those of {first}")


def _estimate(row: PhaseSummary) -> Estimate:
    value = row.speed or 0.0
    interval = row.speed_interval
    low, high = (interval.low, interval.high) if interval else (value, value)
    words = f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if interval else "")
    style = {"above": "faster", "below": "slower"}.get(interval.side if interval else "holds", "equal")
    return Estimate(arm_name(row.mode), value, low, high, words, style)


def _times(times: Times, form: Callable[[float], str]) -> str:
    """Median and maximum."""
    return "-" if times.p50_s is None or times.max_s is None else f"{form(times.p50_s)} / {form(times.max_s)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"


def mode_run(mode: str, regime: Regime, rows: Sequence[RequestRow], samples: Sequence[StatusSample]) -> ModeRun | None:
    """A mode's part of a run; None where no request of it was recorded."""
    mine = [row for row in rows if row.mode == mode]
    start_s = regime_start_s(mine)
    if start_s is None:
        return None
    seen = [sample for sample in samples if sample.mode == mode]
    return ModeRun(mode, start_s, stretches(regime, mine), mine, seen, EngineHistory(seen))


def _drawn(panel: _Panel, runs: Sequence[ModeRun], killed_at_s: float | None) -> ChartRow:
    drawn = [(run, panel.draw(run)) for run in runs]
    values = [y for _, series in drawn for one in series for _, y in one.points if y is not None]
    scale = scale_for(max(run.duration_s for run in runs), values)
    charts = []
    for run, series in drawn:
        bands = [
            Band(stretch.phase, stretch.start_s - run.start_s, stretch.end_s - run.start_s, shaded=number % 2 == 1)
            for number, stretch in enumerate(run.stretches)
        ]
        marker = None
        if killed_at_s is not None and 0 <= killed_at_s - run.start_s <= run.duration_s:
            marker = (killed_at_s - run.start_s, "the policy actor was killed here")
        charts.append((run.mode, chart(series, scale, bands, marker)))
    return ChartRow(panel.title, legend(drawn[0][1]), charts)


def _bins(run: ModeRun) -> Iterable[tuple[float, float, float]]:
    """Every bin: its middle, from the regime's start, and its two ends on the wall clock."""
    for number in range(int(run.duration_s // BIN_S) + 1):
        begin_s = number * BIN_S
        yield begin_s + BIN_S / 2, run.start_s + begin_s, run.start_s + begin_s + BIN_S


def _load(run: ModeRun) -> list[Series]:
    arrivals = [
        (middle_s - BIN_S / 2, sum(1.0 for row in run.rows if from_s <= row.start_s < to_s) / BIN_S)
        for middle_s, from_s, to_s in _bins(run)
    ]
    return [
        Series("arrivals per second", "bars", "soft", arrivals),
        Series(
            "running", "line", "main", _over_time(run, lambda status: sum(one.load.num_running_reqs for one in status.replicas))
        ),
        Series(
            "waiting", "line", "second", _over_time(run, lambda status: sum(one.load.num_waiting_reqs for one in status.replicas))
        ),
    ]


def _over_time(run: ModeRun, value: Callable[[FleetStatus], float]) -> list[tuple[float, float | None]]:
    """A value of every sample within the run; a gap where the policy did not answer or knew no replica yet."""
    return [
        (sample.time_s - run.start_s, value(sample.status) if sample.status and sample.status.replicas else None)
        for sample in run.samples
        if 0 <= sample.time_s - run.start_s <= run.duration_s
    ]


def k_over_time(run: ModeRun) -> list[tuple[float, float | None]]:
    """K over the steps of every BIN_S, by the middle of these seconds; None where no step ran."""
    return [(middle_s, mean_k(run.history.work(from_s, to_s))) for middle_s, from_s, to_s in _bins(run)]


def _k(run: ModeRun) -> list[Series]:
    now = [
        (Code.SEGMENT in step_codes(replica), (sample.time_s - run.start_s, float(replica.load.num_speculative_tokens)))
        for sample in run.samples
        if sample.status and 0 <= sample.time_s - run.start_s <= run.duration_s
        for replica in sample.status.replicas
        if replica.load.decode_batch_size
    ]
    return [
        Series("a replica, sampled", "dots", "soft", [point for measures, point in now if not measures]),
        Series("while it measured, to learn", "dots", "second", [point for measures, point in now if measures]),
        Series(f"mean over {BIN_S:g} s of steps", "line", "main", k_over_time(run)),
    ]


def _acceptance(run: ModeRun) -> list[Series]:
    rates = [(middle_s, acceptance_rate(run.history.work(from_s, to_s))) for middle_s, from_s, to_s in _bins(run)]
    return [Series("accepted of verified draft tokens", "line", "main", rates)]


def _throughput(run: ModeRun) -> list[Series]:
    rates = [(middle_s, all_work(run.history.work(from_s, to_s)).generated_tokens / BIN_S) for middle_s, from_s, to_s in _bins(run)]
    return [Series("generated tokens per second, all engines", "line", "main", rates)]


def _ttft(run: ModeRun) -> list[Series]:
    return [_request_times(run, "time to first token, by arrival", lambda row: row.ttft_s)]


def _tpot(run: ModeRun) -> list[Series]:
    return [_request_times(run, "time per token after the first, by arrival", lambda row: row.tpot_s)]


def _request_times(run: ModeRun, name: str, pick: Callable[[RequestRow], float | None]) -> Series:
    return Series(name, "dots", "main", sorted((row.start_s - run.start_s, pick(row)) for row in run.rows if pick(row) is not None))


_K: Final = _Panel("K of auto over time, speculative tokens per step", _k)
_PANELS: Final = (
    _Panel("Load", _load),
    _Panel("Acceptance", _acceptance),
    _Panel("Tokens per second", _throughput),
    _Panel("TTFT, seconds", _ttft),
    _Panel("TPOT, seconds", _tpot),
)
