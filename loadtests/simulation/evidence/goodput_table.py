"""Goodput under a target over rising load: how many requests a second a planner serves while 95 % of them keep it.

From rows alone. A load counts as kept only where every lower one that ran was kept, too: above the first that was not, chance may
keep another. Between two loads that ran nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Final, NamedTuple

from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, number, share
from nightjar.loadtests.simulation.evidence.rows import RunRow

KIND: Final = "goodput"
KEPT_SHARE: Final = "within_target_share"
KEPT_TOKENS: Final = "within_target_tokens_per_s"
OFFERED: Final = "offered_requests_per_s"
WANTED_SHARE: Final = 0.95


class LoadPoint(NamedTuple):
    """Means over the seeds of one planner at one load."""

    offered_per_s: float
    load: str
    kept_share: float
    kept_tokens_per_s: float

    @property
    def is_kept(self) -> bool:
        """Whether enough requests kept the target."""
        return self.kept_share >= WANTED_SHARE


def points(rows: Iterable[RunRow], profile: str, planner: str) -> list[LoadPoint]:
    """What a planner gave on a profile, from the lowest load to the highest."""
    by_load: dict[str, list[RunRow]] = {}
    for row in rows:
        if (row.kind, row.profile, row.planner) == (KIND, profile, planner) and KEPT_SHARE in row.measures:
            by_load.setdefault(row.load, []).append(row)
    found = (
        LoadPoint(
            same[0].measures[OFFERED],
            load,
            fmean(row.measures[KEPT_SHARE] for row in same),
            fmean(row.measures[KEPT_TOKENS] for row in same),
        )
        for load, same in by_load.items()
    )
    return sorted(found)


def highest_kept(rising: Sequence[LoadPoint]) -> LoadPoint | None:
    """The last load up to which all were kept; None where the lowest was not."""
    kept = list(takewhile(lambda point: point.is_kept, rising))
    return kept[-1] if kept else None


def goodput_grid(rows: Sequence[RunRow]) -> Grid:
    """For every profile and planner the highest load that keeps the target, and the next one that ran."""
    mine = [row for row in rows if row.kind == KIND and not row.error]
    lines = []
    for profile, planner in dict.fromkeys((row.profile, row.planner) for row in mine):
        rising = points(mine, profile, planner)
        best = highest_kept(rising)
        above = next((point for point in rising if best is None or point.offered_per_s > best.offered_per_s), None)
        lines.append((profile, planner, *_cells(best), *(_cells(above)[1:3])))
    target = next((row.variant for row in mine), "")
    return Grid(
        f"Highest load at which {WANTED_SHARE:.0%} of requests are within {target}",
        ("profile", "planner", "load", "requests/s", "within", "their tokens/s", "next requests/s", "within there"),
        tuple(lines),
        "Load: share of the requests that one full engine answers at its best K. A dash: not even the lowest, or none above ran.",
    )


def _cells(point: LoadPoint | None) -> tuple[str, ...]:
    if point is None:
        return (DASH,) * 4
    return (point.load, number(point.offered_per_s), share(point.kept_share), number(point.kept_tokens_per_s))
