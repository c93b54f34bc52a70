"""The arithmetic of cells that every bar of the simulator shares; its bars stand in bar_list.py.

A cell is one planner at one place; its value is the mean over seeds, and a bar takes the worst cell where it says `min`, never
the average. A bar without a cell keeps no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.policy.wire.record import Record

GOODPUT: Final = "tokens_per_busy_s"
"""Generated tokens per busy engine-second: what open-loop cells are compared in."""

ByKind = Mapping[str, Sequence[RunRow]]
"""The rows that did not fail, by kind."""

BarsOf = Callable[[ByKind], list[Bar]]
"""What computes bars from rows."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Means over seeds of one measure, by place and planner (`RunRow.who`), from the rows that have it."""

    values: Mapping[tuple[str, str], Mapping[int, float]]

    @classmethod
    def of(cls, rows: Iterable[RunRow], measure: str) -> Cells:
        """The cells of these rows."""
        values: dict[tuple[str, str], dict[int, float]] = {}
        for row in rows:
            if measure in row.measures:
                values.setdefault((row.place, row.who), {})[row.seed] = row.measures[measure]
        return cls(values)

    def places(self) -> list[str]:
        """Every place, in the order of the rows."""
        return list(dict.fromkeys(place for place, _ in self.values))

    def planners(self, place: str) -> list[str]:
        """Who ran at a place."""
        return [who for other, who in self.values if other == place]

    def mean(self, place: str, who: str) -> float | None:
        """A cell's value; None where it was not run."""
        seeds = self.values.get((place, who))
        return fmean(seeds.values()) if seeds else None

    def seeds(self, place: str, *planners: str) -> tuple[int, ...]:
        """The seeds that all of these planners ran at a place."""
        shared = set.intersection(*(set(self.values.get((place, who), {})) for who in planners))
        return tuple(sorted(shared))

    def ratio(self, place: str, who: str, other: str) -> float | None:
        """Mean of `who` over mean of `other`, on the seeds that both ran; None without a shared seed or over nothing."""
        shared = self.seeds(place, who, other)
        below = math.fsum(self.values[place, other][seed] for seed in shared)
        return math.fsum(self.values[place, who][seed] for seed in shared) / below if below > 0 else None


class Found(Record):
    """A cell's value, before a bar takes the worst of them."""

    value: float
    at: str
    seeds: int


def worst(bar: Bar, found: Sequence[Found]) -> Bar:
    """The bar with the value of its worst cell: the lowest where much is wanted, else the highest."""
    if not found:
        return bar
    pick: Callable[..., Found] = min if bar.direction in {"at least", "above"} else max
    decided = pick(found, key=lambda one: one.value)
    return bar.model_copy(
        update={
            "value": decided.value,
            "at": decided.at,
            "cells": len(found),
            "seeds": min(one.seeds for one in found),
        }
    )


def mean_of(bar: Bar, found: Sequence[Found]) -> Bar:
    """The bar with the mean over cells."""
    if not found:
        return bar
    seeds = min(one.seeds for one in found)
    return bar.model_copy(update={"value": fmean(one.value for one in found), "cells": len(found), "seeds": seeds})


def ratios(cells: Cells, who: str, other: str) -> list[Found]:
    """`who` over `other` at every place that both ran."""
    return [one for place in cells.places() for one in ratio_at(cells, place, who, other)]


def ratio_at(cells: Cells, place: str, who: str, other: str) -> list[Found]:
    """`who` over `other` at one place; nothing where they share no seed."""
    value, seeds = cells.ratio(place, who, other), len(cells.seeds(place, who, other))
    return [] if value is None else [Found(value=value, at=f"{place}, {who} over {other}", seeds=seeds)]


def cell_means(rows: Iterable[RunRow], measure: str) -> list[Found]:
    """The mean of each cell of a measure."""
    cells = Cells.of(rows, measure)
    return [
        Found(value=fmean(by_seed.values()), at=f"{place}, {who}", seeds=len(by_seed))
        for (place, who), by_seed in cells.values.items()
    ]


def by_second(series: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Means over runs, second by second, as long as all of them go.

    >>> by_second([(1.0, 5.0), (3.0, 7.0, 9.0)])
    (2.0, 6.0)
    """
    return tuple(fmean(values) for values in zip(*series, strict=False))
