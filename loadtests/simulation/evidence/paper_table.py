"""The paper's comparison beside ours: ratios to decoding without a drafter, a fixed chain of three, DSD and BanditSpec.

The paper's figures are from arXiv 2512.22420, each from the version named beside it: versions disagree about what a figure is
compared with. Ours are means over the same kind of cells; what differs in the set-up is said in docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from nightjar.loadtests.simulation.evidence.bar_list import THROUGHPUT, WARM
from nightjar.loadtests.simulation.evidence.bars import GOODPUT, Cells, Found, ratios
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, ratio
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF

FIXED: Final = "fixed-3 as published"
DSD: Final = "turbospec as published"
BANDIT: Final = "banditspec as published"

AVERAGES: Final = (
    (OFF, "AR", 1.2729),
    (FIXED, "SD, fixed 3", 1.0832),
    (DSD, "DSD (TurboSpec)", 1.2289),
    (BANDIT, "BanditSpec", 1.1976),
)
"""Our planner, the paper's name, and the paper's average throughput ratio of Nightjar over it (v3)."""


def paper_grids(rows: Sequence[RunRow]) -> list[Grid]:
    """The paper's averages and its single figures, beside ours; and ours by profile."""
    kept = [row for row in rows if row.kind == "paper" and not row.error]
    if not kept:
        return []
    return [_averages(kept), _single_figures(kept), _by_profile(kept)]


def _averages(rows: Sequence[RunRow]) -> Grid:
    throughput, goodput = Cells.of(rows, THROUGHPUT), Cells.of(rows, GOODPUT)
    lines = []
    for who, name, paper in AVERAGES:
        columns = [
            _mean(ratios(cells, f"{ours}{warm}", f"{who}{warm}"))
            for ours in (NIGHTJAR, FLEET)
            for warm in ("", f" ({WARM})")
            for cells in (throughput, goodput)
        ]
        lines.append((name, f"{paper:.3f} (v3)", *map(ratio, columns)))
    return Grid(
        "The paper's comparison: average throughput over each",
        (
            "over", "paper, Nightjar",
            "nightjar tokens/s", "per busy s", "nightjar warm tokens/s", "per busy s",
            "fleet tokens/s", "per busy s", "fleet warm tokens/s", "per busy s",
        ),
        tuple(lines),
        "Means over three pairs of models, three data sets and rates from 1 to 35 requests a second. Below capacity every "
        "planner answers what arrives and tokens/s is 1; tokens per busy engine-second is what is left to win there. Warm: all of "
        "them after a first pass of as many requests that is not counted.",
    )  # fmt: skip


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
