"""The bars of a cold start: the paper's 480 requests on its three pairs, over decoding without a drafter.

A cell here is a pair of models and a data set: the mean of its ratios at all rates, for an operator has one pair and one kind of
texts, and not the rate that suits them best. A pair without runs of both planners is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, ByKind, Cells, Found, mean_of, ratios, worst
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF

COLD: Final = "cold"
"""Kind of the runs."""


def cold_bars(rows: ByKind) -> list[Bar]:
    """The fleet over off in its first 480 requests: the worst pair and data set, and the mean over all."""
    found = over_off(rows.get(COLD, ()))
    meaning = "the first 480 requests of the paper's pairs, over off, mean over rates"
    return [
        worst(
            Bar(name="cold_over_off_min", meaning=f"{meaning}: worst pair and data set", direction="at least", limit=0.985), found
        ),
        mean_of(Bar(name="cold_over_off_mean", meaning=f"{meaning}: mean", direction="at least", limit=1.0), found),
    ]


def over_off(rows: Iterable[RunRow]) -> list[Found]:
    """By pair and data set, the mean over rates. Loads are named `data set rate/s`."""
    by_texts: dict[tuple[str, str], list[RunRow]] = {}
    for row in rows:
        by_texts.setdefault((row.profile, row.load.split()[0]), []).append(row)
    found = []
    for (profile, dataset), mine in by_texts.items():
        rates = ratios(Cells.of(mine, GOODPUT), FLEET, OFF)
        if rates:
            seeds = min(one.seeds for one in rates)
            found.append(Found(value=fmean(one.value for one in rates), at=f"{profile}, {dataset}", seeds=seeds))
    return found
