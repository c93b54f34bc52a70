"""The bars of long prompts and short answers, and how their best static pair and their oracle are picked.

A pair is two K: of pure decode steps, and of steps with prefill. Picking looks at runs on seeds that no bar uses; where none were
made yet, as in the plan that is printed first, it answers with K = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, ByKind, Cells, ratio_at, ratios, worst
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE

PREFILL: Final = "prefill"
PREFILL_PICK: Final = "prefill-pick"
"""Kinds of the runs: on the bars' seeds, and on those that pick."""

_PAIR: Final = "pair"

Pair = tuple[int, int]
"""K of pure decode steps, and of steps with prefill."""


def pair_name(pure_k: int, mixed_k: int) -> str:
    """Name of the static planner with a K for each kind of step.

    >>> pair_name(3, 5)
    'pair-3-5'
    """
    return f"{_PAIR}-{pure_k}-{mixed_k}"


def oracle_name(mixed_k: int) -> str:
    """Name of the oracle that runs one K in all steps with prefill.

    >>> oracle_name(5)
    'oracle-mixed-5'
    """
    return f"{ORACLE}-mixed-{mixed_k}"


def pair_of(name: str) -> Pair:
    """The two K of a pair's name.

    >>> pair_of("pair-3-5")
    (3, 5)
    """
    _, pure_k, mixed_k = name.split("-")
    return int(pure_k), int(mixed_k)


def best_pair(rows: Iterable[RunRow], place: str) -> Pair:
    """The pair whose picking runs gave the most goodput at a place."""
    found = _picked(rows, place)
    pairs = {name: value for name, value in found.items() if name.startswith(_PAIR)}
    return pair_of(max(pairs, key=pairs.__getitem__)) if pairs else (0, 0)


def joined_pair(rows: Iterable[RunRow], place: str) -> Pair:
    """Each K as it did best beside the other K of the best pair of equals."""
    found = {pair_of(name): value for name, value in _picked(rows, place).items() if name.startswith(_PAIR)}
    equal = max((pair for pair in found if pair[0] == pair[1]), key=found.__getitem__, default=(0, 0))
    pure = max((pair for pair in found if pair[1] == equal[1]), key=found.__getitem__, default=equal)
    mixed = max((pair for pair in found if pair[0] == equal[0]), key=found.__getitem__, default=equal)
    return pure[0], mixed[1]


def picked_oracle(rows: Iterable[RunRow], place: str) -> str:
    """The oracle with one K in steps with prefill that gave the most goodput at a place."""
    found = {name: value for name, value in _picked(rows, place).items() if name.startswith(ORACLE)}
    return max(found, key=found.__getitem__, default=oracle_name(0))


def prefill_bars(rows: ByKind) -> list[Bar]:
    """The fleet over the best static pair, over off and over the oracle, which is the best that anybody made of a place."""
    cells = Cells.of(rows.get(PREFILL, ()), GOODPUT)
    over_static, over_oracle = [], []
    for place in cells.places():
        static = pair_name(*best_pair(rows.get(PREFILL_PICK, ()), place))
        over_static += ratio_at(cells, place, FLEET, static)
        knowing = [who for who in cells.planners(place) if who.startswith((ORACLE, _PAIR))]
        if knowing:
            over_oracle += ratio_at(cells, place, FLEET, max(knowing, key=lambda who: cells.mean(place, who) or 0.0))
    meaning = "long prompts, short answers"
    return [
        worst(
            Bar(
                name="prefill_over_static_min",
                meaning=f"{meaning}: over the best pair of K for steps without and with prefill, worst cell",
                direction="at least",
                limit=0.98,
            ),
            over_static,
        ),
        worst(
            Bar(name="prefill_over_off_min", meaning="the same over off: worst cell", direction="at least", limit=0.99),
            ratios(cells, FLEET, OFF),
        ),
        worst(
            Bar(
                name="prefill_over_oracle_min",
                meaning="the same over the best of what knows step times and acceptance, or was searched for: worst cell",
                direction="at least",
                limit=0.95,
            ),
            over_oracle,
        ),
    ]


def _picked(rows: Iterable[RunRow], place: str) -> dict[str, float]:
    """Mean goodput on the seeds that pick, by planner."""
    mine: Sequence[RunRow] = [row for row in rows if row.kind == PREFILL_PICK and row.place == place and not row.error]
    cells = Cells.of(mine, GOODPUT)
    return {who: cells.mean(place, who) or 0.0 for who in cells.planners(place)}
