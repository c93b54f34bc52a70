"""How lucky each request is with its drafts: the same for every planner that is compared on one seed (common random numbers).

A request's luck is its own, whichever engine serves it and whoever else is in the batch: the n-th time that it verifies drafts it
draws the n-th number of a row that its number alone decides. So two planners differ by what they do, not by the texts that they
happened to get. All rows lie in one table, each from a place of its own on; they overlap, but hardly ever in step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

PLACES: Final = 1 << 20
MOST_AT_ONCE: Final = 1024
_GOLDEN: Final = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: multiples of it, modulo 2**64, are spread as evenly as can be."""
_PLACE_BITS: Final = 64 - 20


class Luck:
    """Numbers from 0 to 1 for all requests of a seed."""

    def __init__(self, seed: int) -> None:
        drawn = np.random.default_rng(seed).random(PLACES)
        self.numbers: NDArray[np.float64] = np.concatenate((drawn, drawn[:MOST_AT_ONCE]))
        """A row that begins at a place below PLACES can be read on for MOST_AT_ONCE numbers."""

    def place(self, request_number: int, drawn: int) -> int:
        """Where a request that has drawn so many numbers goes on; below PLACES.

        >>> luck_of(0).place(7, drawn=3) - luck_of(0).place(7, drawn=0)
        3
        """
        first = (request_number * _GOLDEN % (1 << 64)) >> _PLACE_BITS
        return (first + drawn) % PLACES


@lru_cache(maxsize=2)
def luck_of(seed: int) -> Luck:
    """The luck of a seed; a process keeps the last ones."""
    return Luck(seed)
