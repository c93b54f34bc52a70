"""The bars of what users wait for: bursts of long prompts with short answers, each run until the last answer.

All planners of a place and seed answer the same requests, so the mean time end to end times their number is the area under the
number of requests in the system (Little): request-seconds and the mean end to end rank planners alike here, and both are stated.
A static planner is a pair of K, for steps without and with prefill. The best of all pairs is picked for each measure by itself, on
seeds that no bar uses. The oracle of a place is, again by measure, the best of what knows step times and acceptance and of the
pairs that ran. All measures are times, so a ratio is the other's over the fleet's: above 1 the fleet is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import ByKind, Cells, Found, worst
from nightjar.loadtests.simulation.evidence.grid import DASH, Grid, ratio
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE
from nightjar.policy.wire.operator import Objective

PAIR: Final = "pair"
"""How the name of a pair of K begins."""

LATENCY: Final = "latency"
LATENCY_PICK: Final = "latency-pick"
LATENCY_COLD: Final = "latency-cold"
"""Kinds of the runs: on the bars' seeds, on those that pick, and on the bars' seeds from a cold start."""

LATENCY_FIRST: Final[Objective] = "latency"
"""What a fleet plans for unless told otherwise, and what is judged."""
TOKENS_FIRST: Final[Objective] = "throughput"
UNDER_THROUGHPUT: Final = f"{FLEET} ({TOKENS_FIRST})"
"""The fleet as it plans for tokens per busy second, as all of it did before there was an objective."""

REQUEST_SECONDS: Final = "request_seconds"
E2E: Final = "e2e_mean_s"
E2E_P95: Final = "e2e_p95_s"
TTFT: Final = "ttft_mean_s"
TPOT: Final = "tpot_mean_s"
TOOK: Final = "took_s"
"""From the first request to the last answer."""
MEASURES: Final = (REQUEST_SECONDS, E2E, E2E_P95, TTFT, TPOT, TOOK)
"""All are seconds: less is better."""

FULL_PERCENT: Final = 85
"""Loads above it keep the engine full, so there the time to the last answer is judged, and below it the time of a request."""

BETTER: Final = 1.02
"""A planner is better in a measure from 2 % on."""


def load_percent(place: str) -> int:
    """The load of a place, in percent of what off carries.

    >>> load_percent("cpu-smollm2/long-prompts 80%")
    80
    """
    return int(place.rsplit(" ", 1)[1].removesuffix("%"))


def best_pairs(rows: Iterable[RunRow], place: str) -> dict[str, str]:
    """By measure, the pair that was best at a place on the seeds that pick; empty where none ran yet."""
    picking = [row for row in rows if row.kind == LATENCY_PICK and row.place == place and not row.error]
    return {measure: best for measure in MEASURES if (best := _least(Cells.of(picking, measure), place, pairs_alone=True))}


def dominant_pair(rows: Iterable[RunRow], place: str) -> str:
    """The pair that came closest to be better than the fleet at first token, later tokens and end to end at once, on the seeds
    that pick; empty where none ran yet."""
    picking = [row for row in rows if row.kind == LATENCY_PICK and row.place == place and not row.error]
    who = {row.who for row in picking if row.who.startswith(PAIR)}
    return max(sorted(who), key=lambda pair: lead(picking, place, pair) or 0.0, default="")


def picked_oracle(rows: Iterable[RunRow], place: str) -> str:
    """The oracle with one K in steps with prefill whose requests took least, on the seeds that pick; empty where none ran yet."""
    picking = [row for row in rows if row.kind == LATENCY_PICK and row.place == place and row.who.startswith(ORACLE)]
    return _least(Cells.of((row for row in picking if not row.error), E2E), place, pairs_alone=False)


def lead(rows: Sequence[RunRow], place: str, pair: str) -> float | None:
    """By which factor a pair is better than the fleet in all of first token, later tokens and end to end: the least of the three.
    None where they share no seed."""
    found = [over(Cells.of(rows, measure), place, pair, FLEET) for measure in (TTFT, TPOT, E2E)]
    known = [one for one in found if one is not None]
    return min(known) if len(known) == len(found) else None


def over(cells: Cells, place: str, who: str, other: str) -> float | None:
    """The other's time over that of `who`, on the seeds that both ran: above 1, `who` is faster."""
    return cells.ratio(place, other, who)


def latency_bars(rows: ByKind) -> list[Bar]:
    """The fleet over the best static pair, by measure and load; over the oracle; and how many places a static pair dominates."""
    warm, cold, picking = (rows.get(kind, ()) for kind in (LATENCY, LATENCY_COLD, LATENCY_PICK))
    judged = [row for row in warm if load_percent(row.place) < FULL_PERCENT]
    full = [row for row in warm if load_percent(row.place) >= FULL_PERCENT]
    bursts = "bursts of long prompts, to the last answer"
    return [
        worst(_bar("e2e_over_static_min", f"{bursts}, loads to 80 %: mean end to end"), _over_static(judged, picking, E2E)),
        worst(
            _bar("request_seconds_over_static_min", f"{bursts}, loads to 80 %: request-seconds"),
            _over_static(judged, picking, REQUEST_SECONDS),
        ),
        worst(
            _bar("took_over_static_min", f"{bursts}, loads from 90 %: time to the last answer"),
            _over_static(full, picking, TOOK),
        ),
        _dominated(warm, picking, bursts),
        *(
            _stated(_bar(name, f"{bursts}, {which}"), found)
            for name, which, found in (
                ("e2e_p95_over_static_min", "loads to 80 %: 95 % of end to end", _over_static(judged, picking, E2E_P95)),
                ("full_e2e_over_static_min", "loads from 90 %: mean end to end", _over_static(full, picking, E2E)),
                ("cold_e2e_over_static_min", "from a cold start: mean end to end", _over_static(cold, picking, E2E)),
            )
        ),
        _stated(
            Bar(
                name="e2e_over_oracle_min",
                meaning=f"{bursts}: mean end to end over the best of what knows and of the pairs, worst cell",
                direction="at least",
            ),
            _over_oracle(warm, E2E),
        ),
    ]


def _bar(name: str, meaning: str) -> Bar:
    return Bar(name=name, meaning=f"{meaning} over the best static pair's, worst cell", direction="at least", limit=0.98)


def _stated(bar: Bar, found: Sequence[Found]) -> Bar:
    """The bar with its worst cell, which is the lowest, and nothing to be reached."""
    return worst(bar, found).model_copy(update={"direction": "stated", "limit": 0.0})


def _over_static(rows: Sequence[RunRow], picking: Sequence[RunRow], measure: str) -> list[Found]:
    cells = Cells.of(rows, measure)
    pairs = {place: best_pairs(picking, place).get(measure, "") for place in cells.places()}
    return [one for place, pair in pairs.items() for one in _found(cells, place, pair)]


def _over_oracle(rows: Sequence[RunRow], measure: str) -> list[Found]:
    cells = Cells.of(rows, measure)
    return [one for place in cells.places() for one in _found(cells, place, oracle_of(cells, place))]


def oracle_of(cells: Cells, place: str) -> str:
    """Who was best at a place, of what knows and of the pairs; empty where neither ran."""
    return _least(cells, place, pairs_alone=False)


def _dominated(rows: Sequence[RunRow], picking: Sequence[RunRow], bursts: str) -> Bar:
    bar = Bar(
        name="dominated",
        meaning=f"{bursts}: places where one static pair is better by 2 % at first token, later tokens and end to end at once",
        direction="at most",
        limit=0.0,
    )
    leads = {}
    for place in dict.fromkeys(row.place for row in rows):
        pair = dominant_pair(picking, place)
        if pair and (found := lead([row for row in rows if row.place == place], place, pair)) is not None:
            leads[f"{place}, {pair}"] = found
    if not leads:
        return bar
    at = max(leads, key=leads.__getitem__)
    seeds = min(len(cells.seeds(place, FLEET)) for cells in (Cells.of(rows, E2E),) for place in cells.places())
    return bar.model_copy(
        update={
            "value": float(sum(value >= BETTER for value in leads.values())),
            "at": f"most by {at}: {leads[at]:.3f}",
            "cells": len(leads),
            "seeds": seeds,
        }
    )


def latency_grid(rows: Sequence[RunRow]) -> Grid:
    """By place the best static pair's time in each measure over the fleet's, and end to end off's and the oracle's over it."""
    warm = [row for row in rows if row.kind == LATENCY and not row.error]
    picking = [row for row in rows if row.kind == LATENCY_PICK and not row.error]
    cells = {measure: Cells.of(warm, measure) for measure in MEASURES}
    lines = []
    for place in cells[E2E].places():
        pairs, dominant = best_pairs(picking, place), dominant_pair(picking, place)
        own = [row for row in warm if row.place == place]
        if cells[E2E].mean(place, FLEET) is None:
            continue
        lines.append(
            (
                place,
                pairs.get(E2E, DASH),
                *(ratio(over(cells[measure], place, FLEET, pairs.get(measure, ""))) for measure in MEASURES if measure != E2E),
                ratio(lead(own, place, dominant) if dominant else None),
                *(ratio(over(cells[measure], place, FLEET, UNDER_THROUGHPUT)) for measure in (E2E, TTFT, TPOT)),
                ratio(over(cells[E2E], place, FLEET, OFF)),
                ratio(over(cells[E2E], place, FLEET, oracle_of(cells[E2E], place))),
            )
        )
    return Grid(
        "Bursts of long prompts to the last answer",
        (
            "place", "best pair", "request-seconds", "end to end p95", "first token", "later tokens", "last answer",
            "dominated by", "end to end over throughput's", "its first token", "its later tokens",
            "end to end over off", "over oracle",
        ),
        tuple(lines),
        "The best static pair's time over the fleet's, picked for each measure on other seeds: above 1 the fleet is faster. "
        "Mean end to end is request-seconds by request. Dominated: the least by which one pair is better at first token, later "
        "tokens and end to end at once. Over throughput's: the time under `objective: throughput`, on fewer seeds.",
    )  # fmt: skip


def _least(cells: Cells, place: str, *, pairs_alone: bool) -> str:
    """Who took least at a place: of the pairs, or of pairs and oracles."""
    ranked = {
        who: mean
        for who in cells.planners(place)
        if (who.startswith(PAIR) or (who.startswith(ORACLE) and not pairs_alone)) and (mean := cells.mean(place, who)) is not None
    }
    return min(ranked, key=ranked.__getitem__, default="")


def _found(cells: Cells, place: str, other: str) -> list[Found]:
    value = over(cells, place, FLEET, other) if other else None
    if value is None:
        return []
    return [Found(value=value, at=f"{place}, {FLEET} over {other}", seeds=len(cells.seeds(place, FLEET, other)))]
