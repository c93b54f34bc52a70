"""Ratios of speeds whose rounds were measured in pairs, and bars that the end of such a ratio's interval decides.

A round has both arms within a minute or few, on the same prompts: what the machine and the texts did to one they did to the
other. So rounds are drawn anew whole, never one arm without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nightjar.loadtests.simulation.evidence.bars import Bar
from tests.benchmarks.measuring.statistics import RESAMPLES, TAIL_PERCENT, Interval

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Speed(NamedTuple):
    """What one arm gave in one round."""

    tokens: float
    seconds: float


Pair = tuple[Speed, Speed]


class Ratio(NamedTuple):
    """Of two arms' speeds over all rounds; the interval is the value itself where one round tells nothing of the spread."""

    value: float
    interval: Interval
    rounds: int

    def plain(self) -> dict[str, Any]:
        """For the summary."""
        return {"value": round(self.value, 4), "interval": [round(end, 4) for end in self.interval], "rounds": self.rounds}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval.low:.3f} to {self.interval.high:.3f})"


class UpperEndBar(Bar):
    """A bar that is missed only where the interval lies below it whole: `upper_end` counts, and `value` is shown."""

    upper_end: float | None = None

    @property
    def want(self) -> str:
        """As `Bar.want`."""
        return f"upper end >= {self.limit:g}"

    @property
    def passed(self) -> bool | None:
        """As `Bar.passed`."""
        return None if self.upper_end is None else self.upper_end >= self.limit


def matched(one: Mapping[int, Speed], other: Mapping[int, Speed]) -> list[Pair]:
    """The rounds, by number, that have both.

    >>> matched({0: Speed(1, 1), 1: Speed(2, 1)}, {1: Speed(3, 1), 2: Speed(4, 1)})
    [(Speed(tokens=2, seconds=1), Speed(tokens=3, seconds=1))]
    """
    return [(one[number], other[number]) for number in sorted(one.keys() & other.keys())]


def paired_ratio(pairs: Sequence[Pair], seed: int) -> Ratio:
    """Tokens per second of the first over those of the second.

    >>> str(paired_ratio([(Speed(30, 10), Speed(20, 10)), (Speed(60, 10), Speed(40, 10))], seed=0))
    '1.500 (1.500 to 1.500)'
    """
    counts = np.array([[*one, *other] for one, other in pairs], dtype=float)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    low, high = np.percentile(_ratio(counts[drawn].sum(axis=1)), [TAIL_PERCENT, 100.0 - TAIL_PERCENT])
    return Ratio(float(_ratio(counts.sum(axis=0))), Interval(float(low), float(high)), len(pairs))


def _ratio(sums: Floats) -> Floats:
    one_tokens, one_seconds, other_tokens, other_seconds = np.moveaxis(sums, -1, 0)
    ratio: Floats = one_tokens / one_seconds / (other_tokens / other_seconds)
    return ratio
