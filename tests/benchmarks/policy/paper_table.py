"""The paper's comparison beside ours: ratios to decoding without a drafter, a fixed chain of three, TETRIS, DSD and
BanditSpec.

The paper's figures are from arXiv 2512.22420, each from the version named beside it: versions disagree about what a figure is
compared with. Ours are means over the same kind of cells; what differs, and why, is in docs/results/paper.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from nightjar.loadtests.simulation.evidence.bar_list import THROUGHPUT, WARM
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, Cells, Found, ratios
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, ratio, share
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF, ORACLE, TETRIS

FIXED: Final = "fixed-3 as published"
TETRIS_AS_PUBLISHED: Final = f"{TETRIS} as published"
DSD: Final = "turbospec as published"
BANDIT: Final = "banditspec as published"

AVERAGES: Final = (
    (OFF, "AR", 1.2729),
    (FIXED, "SD, fixed 3", 1.0832),
    (TETRIS_AS_PUBLISHED, "TETRIS", 1.0739),
    (DSD, "DSD (TurboSpec)", 1.2289),
    (BANDIT, "BanditSpec", 1.1976),
)
"""Our planner, the paper's name, and the paper's average throughput ratio of Nightjar over it (v3)."""

_WARM: Final = f" ({WARM})"
COLUMNS: Final = (
    ((NIGHTJAR, ""), "our nightjar"),
    ((NIGHTJAR, _WARM), "our nightjar, warm"),
    ((FLEET, ""), "our fleet"),
    ((FLEET, _WARM), "our fleet, warm"),
    ((ORACLE, ""), "oracle"),
)
"""Planner and whether it had a first pass, and the head of its column."""
LATENCIES: Final = (("e2e_mean_s", "end to end"), ("ttft_mean_s", "to the first token"), ("tpot_mean_s", "per token after it"))
WHO: Final = (
    *((who, name) for who, name, _ in AVERAGES if who != OFF),
    *((planner, name) for (planner, warm), name in COLUMNS if not warm),
)
"""Who is compared with AR, as rows and tables name them."""
TRACE: Final = "paper_trace"
OFFLOAD: Final = "paper_offload"
OFFLOAD_NEVER: Final = "never"
"""The variant in which no weights move."""
ASSUMPTIONS: Final = "paper_assumptions"
"""The kind of rows that hold other engines than the profiles'."""
PAPER_KINDS: Final = ("paper", TRACE, OFFLOAD, ASSUMPTIONS)
SHOWN_MEASURES: Final = (THROUGHPUT, GOODPUT, "share_off", *(measure for measure, _ in LATENCIES))
"""What the tables here are made of."""


def paper_grids(rows: Sequence[RunRow]) -> list[Grid]:
    """The paper's averages and its single figures, beside ours; ours by pair and data set; and what other engines would change."""
    kept = [row for row in rows if row.kind == "paper" and not row.error]
    others = [row for row in rows if row.kind == ASSUMPTIONS and not row.error]
    drawn = (_averages, _averages_per_busy_s, _latency, _by_pair, _by_rate, _single_figures, _by_profile)
    grids = [grid(kept) for grid in drawn] if kept else []
    for kind, grid in ((TRACE, _by_trace), (OFFLOAD, _by_offload)):
        mine = [row for row in rows if row.kind == kind and not row.error]
        grids += [grid(mine)] if mine else []
    return [*grids, *([_by_assumption(others)] if others else [])]


def _averages(rows: Sequence[RunRow]) -> Grid:
    return Grid(
        "The paper's comparison: tokens per second until the last answer, over each",
        ("over", "paper, Nightjar", *(name for _, name in COLUMNS)),
        tuple((name, f"{paper:.3f} (v3)", *_cells(rows, THROUGHPUT, over)) for over, name, paper in AVERAGES),
        "The paper's metric: 480 requests, all their tokens over the time until the last is answered. Means over three pairs of "
        "models, three data sets and rates from 1 to 35 requests a second; in brackets the means of single seeds, least to most. "
        "Warm: after a first pass of as many requests that is not counted. The oracle knows the truth; no planner is far above it.",
    )


def _averages_per_busy_s(rows: Sequence[RunRow]) -> Grid:
    return Grid(
        "The same, tokens per busy engine-second",
        ("over", *(name for _, name in COLUMNS)),
        tuple((name, *_cells(rows, GOODPUT, over)) for over, name, _ in AVERAGES),
        "Our metric: time in which an engine has nothing to do does not count.",
    )


def _latency(rows: Sequence[RunRow]) -> Grid:
    return Grid(
        "Latency beside throughput, over AR",
        ("planner", "tokens per second", *(f"mean time {name}" for _, name in LATENCIES)),
        tuple((name, *_over_off(rows, who)) for who, name in WHO),
        "Means over pairs, data sets and rates, from a cold start. A time below 1 is shorter than AR's.",
    )


def _by_trace(rows: Sequence[RunRow]) -> Grid:
    lines = []
    for profile, load in dict.fromkeys((row.profile, row.load) for row in rows):
        mine = [row for row in rows if (row.profile, row.load) == (profile, load)]
        lines += [(profile, load.removeprefix("trace "), name, *_over_off(mine, who)) for who, name in WHO]
    return Grid(
        "A recorded load, over AR",
        ("pair", "speed", "planner", "tokens per second", *(f"mean time {name}" for _, name in LATENCIES)),
        tuple(lines),
        "The trace's first 480 requests, as recorded and three times as fast.",
    )


def _over_off(rows: Sequence[RunRow], who: str) -> list[str]:
    measures = (THROUGHPUT, *(measure for measure, _ in LATENCIES))
    return [ratio(_mean(ratios(Cells.of(rows, measure), who, OFF))) for measure in measures]


def _by_offload(rows: Sequence[RunRow]) -> Grid:
    loads = list(dict.fromkeys(row.load for row in rows))
    places = [(planner, load) for planner in (NIGHTJAR, FLEET) for load in loads]
    cells = {place: Cells.of([row for row in rows if (row.planner, row.load) == place], THROUGHPUT) for place in places}
    lines = []
    for variant in dict.fromkeys(row.variant for row in rows):
        told = (ratios(cells[place], f"{place[0]} ({variant})", f"{place[0]} ({OFFLOAD_NEVER})") for place in places)
        lines.append((variant, *(ratio(_mean(found)) for found in told)))
    return Grid(
        "The draft leaves the GPU, by the share of free KV blocks below which memory is short: tokens per second over never",
        ("short below", *(f"our {planner}, {load.split()[1]}" for planner, load in places)),
        tuple(lines),
        "The 7B pair on ShareGPT. The paper has 1.056 at 35 requests a second, and a plateau at about 10 %.",
    )


def _by_pair(rows: Sequence[RunRow]) -> Grid:
    lines = []
    for profile in dict.fromkeys(row.profile for row in rows):
        mine = [row for row in rows if row.profile == profile]
        lines += [(profile, name, *_cells(mine, THROUGHPUT, over)) for over, name, _ in AVERAGES]
    heads = ("pair", "over", *(name for _, name in COLUMNS))
    return Grid("The same by pair: tokens per second until the last answer", heads, tuple(lines))


def _by_rate(rows: Sequence[RunRow]) -> Grid:
    """Loads are named `data set rate/s`."""
    cells, off = Cells.of(rows, THROUGHPUT), Cells.of(rows, "share_off")
    rates = sorted({row.load.split()[1] for row in rows}, key=lambda rate: float(rate.partition("/")[0]))
    lines = []
    for profile in dict.fromkeys(row.profile for row in rows):
        for dataset in dict.fromkeys(row.load.split()[0] for row in rows):
            places = [f"{profile}/{dataset} {rate}" for rate in rates]
            told = (f"{ratio(cells.ratio(place, ORACLE, OFF))}, {share(off.mean(place, ORACLE))}" for place in places)
            lines.append((profile, dataset, *told))
    return Grid(
        "The oracle over AR by rate: tokens per second until the last answer, and its share of steps at K = 0",
        ("pair", "data set", *rates),
        tuple(lines),
    )


def _by_assumption(rows: Sequence[RunRow]) -> Grid:
    """Rows' places begin with the assumption's name."""
    names = dict.fromkeys(row.place.partition(": ")[0] for row in rows)
    profiles = dict.fromkeys(row.profile for row in rows)
    lines = []
    for name in names:
        mine = [row for row in rows if row.place.startswith(f"{name}: ")]
        plain = next((row.who for row in mine if row.planner == OFF), OFF)
        means = [_mean(ratios(Cells.of(mine, THROUGHPUT), who, plain)) for who in (ORACLE, NIGHTJAR, FIXED)]
        pairs = (Cells.of([row for row in mine if row.profile == profile], THROUGHPUT) for profile in profiles)
        lines.append((name, *map(ratio, means), *(ratio(_mean(ratios(pair, ORACLE, plain))) for pair in pairs)))
    return Grid(
        "Other engines: tokens per second until the last answer, over AR",
        ("assumption", "oracle", "nightjar", "SD, fixed 3", *(f"oracle, {profile}" for profile in profiles)),
        tuple(lines),
        "Means over data sets and rates. The paper has 1.273 for Nightjar over AR; its 1.083 over SD puts SD at 1.175 of AR.",
    )


def _cells(rows: Sequence[RunRow], measure: str, over: str) -> list[str]:
    return [_with_range(rows, measure, f"{planner}{warm}", f"{over}{warm}") for (planner, warm), _ in COLUMNS]


def _with_range(rows: Sequence[RunRow], measure: str, who: str, over: str) -> str:
    """The mean of the cells' ratios, and the least and the highest of the single seeds' means."""
    mean = _mean(ratios(Cells.of(rows, measure), who, over))
    seeds = dict.fromkeys(row.seed for row in rows)
    by_seed = [_mean(ratios(Cells.of([row for row in rows if row.seed == seed], measure), who, over)) for seed in seeds]
    known = [value for value in by_seed if value is not None]
    return f"{ratio(mean)} ({ratio(min(known))} to {ratio(max(known))})" if len(known) > 1 else ratio(mean)


def _single_figures(rows: Sequence[RunRow]) -> Grid:
    goodput, latency = Cells.of(rows, GOODPUT), Cells.of(rows, "e2e_mean_s")
    thirteen = [row for row in rows if row.profile.startswith("vicuna-13b") and row.load.startswith("alpaca")]
    best_throughput = _highest(ratios(Cells.of(thirteen, THROUGHPUT), NIGHTJAR, FIXED))
    fleet_throughput = _highest(ratios(Cells.of(thirteen, THROUGHPUT), FLEET, FIXED))
    best_latency = _lowest(ratios(Cells.of(thirteen, "e2e_mean_s"), NIGHTJAR, FIXED))
    fleet_latency = _lowest(ratios(Cells.of(thirteen, "e2e_mean_s"), FLEET, FIXED))
    at_15 = [one for one in ratios(latency, OFF, FIXED) if " 15/s" in one.at]
    at_high = [one for one in ratios(goodput, FIXED, OFF) if any(f" {rate}/s" in one.at for rate in (25, 30, 35))]
    return Grid(
        "The paper's single figures",
        ("figure", "paper", "our nightjar", "our fleet"),
        (
            ("13B on Alpaca: throughput over SD, best rate", "1.148 (v5)", ratio(best_throughput), ratio(fleet_throughput)),
            ("13B on Alpaca: latency over SD's, best rate", "0.798 (v4, v5)", ratio(best_latency), ratio(fleet_latency)),
            ("SD over AR at 15 requests/s, all pairs and data sets: least to most", "1.155 (v5)", _span(at_15), DASH),
            ("SD over AR at high load: least to most", "0.698 at worst (v1, v5)", _span(at_high), DASH),
        ),
        "SD over AR at 15 requests/s compares speed (AR's mean end-to-end time over SD's), at 25 to 35 requests/s tokens per busy "
        "second; neither has one of our planners in it.",
    )


def _by_profile(rows: Sequence[RunRow]) -> Grid:
    lines = []
    for profile in dict.fromkeys(row.profile for row in rows):
        for dataset in dict.fromkeys(row.load.split()[0] for row in rows):
            mine = [row for row in rows if row.profile == profile and row.load.startswith(dataset)]
            cells = Cells.of(mine, GOODPUT)
            values = [_mean(ratios(cells, ours, who)) for who, _, _ in AVERAGES for ours in (NIGHTJAR, FLEET)]
            lines.append((profile, dataset, *map(ratio, values)))
    heads = [f"{ours} over {name}" for _, name, _ in AVERAGES for ours in (NIGHTJAR, FLEET)]
    return Grid(
        "The same by pair and data set: tokens per busy engine-second, mean over rates",
        ("profile", "data set", *heads),
        tuple(lines),
    )


def _mean(found: Sequence[Found]) -> float | None:
    return fmean(one.value for one in found) if found else None


def _highest(found: Sequence[Found]) -> float | None:
    return max((one.value for one in found), default=None)


def _lowest(found: Sequence[Found]) -> float | None:
    return min((one.value for one in found), default=None)


def _span(found: Sequence[Found]) -> str:
    return f"{ratio(_lowest(found))} to {ratio(_highest(found))}" if found else DASH
