"""Ratios of speeds whose rounds were measured in pairs.

A round has both arms within a minute or few, on the same prompts: what the machine and the texts did to one they did to the
other. So rounds are drawn anew whole, never one arm without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from nightjar.loadtests.simulation.evidence.bars import Interval
from tests.benchmarks.measuring.statistics import RESAMPLES, interval_of_resamples

RESAMPLED: Final = "rounds, each with both arms"
"""What such a ratio's interval is made from."""

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
        return {"value": round(self.value, 4), "interval": self.interval.model_dump(), "rounds": self.rounds}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval})"


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
    interval = interval_of_resamples(_ratio(counts[drawn].sum(axis=1)), f"{len(pairs)} {RESAMPLED}")
    return Ratio(float(_ratio(counts.sum(axis=0))), interval, len(pairs))


def _ratio(sums: Floats) -> Floats:
    one_tokens, one_seconds, other_tokens, other_seconds = np.moveaxis(sums, -1, 0)
    ratio: Floats = one_tokens / one_seconds / (other_tokens / other_seconds)
    return ratio
