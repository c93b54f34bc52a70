"""Intervals from a handful of numbers: Student's t distribution, and what an interval of a ratio says.

For whole degrees of freedom, as the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4. The normal distribution claims too
much from few numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, Literal

MOST_DEGREES: Final = 200
"""More are counted as so many: the distribution hardly differs any more, and an interval is a little too wide."""

Side = Literal["below", "holds", "above"]
"""Where an interval lies, seen from a limit."""


def side_of(low: float, high: float, limit: float = 1.0) -> Side:
    """What an interval says of a limit; of a ratio that is 1, where both are the same. An end at the limit holds it, so that equals
    show no difference.

    >>> side_of(0.9, 0.99), side_of(0.9, 1.0), side_of(1.01, 1.2), side_of(1.01, 1.2, limit=1.1)
    ('below', 'holds', 'above', 'holds')
    """
    return "below" if high < limit else "above" if low > limit else "holds"


def upper_tail(t: float, degrees: int) -> float:
    """Probability of a value above `t` (at least 0) with so many degrees of freedom (at least 1).

    >>> [round(upper_tail(t, degrees), 4) for t, degrees in ((6.314, 1), (2.015, 5), (3.365, 5), (1.697, 30), (0.0, 7))]
    [0.05, 0.05, 0.01, 0.05, 0.5]
    """
    degrees = min(degrees, MOST_DEGREES)
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for number in range(3 if is_odd else 2, degrees + 1, 2):
        total += term
        term *= (number - 1) / number * cosine * cosine
    within = (angle + sine * total) * 2.0 / math.pi if is_odd else sine * total
    return (1.0 - within) / 2.0


@lru_cache(maxsize=256)
def deviations(level: float, degrees: int) -> float:
    """The value that is exceeded with probability `level` (above 0, at most 0.5).

    >>> [round(deviations(level, degrees), 3) for level, degrees in ((0.05, 1), (0.01, 5), (0.025, 30))]
    [6.314, 3.365, 2.042]
    """
    low, high = 0.0, 1.0
    while upper_tail(high, degrees) > level:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if upper_tail(middle, degrees) > level else (low, middle)
    return high
