"""Whether the planner keeps a limit of a step, and what that costs: a limit that off just keeps under a profile's heaviest load.

The limit of a profile is off's 99th percentile of the time between tokens at the load where that is longest, over KEPT_BY_OFF; so
off keeps it at every load with a little to spare, and at lighter loads there is room for drafts. A load counts where off keeps
the limit so; a profile with fewer than LEAST_LOADS of them counts as one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, ByKind, Cells, Found, worst
from nightjar.loadtests.simulation.evidence.grid import Grid, number, ratio
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF

LIMIT: Final = "limit"
"""Kind of the runs."""
WITHIN: Final = "max_step_ms"
"""Variant of the fleet's runs with the limit; those without have none."""
LIMITED: Final = f"{FLEET} ({WITHIN})"
ITL: Final = "itl_p99_s"
KEPT_BY_OFF: Final = 0.97
"""Share of the limit that off's 99th percentile takes at most where a load counts."""
LEAST_LOADS: Final = 3


def limits_s(rows: Iterable[RunRow]) -> dict[str, float]:
    """Seconds by profile, from off's runs; profiles without any are left out."""
    off = [row for row in rows if row.kind == LIMIT and row.planner == OFF and not row.error]
    profiles = {row.place: row.profile for row in off}
    cells, longest = Cells.of(off, ITL), dict[str, float]()
    for place in cells.places():
        profile = profiles[place]
        longest[profile] = max(longest.get(profile, 0.0), cells.mean(place, OFF) or 0.0)
    return {profile: seconds / KEPT_BY_OFF for profile, seconds in longest.items()}


def limit_bars(rows: ByKind) -> list[Bar]:
    """The share of loads at which the limit is kept; goodput under the limit over goodput without one and over off is stated."""
    mine = rows.get(LIMIT, ())
    kept = Bar(
        name="limit_kept",
        meaning="of loads at which off keeps a limit of a step by 3 %, those at which the planner's p99 time between tokens does",
        direction="at least",
        limit=1.0,
    )
    over = _over_limit(mine)
    if over:
        first = max((one for found in over.values() for one in found), key=lambda one: one.value)
        counted = [one.value <= 1.0 and len(found) >= LEAST_LOADS for found in over.values() for one in found]
        counted += [False for found in over.values() if not found]
        kept = kept.model_copy(
            update={
                "value": fmean(map(float, counted)),
                "at": f"{first.at}: {first.value:.3f} of the limit",
                "cells": len(counted),
                "seeds": min(one.seeds for found in over.values() for one in found),
            }
        )
    cells = Cells.of(mine, GOODPUT)
    return [
        kept,
        _least(
            Bar(name="limit_cost_min", meaning="there: goodput with the limit over goodput without", direction="stated"),
            cells,
            FLEET,
        ),
        _least(Bar(name="limit_over_off_min", meaning="there: goodput with the limit over off's", direction="stated"), cells, OFF),
    ]


def limit_grid(rows: Iterable[RunRow]) -> Grid:
    """By load: the limit, who keeps it, and goodput with the limit over goodput without one and over off."""
    mine = [row for row in rows if row.kind == LIMIT and not row.error]
    limits, profiles = limits_s(mine), {row.place: row.profile for row in mine}
    itl, goodput, mean_k = (Cells.of(mine, name) for name in (ITL, GOODPUT, "mean_k"))

    def ms(place: str, who: str) -> str:
        seconds = itl.mean(place, who)
        return number(None if seconds is None else seconds * 1e3)

    return Grid(
        "A limit of a step: p99 time between tokens, ms",
        (
            "place",
            "limit",
            OFF,
            "without limit",
            "with it",
            "of the limit",
            "K without",
            "K with",
            "goodput over no limit",
            "over off",
        ),
        tuple(
            (
                place,
                number(limits[profiles[place]] * 1e3 if profiles[place] in limits else None),
                ms(place, OFF),
                ms(place, FLEET),
                ms(place, LIMITED),
                ratio(_of_limit(itl, limits, profiles, place)),
                number(mean_k.mean(place, FLEET)),
                number(mean_k.mean(place, LIMITED)),
                ratio(goodput.ratio(place, LIMITED, FLEET)),
                ratio(goodput.ratio(place, LIMITED, OFF)),
            )
            for place in itl.places()
        ),
        f"A profile's limit is off's at its heaviest load over {KEPT_BY_OFF}. Goodput: tokens per busy engine-second.",
    )


def _over_limit(rows: Iterable[RunRow]) -> dict[str, list[Found]]:
    """By profile, the planner's 99th percentile over the limit at every load that counts."""
    mine = list(rows)
    limits, profiles = limits_s(mine), {row.place: row.profile for row in mine}
    cells = Cells.of(mine, ITL)
    over: dict[str, list[Found]] = {profile: [] for profile in limits}
    for place in cells.places():
        value = _of_limit(cells, limits, profiles, place)
        limit_s, off_s = limits.get(profiles[place], math.nan), cells.mean(place, OFF)
        if value is not None and off_s is not None and off_s <= KEPT_BY_OFF * limit_s * (1.0 + 1e-9):
            over[profiles[place]].append(Found(value=value, at=place, seeds=len(cells.seeds(place, LIMITED, OFF))))
    return over if any(over.values()) else {}


def _of_limit(cells: Cells, limits: Mapping[str, float], profiles: Mapping[str, str], place: str) -> float | None:
    seconds, limit_s = cells.mean(place, LIMITED), limits.get(profiles[place])
    return seconds / limit_s if seconds is not None and limit_s else None


def _least(bar: Bar, cells: Cells, other: str) -> Bar:
    """The bar with the worst place of the limited planner's goodput over another's."""
    found = [
        Found(value=value, at=place, seeds=len(cells.seeds(place, LIMITED, other)))
        for place in cells.places()
        if (value := cells.ratio(place, LIMITED, other)) is not None
    ]
    return worst(bar.model_copy(update={"direction": "at least"}), found).model_copy(update={"direction": bar.direction})
