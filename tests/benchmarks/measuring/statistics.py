"""The arithmetic of the bars: means and intervals of ratios, weighted fits. Pure, and tested as such.

Speeds are compared as ratios, so means are geometric. An interval says what it is: 95 % from resampling what was repeated (pairs,
segments), with a seed, or the range of what was seen where that is too little to resample.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from nightjar.loadtests.arms.statistics import RESAMPLES, Interval, geometric_mean, interval_of_resamples

T = TypeVar("T")


def range_of(values: Sequence[float], what: str) -> Interval:
    """From the least to the most: no share of anything lies in it.

    >>> range_of([1.0, 3.0, 2.0], "rounds"), range_of([2.0], "rounds").kind
    (Interval(low=1.0, high=3.0, kind='range of 3 rounds'), 'one of the rounds: no range')
    """
    kind = f"range of {len(values)} {what}" if len(values) > 1 else f"one of the {what}: no range"
    return Interval(low=min(values), high=max(values), kind=kind)


def geometric_mean_of_groups(groups: Mapping[int, Sequence[float]]) -> float:
    """Every group weighs the same, however many values it has."""
    return geometric_mean([geometric_mean(values) for values in groups.values()])


def interval_of_groups(groups: Mapping[int, Sequence[float]], seed: int, what: str) -> Interval:
    """Of `geometric_mean_of_groups`, by drawing each group's values anew; `what` says what a value and a group are."""
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for values in groups.values():
        logarithms = np.log(np.asarray(values))
        drawn = rng.integers(len(logarithms), size=(RESAMPLES, len(logarithms)))
        total += logarithms[drawn].mean(axis=1)
    return interval_of_resamples(np.exp(total / len(groups)), f"{sum(map(len, groups.values()))} {what}")


def resampled(
    one: Sequence[T], other: Sequence[T], statistic: Callable[[Sequence[T], Sequence[T]], float], seed: int, what: str
) -> Interval:
    """Of a statistic of two independent samples, by drawing both anew; `what` names what was drawn, with its number."""
    rng = random.Random(seed)
    found = [statistic(rng.choices(one, k=len(one)), rng.choices(other, k=len(other))) for _ in range(RESAMPLES // 4)]
    return interval_of_resamples(found, what)


def halves(values: Sequence[T]) -> tuple[list[T], list[T]]:
    """The first, third, ... of the values, and the second, fourth, ...

    >>> halves("abcde")
    (['a', 'c', 'e'], ['b', 'd'])
    """
    return list(values[::2]), list(values[1::2])


def relative_error(predicted: float, measured: float) -> float:
    """Of a prediction, as a share of what was measured.

    >>> relative_error(9.0, 10.0)
    0.1
    """
    return abs(predicted - measured) / measured


def line_through(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Level and slope of the least-squares line.

    >>> level, slope = line_through([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> round(level, 9), round(slope, 9)
    (1.0, 2.0)
    """
    slope, level = np.polyfit(np.asarray(xs), np.asarray(ys), 1)
    return float(level), float(slope)


def survival(reached: Sequence[int], accepted: Sequence[int]) -> tuple[float, ...]:
    """Probability that at least 1, 2, ... drafts are accepted, from rows that verified more than i drafts and of which more than i
    were accepted; never rising, and where nothing was seen as the position before.

    >>> survival([10, 10, 0], [8, 5, 0])
    (0.8, 0.5, 0.5)
    """
    found: list[float] = []
    for rows, hits in zip(reached, accepted, strict=True):
        before = found[-1] if found else 1.0
        found.append(min(hits / rows, before) if rows else before)
    return tuple(found)
