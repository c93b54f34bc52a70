"""Tables of a simulated run as plain text cells, from its raw rows; the terminal and the HTML page draw the same ones.

Pure functions. A cell that was not run shows a dash; nothing is left out because it looks bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.simulation.evidence.bar_list import (
    ALL_PARTS,
    THROUGHPUT,
    best_static,
    losses,
)
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, Cells, Found, ratios
from nightjar.loadtests.simulation.evidence.goodput_table import goodput_grid
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, number, ratio, share
from nightjar.loadtests.simulation.evidence.limit_bars import limit_grid
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, ORACLE


def bar_grid(bars: Sequence[Bar]) -> Grid:
    """Every bar with what is wanted and what came."""
    return Grid(
        "Bars",
        ("bar", "wanted", "value", "verdict", "cells", "seeds", "decided by", "meaning"),
        tuple(
            (
                bar.name,
                bar.want,
                DASH if bar.value is None else f"{bar.value:.4g}",
                bar.verdict,
                str(bar.cells or DASH),
                str(bar.seeds or DASH),
                bar.at or DASH,
                bar.meaning,
            )
            for bar in bars
        ),
    )


def loss_grid(rows: Sequence[RunRow]) -> Grid:
    """Every open-loop cell in which another planner on equal mechanics made more per busy second than the fleet."""
    found = losses(rows)
    return Grid(
        "Where we lose",
        ("fleet over it", "cell", "seeds"),
        tuple((f"{one.value:.4f}", one.at, str(one.seeds)) for one in found),
        f"{len(found)} open-loop cells in which another planner on equal mechanics made more tokens per busy engine-second than "
        "the fleet did. The oracle, which knows the truth, is left out here.",
    )


def steady_grid(rows: Sequence[RunRow]) -> Grid:
    """Closed-loop steady cells: tokens per second of every planner, and the fleet over each."""
    kept = [row for row in rows if row.kind == "steady" and not row.error]
    cells = Cells.of(kept, THROUGHPUT)
    mean_k, off = Cells.of(kept, "mean_k"), Cells.of(kept, "share_off")
    return Grid(
        "Closed loop, once converged",
        ("place", "fleet tokens/s", "over oracle", "over off", "mean K", "oracle's", "steps off"),
        tuple(
            (
                place,
                number(cells.mean(place, FLEET)),
                ratio(cells.ratio(place, FLEET, ORACLE)),
                ratio(cells.ratio(place, FLEET, "off")),
                number(mean_k.mean(place, FLEET)),
                number(mean_k.mean(place, ORACLE)),
                share(off.mean(place, FLEET)),
            )
            for place in cells.places()
        ),
    )


def open_loop_grid(rows: Sequence[RunRow]) -> Grid:
    """Open-loop places: the fleet against the oracle, the best static planner and every rival on equal mechanics."""
    cells = Cells.of([row for row in rows if row.kind == "open_loop" and not row.error and not row.as_published], GOODPUT)
    statics = best_static(rows)
    named = dict.fromkeys(who for place in cells.places() for who in cells.planners(place))
    rivals = [who for who in named if who not in {FLEET, ORACLE} and not _is_static(who)]
    lines = []
    for place in cells.places():
        static = statics.get(place, "")
        lines.append(
            (
                place,
                number(cells.mean(place, FLEET)),
                ratio(cells.ratio(place, FLEET, ORACLE)),
                static or DASH,
                ratio(cells.ratio(place, FLEET, static)) if static else DASH,
                *(ratio(cells.ratio(place, FLEET, rival)) for rival in rivals),
            )
        )
    return Grid(
        "Open loop: tokens per busy engine-second",
        ("place", "fleet", "over oracle", "best static", "over it", *(f"over {rival}" for rival in rivals)),
        tuple(lines),
        "Equal mechanics: rivals run with our dormancy and catch-up.",
    )


def rival_grid(rows: Sequence[RunRow]) -> Grid:
    """Per rival: the fleet over it, on equal mechanics and as published."""
    kept = [row for row in rows if row.kind == "open_loop" and not row.error]
    cells = Cells.of(kept, GOODPUT)
    named = dict.fromkeys(who for place in cells.places() for who in cells.planners(place))
    lines = []
    for who in named:
        found = ratios(cells, FLEET, who)
        if who in {FLEET, ORACLE} or not found:
            continue
        low, high = min(found, key=_value), max(found, key=_value)
        mean = geometric_mean([one.value for one in found])
        lines.append((who, str(len(found)), ratio(mean), ratio(low.value), low.at.split(",")[0], ratio(high.value)))
    return Grid("The fleet over each rival, open loop", ("rival", "cells", "geometric mean", "worst", "at", "best"), tuple(lines))


def variant_grid(rows: Sequence[RunRow], kind: str, title: str, measures: Sequence[str], note: str = "") -> Grid:
    """Rows of one kind by place and variant: the cell means of some measures."""
    kept = [row for row in rows if row.kind == kind and not row.error]
    columns = [Cells.of(kept, measure) for measure in measures]
    keys = dict.fromkeys((row.place, row.who) for row in kept)
    return Grid(
        title,
        ("place", "who", *(measure.replace("_", " ") for measure in measures)),
        tuple((place, who, *(number(cells.mean(place, who)) for cells in columns)) for place, who in keys),
        note,
    )


def ablation_grid(rows: Sequence[RunRow]) -> Grid:
    """What each part of the planner is worth: goodput without it over goodput with all of them."""
    cells = Cells.of([row for row in rows if row.kind == "ablation" and not row.error], GOODPUT)
    full = f"{FLEET} ({ALL_PARTS})"
    parts = [who for who in dict.fromkeys(who for place in cells.places() for who in cells.planners(place)) if who != full]
    lines = []
    for part in parts:
        found = ratios(cells, part, full)
        if found:
            mean = geometric_mean([one.value for one in found])
            name = part.removeprefix("fleet (").removesuffix(")")
            lines.append((name, str(len(found)), ratio(mean), *(ratio(cells.ratio(place, part, full)) for place in cells.places())))
    note = "Tokens per busy engine-second without the part, over the whole planner's. Below 1: the part earns its place there."
    return Grid("Ablation", ("without", "cells", "geometric mean", *cells.places()), tuple(lines), note)


def failure_grid(rows: Iterable[RunRow]) -> Grid:
    """Runs that broke off, with what it takes to run them again."""
    return Grid(
        "Runs that failed",
        ("kind", "place", "who", "seed", "error"),
        tuple((row.kind, row.place, row.who, str(row.seed), row.error) for row in rows if row.error),
    )


def all_grids(rows: Sequence[RunRow]) -> list[Grid]:
    """Every table but the bars' and the failures', in the order of the report; those of experiments that were not run are empty."""
    return [
        loss_grid(rows),
        rival_grid(rows),
        open_loop_grid(rows),
        steady_grid(rows),
        limit_grid(rows),
        goodput_grid(rows),
        variant_grid(
            rows, "pooling", "Learning by fleet size", ("lost_tokens_per_replica", "done_s", "lost_tokens_per_replica_in_all")
        ),
        variant_grid(rows, "newcomer", "A newcomer in a warm group", ("lost_share", "mean_k")),
        ablation_grid(rows),
    ]


def _is_static(who: str) -> bool:
    return who in {"off", "table", "never-off"} or who.startswith("fixed-")


_value: Callable[[Found], float] = lambda one: one.value  # noqa: E731
