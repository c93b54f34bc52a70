"""Intervals, and ratios of speeds that were measured in pairs: what every comparison of arms is computed with.

A round has both arms within a minute or few, on the same prompts: what the machine and the texts did to one they did to the
other. So rounds are drawn anew whole, never one arm without the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.operator.canary.student import Side, deviations, side_of
from nightjar.policy.wire.record import Record

RESAMPLES: Final = 2_000
TAIL_PERCENT: Final = 2.5
LEAST_RATIO: Final = 1e-9
RESAMPLED: Final = "rounds, each with both arms"
"""What such a ratio's interval is made from."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Interval(Record):
    """How far a value may be off. `kind` says where the two ends come from: a resampling of what, or the range of what."""

    low: float
    high: float
    kind: str

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    @property
    def side(self) -> Side:
        """Of 1, where both arms are the same: whether the whole interval lies below or above it, or holds it."""
        return side_of(self.low, self.high)

    @property
    def is_shown(self) -> bool:
        """Whether it says where the value lies: the range of what was seen does not."""
        return self.kind.startswith("95 %")

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


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
    """The rounds, by number, that have both, without those in which one of them gave nothing.

    >>> matched({0: Speed(1, 1), 1: Speed(2, 1), 2: Speed(0, 1)}, {1: Speed(3, 1), 2: Speed(4, 1)})
    [(Speed(tokens=2, seconds=1), Speed(tokens=3, seconds=1))]
    """
    pairs = [(one[number], other[number]) for number in sorted(one.keys() & other.keys())]
    return [pair for pair in pairs if all(speed.tokens > 0 and speed.seconds > 0 for speed in pair)]


def of_times(one: Sequence[float], other: Sequence[float]) -> list[Pair]:
    """Pairs whose ratio is that of the times which both took for the same: above 1 the first is slower.

    >>> paired_ratio(of_times([3.0, 6.0], [2.0, 4.0]), seed=0).value
    1.5
    """
    return [(Speed(1.0, theirs), Speed(1.0, ours)) for ours, theirs in zip(one, other, strict=True)]


def paired_ratio(pairs: Sequence[Pair], seed: int, what: str = RESAMPLED) -> Ratio:
    """Tokens per second of the first over those of the second, with an interval that is widened for few pairs.

    `what` names what a pair is of.

    >>> str(paired_ratio([(Speed(30, 10), Speed(20, 10)), (Speed(60, 10), Speed(40, 10))], seed=0))
    '1.500 (1.500 to 1.500)'
    """
    counts = np.array([[*one, *other] for one, other in pairs], dtype=float)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    found, of = _ratio(counts[drawn].sum(axis=1)), f"{len(pairs)} {what}"
    interval = interval_of_resamples(found, of, tail_percent_of_few(len(pairs)))
    return Ratio(float(_ratio(counts.sum(axis=0))), interval, len(pairs))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that suits ratios. A value of 0 counts as LEAST_RATIO.

    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    return math.exp(fmean(math.log(max(value, LEAST_RATIO)) for value in values))


def interval_of_resamples(
    found: Sequence[float] | npt.NDArray[np.float64], what: str, tail_percent: float = TAIL_PERCENT
) -> Interval:
    """The middle of a statistic's values over resamples; `what` names what was drawn anew, with its number.

    95 % of them, or, with a `tail_percent` for few rounds, as many as make a 95 % interval.
    """
    low, high = np.percentile(found, [tail_percent, 100.0 - tail_percent])
    widened = "" if tail_percent == TAIL_PERCENT else ", widened for so few"
    return Interval(low=float(low), high=float(high), kind=f"95 % by resampling {what}{widened}")


def tail_percent_of_few(count: int) -> float:
    """What to leave out at each end for an interval that so few values, drawn anew, make too narrow.

    Resampling sees the values' spread without the correction for their mean, and knows no more of the tails than they show. The
    expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 4.2) goes out to where
    Student's t would be: sqrt(n / (n - 1)) t deviations. With fewer than 2 values there is no spread, and nothing is left out.

    >>> [round(tail_percent_of_few(count), 2) for count in (2, 5, 10, 100)]
    [0.0, 0.1, 0.86, 2.31]
    """
    if count < 2:
        return 0.0
    far = (count / (count - 1)) ** 0.5 * deviations(TAIL_PERCENT / 100.0, count - 1)
    return 100.0 * NormalDist().cdf(-far)


def _ratio(sums: Floats) -> Floats:
    one_tokens, one_seconds, other_tokens, other_seconds = np.moveaxis(sums, -1, 0)
    ratio: Floats = one_tokens / one_seconds / (other_tokens / other_seconds)
    return ratio
