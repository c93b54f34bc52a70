"""Goodput under a target beside the times: which requests were in time, so that "more tokens" and "in time" are both seen.

A place's target is a few times what off takes there for a request that has the engine to itself (bursts.py). Shares are of all
requests, means over seeds. The pairs are those that were best end to end and in time, on the seeds that pick.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import ByKind, Cells, Found, worst
from nightjar.loadtests.simulation.evidence.goodput_table import KEPT_SHARE
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, share
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE
from tests.benchmarks.latency.bars import E2E, LATENCY, LATENCY_PICK, PAIR, best_pairs


def most_in_time(rows: Iterable[RunRow], place: str) -> str:
    """The pair with most requests in time at a place, on the seeds that pick; empty where none ran yet."""
    picking = [row for row in rows if row.kind == LATENCY_PICK and row.place == place and not row.error]
    cells = Cells.of(picking, KEPT_SHARE)
    shares = {who: cells.mean(place, who) or 0.0 for who in cells.planners(place) if who.startswith(PAIR)}
    return max(sorted(shares), key=shares.__getitem__, default="")


def in_time_bars(rows: ByKind) -> list[Bar]:
    """Share of requests in time, the fleet's less the best pair's: stated, for a target is an operator's to set."""
    cells = Cells.of(rows.get(LATENCY, ()), KEPT_SHARE)
    found = []
    for place in cells.places():
        pair = most_in_time(rows.get(LATENCY_PICK, ()), place)
        seeds = cells.seeds(place, FLEET, pair) if pair else ()
        if seeds:
            mine, theirs = (sum(cells.values[place, who][seed] for seed in seeds) / len(seeds) for who in (FLEET, pair))
            found.append(Found(value=mine - theirs, at=f"{place}, {FLEET} less {pair}", seeds=len(seeds)))
    bar = Bar(
        name="in_time_less_static_min",
        meaning="bursts of long prompts: share of requests within a few times off's unloaded times, less the best static pair's, "
        "worst cell",
        direction="at least",
    )
    return [worst(bar, found).model_copy(update={"direction": "stated", "limit": 0.0})]


def in_time_grid(rows: Sequence[RunRow]) -> Grid:
    """By place, the share of requests in time: off's, the fleet's, the oracle's, and those of two static pairs."""
    warm = [row for row in rows if row.kind == LATENCY and not row.error]
    cells, lines = Cells.of(warm, KEPT_SHARE), []
    for place in cells.places():
        quickest, most = best_pairs(rows, place).get(E2E, ""), most_in_time(rows, place)
        shares = [share(cells.mean(place, who)) if who else DASH for who in (OFF, FLEET, ORACLE, quickest, most)]
        lines.append((place, *shares, most or DASH))
    return Grid(
        "Requests in time",
        ("place", "off", "fleet", "oracle", "pair best end to end", "pair with most in time", "which"),
        tuple(lines),
        "Share of all requests whose first token and later tokens came within a few times what off takes for a lone request.",
    )
