"""Whether a canary gives less or more than its control: numbers of successive blocks of time, and how sure one may be when.

Each block gives one number, the logarithm of the canary's goodput over the control's at the same batch (compare.py). Those of a
baseline, when both ran the same, are taken off, so that better cards, models' quirks and other traffic on either side do not
count. One looks again and again, so the looks share the level: look number j, after 3, 6, 12, 24, ... blocks, is taken at
LEVEL / ((j + 1) (j + 2)), which adds up to LEVEL however long a canary runs. Fails towards no verdict: few numbers, scattered
numbers and numbers that follow one another make the interval wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from nightjar.policy.operator.canary.student import deviations, side_of

LEVEL: Final = 0.01
"""Probability that a canary which is no worse is ever rolled back, and that one which is no better is ever announced, where blocks
do not follow one another. Where each is half the one before it, 2 in 100 are (tests/policy/operator/canary/test_verdict.py)."""
FIRST_LOOK: Final = 3
"""Blocks before the first look; each later look comes after twice as many."""
BASELINE_BLOCKS: Final = 8
"""Blocks in which canary and control run the same before the canary begins."""
LEAST_DEVIATION: Final = 0.005
"""Blocks scatter by half a per cent at least, however alike the first few are."""
MOST_CORRELATION: Final = 0.8
MOST_LOG: Final = 20.0
"""Of a ratio, so that it can be told."""

Verdict = Literal["worse", "better", "open"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Numbers that came one after the other, as sums: memory does not grow with them."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    """Of each number and the one before it."""
    first: float = 0.0
    last: float = 0.0

    def plus(self, number: float) -> Sample:
        """With one number more.

        >>> sample = Sample().plus(1.0).plus(3.0)
        >>> sample.mean, sample.variance
        (2.0, 2.0)
        """
        return Sample(
            self.count + 1,
            self.total + number,
            self.squares + number * number,
            self.products + (self.last * number if self.count else 0.0),
            self.first if self.count else number,
            number,
        )

    @property
    def mean(self) -> float:
        """0 without numbers."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Of the numbers, at least LEAST_DEVIATION squared."""
        spread = max(self.squares - self.count * self.mean**2, 0.0) / (self.count - 1) if self.count > 1 else 0.0
        return max(spread, LEAST_DEVIATION**2)

    @property
    def correlation(self) -> float:
        """Of a number with the next, from 0 to MOST_CORRELATION. Few numbers show less of it than there is: 1 / count is added."""
        if self.count < 2:
            return 0.0
        mean = self.mean
        together = self.products - mean * (2.0 * self.total - self.first - self.last) + (self.count - 1) * mean**2
        return min(max(together / (self.variance * (self.count - 1)) + 1.0 / self.count, 0.0), MOST_CORRELATION)

    def error(self, least_variance: float) -> float:
        """Variance of the mean. Numbers that follow one another tell less than as many that do not."""
        follow = (1.0 + self.correlation) / (1.0 - self.correlation)
        return max(self.variance, least_variance) * follow / self.count


@dataclass(frozen=True, slots=True)
class GoodputRatio:
    """The canary's goodput over the control's: 1 is no difference. The truth is below `low`, or above `high`, once in 1 / level."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(before: Sample, since: Sample, level: float) -> GoodputRatio | None:
    """What `since` says over the baseline `before`, each side of the interval at `level`; None from fewer than two numbers.

    Blocks before and since scatter for the same reasons, so that the many tell how few would scatter; where either scatters more
    than both together, its own scatter counts.
    """
    if min(before.count, since.count) < 2:
        return None
    degrees = before.count + since.count - 2
    pooled = ((before.count - 1) * before.variance + (since.count - 1) * since.variance) / degrees
    error = before.error(pooled) + since.error(pooled)
    mean, half = since.mean - before.mean, deviations(level, degrees) * math.sqrt(error)
    low, middle, high = (min(max(log, -MOST_LOG), MOST_LOG) for log in (mean - half, mean, mean + half))
    return GoodputRatio(math.exp(middle), math.exp(low), math.exp(high))


def blocks_of(look: int) -> int:
    """After how many blocks look number `look` (from 0) is taken."""
    return int(FIRST_LOOK * 2 ** min(look, 30))


def level_of(look: int) -> float:
    """At which level look number `look` (from 0) is taken.

    >>> [round(LEVEL / level_of(look)) for look in range(4)], sum(map(level_of, range(100_000))) < LEVEL
    ([2, 6, 12, 20], True)
    """
    return LEVEL / ((look + 1) * (look + 2))


def judge(before: Sample, since: Sample, at_best: Sample, look: int) -> tuple[Verdict, GoodputRatio | None]:
    """The verdict of look number `look`, and the interval to tell.

    `since` are blocks with batches that both saw; `at_best` are all blocks, where the control's goodput at batches that it did not
    see is set as low as it can be: only what loses even then is worse.
    """
    level = level_of(look)
    seen, best = interval(before, since, level), interval(before, at_best, level)
    if best is not None and side_of(best.low, best.high) == "below":
        return "worse", best
    if seen is not None and side_of(seen.low, seen.high) == "above":
        return "better", seen
    return "open", seen or best
