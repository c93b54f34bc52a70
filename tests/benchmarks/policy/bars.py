"""The bars of storms, faults and vLLM's adaptive verification, each computed from the raw rows of a run and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import (
    GOODPUT,
    ByKind,
    Cells,
    Found,
    by_second,
    cell_means,
    mean_of,
    ratio_at,
    ratios,
    worst,
)
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET

LOSSLESS: Final = "lossless"
HONEST: Final = "none"
"""Name of the run in which no replica is faulty."""
SLY_LIE: Final = "a tenth"
"""The lie that passes for the truth longest. The others are wild: times ten, no numbers, always the same."""
STORM_KINDS: Final = ("one-shot", "chunked", "reload")
TRANSITION: Final = "transition"
ADAPTIVE: Final = "adaptive verification"
BESIDE: Final = "over adaptive verification"
"""Variants of the experiment adaptive."""
CONTEXT: Final = "context"
NEVER_RESTARTING: Final = "off"
NEVER_OFF: Final = "never-off"


def storm_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment storm."""
    floors, totals = [], []
    cells = series_of(rows.get("storm", ()), "tokens")
    for place in dict.fromkeys(place for place, _ in cells):
        never, always = cells.get((place, NEVER_RESTARTING), {}), cells.get((place, NEVER_OFF), {})
        for kind in STORM_KINDS:
            ours = cells.get((place, f"fleet ({kind}, coordinated)"), {})
            theirs = cells.get((place, f"fleet ({kind}, uncoordinated)"), {})
            at = f"{place}, {kind}"
            seeds = sorted(ours.keys() & never.keys())
            if seeds:
                floor = lowest_ratio(*(by_second([runs[seed] for seed in seeds]) for runs in (ours, never)))
                floors.append(Found(value=floor, at=at, seeds=len(seeds)))
            seeds = sorted(ours.keys() & theirs.keys() & always.keys())
            if seeds:
                mine, uncoordinated, never_off = (
                    math.fsum(math.fsum(run[seed]) for seed in seeds) for run in (ours, theirs, always)
                )
                totals.append(Found(value=mine / max(uncoordinated, never_off), at=at, seeds=len(seeds)))
    return [
        worst(
            Bar(
                name="storm_floor",
                meaning="64 replicas, load falls at once: lowest second (mean over seeds) over a never-restarting fleet's",
                direction="at least",
                limit=0.95,
            ),
            floors,
        ),
        worst(
            Bar(name="storm_total", meaning="the same: total tokens over the best of uncoordinated and never off",
                direction="at least", limit=0.98),
            totals,
        ),
    ]  # fmt: skip


def adaptive_arms(whos: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of those that ran at a place: confidence, adaptive verification alone, and the fleet over it; by confidence.

    >>> adaptive_arms(["fleet", "fixed-5 as published (adaptive verification, 0.6)", "fleet (over adaptive verification, 0.6)"])
    [('0.6', 'fixed-5 as published (adaptive verification, 0.6)', 'fleet (over adaptive verification, 0.6)')]
    """
    alone, both = ({who.rpartition(" ")[2][:-1]: who for who in whos if f"({variant}," in who} for variant in (ADAPTIVE, BESIDE))
    return [(confidence, alone[confidence], both[confidence]) for confidence in alone if confidence in both]


def adaptive_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment adaptive."""
    cells, found = Cells.of(rows.get("adaptive", ()), GOODPUT), []
    for place in cells.places():
        for _, alone, both in adaptive_arms(cells.planners(place)):
            found += ratio_at(cells, place, both, max((FLEET, alone), key=lambda who: cells.mean(place, who) or 0.0))
    meaning = "the fleet over vLLM's adaptive verification, over the better of the two alone, tokens per busy second"
    return [
        worst(Bar(name="over_adaptive_min", meaning=f"{meaning}: worst cell", direction="at least", limit=0.98), found),
        mean_of(Bar(name="over_adaptive_mean", meaning=f"{meaning}: mean", direction="at least", limit=0.995), found),
    ]


def drift_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment drift."""
    recovery = Bar(
        name="drift_recovery_s",
        meaning="acceptance halves in mid-run: virtual seconds until back to 0.95 of the oracle, slowest cell",
        direction="stated",
    )
    return [worst(recovery, cell_means([row for row in rows.get("drift", ()) if row.planner == FLEET], "recovery_s"))]


def liar_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment liar."""
    mine = rows.get("liar", ())
    meaning = "batch sizes whose K differs from what the policy decides without its word (INV-10)"
    wild = Bar(name="liar_changed", meaning=f"1 of 16 replicas lies wildly: {meaning}", direction="at most")
    sly = Bar(
        name="sly_liar_changed",
        meaning="the same where its steps with drafts take a tenth of their time and all is accepted, and the rest is the truth",
        direction="at most",
    )
    return [
        worst(wild, _changed_plans([row for row in mine if row.variant != SLY_LIE])),
        worst(sly, _changed_plans([row for row in mine if row.variant == SLY_LIE])),
    ]


def faulty_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment faulty."""
    meaning = "1 of 4 replicas is faulty from the start: expected goodput of the other three over theirs without it"
    return [
        worst(
            Bar(name="faulty_goodput_ratio", meaning=f"{meaning}, first two minutes (INV-10)", direction="at least", limit=0.99),
            _over_honest(rows.get("faulty", ())),
        ),
        worst(
            Bar(name="faulty_late_ratio", meaning=f"{meaning}, the second minute", direction="at least", limit=0.99),
            _over_honest(rows.get("faulty-late", ())),
        ),
    ]


def lossy_bars(rows: ByKind) -> list[Bar]:
    """Of the experiment lossy."""
    cells = Cells.of(rows.get("lossy", ()), GOODPUT)
    variants = dict.fromkeys(who for place in cells.places() for who in cells.planners(place))
    lossless = f"fleet ({LOSSLESS})"
    found = [one for who in variants if who != lossless for one in ratios(cells, who, lossless)]
    goodput = Bar(
        name="lossy_goodput_ratio",
        meaning="the control plane loses, delays, reorders, its actor dies: goodput over a lossless one's (INV-4)",
        direction="at least",
        limit=0.99,
    )
    return [worst(goodput, found)]


def lowest_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """The least of `values` over `reference` in the same second, over the seconds in which the reference made anything.

    >>> lowest_ratio((9.0, 5.0, 1.0), (10.0, 10.0, 0.0))
    0.5
    """
    return min((value / other for value, other in zip(values, reference, strict=False) if other > 0), default=1.0)


def _over_honest(rows: Sequence[RunRow]) -> list[Found]:
    cells = Cells.of(rows, "others_share")
    control = f"{FLEET} ({HONEST})"
    variants = dict.fromkeys(who for place in cells.places() for who in cells.planners(place))
    return [one for who in variants if who != control for one in ratios(cells, who, control)]


def _changed_plans(rows: Sequence[RunRow]) -> list[Found]:
    plans, without = (series_of(rows, name) for name in ("plan", "plan_without_liar"))
    found = []
    for (place, who), runs in plans.items():
        unheard = without[place, who]
        moved = sum(sum(a != b for a, b in zip(runs[seed], unheard[seed], strict=True)) for seed in runs)
        found.append(Found(value=float(moved), at=f"{place}, {who}", seeds=len(runs)))
    return found


def series_of(rows: Iterable[RunRow], name: str) -> dict[tuple[str, str], dict[int, tuple[float, ...]]]:
    """A series of each run, by place and planner, then seed."""
    found: dict[tuple[str, str], dict[int, tuple[float, ...]]] = {}
    for row in rows:
        if name in row.series:
            found.setdefault((row.place, row.who), {})[row.seed] = row.series[name]
    return found
