"""Common random numbers: planners that are compared on one seed meet the same acceptance of drafts and noise of step times.

A request draws for itself, whichever engine serves it and whoever else is in the batch: the n-th time that it verifies drafts it
draws the n-th number of a row that its number alone decides. So two planners differ by what they do, not by the texts that they
happened to get. All rows lie in one table, each from a place of its own on; they overlap, but hardly ever in step.

Noise is drawn in blocks, by the number of the step alone: two engines with the same seed see the same in the same step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nightjar.loadtests.simulation.profiles import StepNoise

PLACES: Final = 1 << 20
MOST_AT_ONCE: Final = 1024
_GOLDEN: Final = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: multiples of it, modulo 2**64, are spread as evenly as can be."""
_PLACE_BITS: Final = 64 - 20
NOISE_BLOCK: Final = 1024
"""Steps whose noise is drawn at once."""


class RequestDraws:
    """Numbers from 0 to 1 for all requests of a seed."""

    def __init__(self, seed: int) -> None:
        drawn = np.random.default_rng(seed).random(PLACES)
        self.numbers: NDArray[np.float64] = np.concatenate((drawn, drawn[:MOST_AT_ONCE]))
        """A row that begins at a place below PLACES can be read on for MOST_AT_ONCE numbers."""

    def place(self, request_number: int, drawn: int) -> int:
        """Where a request that has drawn so many numbers goes on; below PLACES.

        >>> draws_of(0).place(7, drawn=3) - draws_of(0).place(7, drawn=0)
        3
        """
        first = (request_number * _GOLDEN % (1 << 64)) >> _PLACE_BITS
        return (first + drawn) % PLACES


@lru_cache(maxsize=2)
def draws_of(seed: int) -> RequestDraws:
    """The draws of a seed; a process keeps the last ones."""
    return RequestDraws(seed)


class NoiseStream:
    """The noise of one engine's step times, step after step: lognormal around the median, and rare stalls."""

    def __init__(self, noise: StepNoise, seed: int) -> None:
        self._noise = noise
        self._seed = seed
        self._beginnings = 0
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        self._stalls: list[float] = []
        self._at = NOISE_BLOCK

    def apply(self, seconds: float) -> float:
        """The next step's time, where it takes `seconds` without noise."""
        at = self._at
        if at == NOISE_BLOCK:
            self._draw()
            at = 0
        self._at = at + 1
        return seconds * self._factors[at] + self._stalls[at]

    def begin_anew(self) -> None:
        """Count steps from here: what follows hangs on the seed and on how often it began anew."""
        self._beginnings += 1
        self._rng = np.random.default_rng((self._seed, self._beginnings))
        self._at = NOISE_BLOCK

    def _draw(self) -> None:
        noise = self._noise
        self._factors = self._rng.lognormal(0.0, noise.lognormal_sd, NOISE_BLOCK).tolist()
        self._stalls = np.where(self._rng.random(NOISE_BLOCK) < noise.stall_share, noise.stall_seconds, 0.0).tolist()
