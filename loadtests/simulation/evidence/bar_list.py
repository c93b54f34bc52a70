"""The bars: what the planner must show, each computed from the raw rows of a run and from nothing else.

Rows that failed count nowhere; the command reports them by themselves. Kinds, planners and variants are named as the
experiments name them; measures that a bar needs and a row lacks leave that row out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, BarsOf, ByKind, Cells, Found, cell_means, mean_of, ratios, worst
from nightjar.loadtests.simulation.evidence.limit_bars import limit_bars
from nightjar.loadtests.simulation.evidence.prefill_bars import prefill_bars
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE

COLD: Final = "cold"
"""Kind of the cold start's runs: the paper's 480 requests on its three pairs."""

OTHER_TEXTS: Final = "other-texts"
CHANGING_TEXTS: Final = "changing-texts"
"""Loads whose texts are not, or not always, those that tables were tuned for. They came when the mean over the others was known:
each has its own."""

PICK: Final = "pick"
"""Kind of the runs on other seeds that pick the best static planner of each open-loop place."""

HEADROOM: Final = 1.05
"""Where the oracle beats the best static planner by this factor there is something to win; elsewhere only something to lose."""

THROUGHPUT: Final = "tokens_per_s"
"""Generated tokens per second of virtual time: what closed-loop cells are compared in."""

POOLED_4: Final = "fleet (4 replicas)"
POOLED_16: Final = "fleet (16 replicas)"
ALONE: Final = "fleet (1 replica)"
WARM: Final = "warm"
"""Variant of the paper's runs that had a first pass."""
ALL_PARTS: Final = "all parts"
"""Variant of the ablation's runs in which nothing is switched off."""
DAY_S: Final = 86_400.0
LEAST_ALARM_DAYS: Final = 3.0
"""Group-days without an alarm that show, at 95 %, that there is no more than one a day: exp(-3) is 0.05."""

PAPER_PROFILES: Final = ("qwen-7b-0.5b-rtx4090", "vicuna-13b-68m-a100", "qwen-32b-0.5b-2xl20")
"""The paper's three pairs of models."""


def compute_bars(rows: Sequence[RunRow], bars: Sequence[BarsOf]) -> tuple[Bar, ...]:
    """Every bar, in the order of what computes them."""
    by_kind: dict[str, list[RunRow]] = {}
    for row in rows:
        if not row.error:
            by_kind.setdefault(row.kind, []).append(row)
    return tuple(bar for compute in bars for bar in compute(by_kind))


def best_static(rows: Iterable[RunRow]) -> dict[str, str]:
    """By place, the planner whose picking runs gave the most goodput: a fixed K or the tuned table."""
    cells = Cells.of((row for row in rows if row.kind == PICK and not row.error), GOODPUT)
    return {place: max(cells.planners(place), key=lambda who: cells.mean(place, who) or 0.0) for place in cells.places()}


def rival_ratios(rows: Iterable[RunRow]) -> dict[str, list[Found]]:
    """Fleet over each rival on equal mechanics, by rival: its goodput ratio at every open-loop place that both ran."""
    kept = [row for row in rows if row.kind == "open_loop" and not row.error and not row.as_published]
    cells = Cells.of(kept, GOODPUT)
    rivals = dict.fromkeys(who for place in cells.places() for who in cells.planners(place))
    return {rival: found for rival in rivals if rival not in {FLEET, ORACLE} and (found := ratios(cells, FLEET, rival))}


def losses(rows: Iterable[RunRow]) -> list[Found]:
    """Every cell in which another planner, the oracle aside, made more than the fleet did: printed, never dropped."""
    lost = [one for found in rival_ratios(rows).values() for one in found if one.value < 1.0]
    return sorted(lost, key=lambda one: one.value)


def over_rivals_bar(load: str = "") -> str:
    """Name of the bar of the geometric mean per rival: of a load that has its own, or of all others."""
    return f"{load.replace('-', '_') or FLEET}_over_rival_geomean_min"


def _steady(rows: ByKind) -> list[Bar]:
    cells = Cells.of(rows.get("steady", ()), THROUGHPUT)
    over_oracle = ratios(cells, FLEET, ORACLE)
    meaning = "closed-loop steady cells, tokens/s once converged, over the oracle"
    return [
        mean_of(Bar(name="fleet_over_oracle_mean", meaning=f"{meaning}: mean", direction="at least", limit=0.98), over_oracle),
        worst(Bar(name="fleet_over_oracle_min", meaning=f"{meaning}: worst cell", direction="at least", limit=0.95), over_oracle),
        worst(
            Bar(name="fleet_over_off_min", meaning="the same over off: worst cell", direction="at least", limit=0.99),
            ratios(cells, FLEET, OFF),
        ),
    ]


def _open_loop(rows: ByKind) -> list[Bar]:
    cells = Cells.of(rows.get("open_loop", ()), GOODPUT)
    headroom, level = [], []
    leads: dict[str, float] = {}
    for place, static in best_static(rows.get(PICK, ())).items():
        seeds = cells.seeds(place, FLEET, ORACLE, static)
        if not seeds:
            continue
        fleet, oracle, fixed = (fmean(cells.values[place, who][seed] for seed in seeds) for who in (FLEET, ORACLE, static))
        at = f"{place}, best static {static}"
        leads[at] = oracle / fixed - 1.0
        if oracle >= HEADROOM * fixed:
            headroom.append(Found(value=(fleet - fixed) / (oracle - fixed), at=at, seeds=len(seeds)))
        else:
            level.append(Found(value=fleet / fixed, at=at, seeds=len(seeds)))
    return [
        worst(
            Bar(
                name="fleet_headroom_min",
                meaning="open loop: share of the oracle's lead over the best static that the fleet wins, where the lead is 5 %",
                direction="at least",
                limit=0.8,
                at=_no_headroom(leads),
                cells=len(leads),
            ),
            headroom,
        ),
        worst(
            Bar(
                name="fleet_over_static_min",
                meaning="open loop, the other cells: over the best static",
                direction="at least",
                limit=0.99,
                at="the oracle leads by 5 % or more everywhere" if leads else "",
                cells=len(leads),
            ),
            level,
        ),
    ]


def _no_headroom(leads: Mapping[str, float]) -> str:
    """What stands for a place where none has headroom: the oracle's largest lead over the best static planner."""
    if not leads:
        return ""
    at = max(leads, key=leads.__getitem__)
    return f"the oracle leads by {leads[at]:.1%} at most: {at}"


def _rivals(rows: ByKind) -> list[Bar]:
    mine = rows.get("open_loop", ())
    every = [one for found in rival_ratios(mine).values() for one in found]
    unknown = {
        OTHER_TEXTS: "where texts are harder to draft for than those that tables were tuned for",
        CHANGING_TEXTS: "where such texts come by turns with those that tables were tuned for",
    }
    meaning = "over every rival on equal mechanics, every profile and regime"
    mean = "geometric mean per rival that ran everywhere"
    return [
        worst(Bar(name="fleet_over_rival_min", meaning=f"{meaning}: worst cell", direction="at least", limit=0.99), every),
        worst(
            Bar(name=over_rivals_bar(), meaning=f"{mean}: worst rival", direction="above", limit=1.0),
            _geometric_means([row for row in mine if row.load not in unknown]),
        ),
        *(
            worst(
                Bar(
                    name=over_rivals_bar(load),
                    meaning=f"{mean}, {where}: worst rival",
                    direction="above",
                    limit=1.0,
                ),
                _geometric_means([row for row in mine if row.load == load]),
            )
            for load, where in unknown.items()
        ),
    ]


def _geometric_means(rows: Sequence[RunRow]) -> list[Found]:
    by_rival = rival_ratios(rows)
    everywhere = max(map(len, by_rival.values()), default=0)
    return [
        Found(
            value=geometric_mean([one.value for one in found]),
            at=f"{rival}, {len(found)} cells",
            seeds=min(one.seeds for one in found),
        )
        for rival, found in by_rival.items()
        if len(found) == everywhere
    ]


def _cold(rows: ByKind) -> list[Bar]:
    """The fleet over off in its first 480 requests: the worst pair and data set, and the mean over all.

    A cell here is a pair of models and a data set: the mean of its ratios at all rates, for an operator has one pair and one kind
    of texts, and not the rate that suits them best. A pair without runs of both planners is left out.
    """
    found = _cold_over_off(rows.get(COLD, ()))
    meaning = "the first 480 requests of the paper's pairs, over off, mean over rates"
    return [
        worst(
            Bar(name="cold_over_off_min", meaning=f"{meaning}: worst pair and data set", direction="at least", limit=0.985), found
        ),
        mean_of(Bar(name="cold_over_off_mean", meaning=f"{meaning}: mean", direction="at least", limit=1.0), found),
    ]


def _cold_over_off(rows: Iterable[RunRow]) -> list[Found]:
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


def _pooling(rows: ByKind) -> list[Bar]:
    mine = [row for row in rows.get("pooling", ()) if row.planner == FLEET]
    cells = Cells.of(mine, "lost_tokens_per_replica_in_all")
    lost4, lost16 = (ratios(cells, pooled, ALONE) for pooled in (POOLED_4, POOLED_16))
    meaning = "tokens that a replica loses against the oracle in its first two minutes"
    four = f"{meaning}, in a group of 4 over alone: mean over places"
    sixteen = f"{meaning}, in a group of 16 over alone: mean over places"
    return [
        mean_of(Bar(name="pooled4_loss_ratio", meaning=four, direction="at most", limit=1.0), lost4),
        mean_of(Bar(name="pooled16_loss_ratio", meaning=sixteen, direction="at most", limit=0.5), lost16),
        worst(
            Bar(name="pooled16_done_s", meaning="virtual seconds until there, 16 pooled", direction="at most", limit=30.0),
            cell_means([row for row in mine if row.who == POOLED_16], "done_s"),
        ),
    ]


def _newcomer(rows: ByKind) -> list[Bar]:
    meaning = "share of output lost by a replica that joins a warm group"
    bar = Bar(name="newcomer_loss", meaning=meaning, direction="at most", limit=0.01)
    return [worst(bar, cell_means(rows.get("newcomer", ()), "lost_share"))]


def _alarms(rows: ByKind) -> list[Bar]:
    watched = [row for kept in rows.values() for row in kept if row.planner == FLEET and "false_alarms" in row.measures]
    days = math.fsum(row.measures["watched_s"] for row in watched) / DAY_S
    alarms = Bar(
        name="false_alarms_per_day", meaning="trips of the guard in a group without drift, per day", direction="at most", limit=1.0
    )
    seen = math.fsum(row.measures["false_alarms"] for row in watched)
    if watched:
        alarms = alarms.model_copy(update=_judged_alarms(seen, days) | {"cells": len(watched)})
    return [alarms]


def _judged_alarms(seen: float, days: float) -> dict[str, object]:
    """Value and `at` of the bar. None seen in less than LEAST_ALARM_DAYS show nothing; one that was seen always counts."""
    looked_at = f"{seen:.0f} in {days:.3g} group-days of runs without drift"
    if days <= 0 or (not seen and days < LEAST_ALARM_DAYS):
        return {"at": f"{looked_at}; {LEAST_ALARM_DAYS:g} without one are the least that show the limit"}
    return {"value": seen / days, "at": looked_at}


def _budget(rows: ByKind) -> list[Bar]:
    violations = Bar(
        name="budget_violations", meaning="decisions with more leased restarts in flight than allowed (INV-6)", direction="at most"
    )
    counted = [row for kept in rows.values() for row in kept if "budget_violations" in row.measures]
    if counted:
        total = math.fsum(row.measures["budget_violations"] for row in counted)
        violations = violations.model_copy(update={"value": total, "at": "all runs together", "cells": len(counted)})
    return [violations]


BARS: Final[tuple[BarsOf, ...]] = (
    _steady, _open_loop, _rivals, prefill_bars, limit_bars, _cold, _pooling, _newcomer, _alarms, _budget,
)  # fmt: skip
