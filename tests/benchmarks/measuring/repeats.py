"""How often something is measured: a count, and a clock so that a slow machine measures less and not longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Repeats:
    """`least` times, and again up to `most` times while `seconds` have not gone by: a slow machine measures less, not longer."""

    least: int
    most: int
    seconds: float

    def numbers(self, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
        """0, 1, ...

        >>> list(Repeats(2, 5, 10.0).numbers(iter([0.0, 8.0, 16.0]).__next__))
        [0, 1, 2]
        """
        began_s = clock()
        for number in range(self.most):
            if number >= self.least and clock() - began_s > self.seconds:
                return
            yield number
