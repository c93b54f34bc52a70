"""Step times at batches that were not measured, from those that were.

A step verifies `rows * (K + 1)` tokens and runs the draft model K times over its rows. What the first takes depends on the tokens
alone, so 16 rows at K=0, 8 at K=1 and 4 at K=3 tell of each other: that is what lets a few batches speak for those between, and for
larger ones. Fitted is time = T(tokens) + K * D(rows) + a constant where anything is drafted, T and D linear between knots and
beyond the last, by least squares of relative errors. From four tokens on more of them, or of rows, never take less time: on a noisy
machine a free fit trades T for D until one of them is below zero. Below four a library picks its kernel by their number, and T may
fall: on a processor with AVX-512 and no AMX, oneDNN's products took 18 ms for one token, 20 ms for two and 14 ms for four. Raises
ValueError where the measurements do not determine it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

TOKEN_KNOTS: Final = (1, 2, 4, 8, 16, 32, 64, 96, 192)
ROW_KNOTS: Final = (1, 4, 16, 32)

Times = Mapping[tuple[int, int], float]
"""Seconds of a step by (rows, K)."""


class StepTimes(NamedTuple):
    """The fit. Times are in the unit of the measurements."""

    by_tokens: tuple[float, ...]
    by_rows: tuple[float, ...]
    drafting: float

    def of(self, rows: int, num_speculative_tokens: int) -> float:
        """Time of a step."""
        return float(_terms(rows, num_speculative_tokens) @ np.array([*self.by_tokens, *self.by_rows, self.drafting]))


def fitted_step_times(measured: Times) -> StepTimes:
    """The fit through these."""
    terms = np.array([_terms(*cell) / time for cell, time in measured.items()])
    if (rank := int(np.linalg.matrix_rank(terms))) < terms.shape[1]:
        raise ValueError(f"{len(measured)} step times leave {terms.shape[1] - rank} of {terms.shape[1]} numbers open: measure more")
    growths = _fitted_growths(terms @ _SUMS)
    found, split = _SUMS @ growths, len(TOKEN_KNOTS)
    return StepTimes(tuple(found[:split].tolist()), tuple(found[split:-1].tolist()), float(found[-1]))


def _fitted_growths(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights of the columns of `terms` whose sum is next to 1 in every row, none below zero: the worst is left out until so."""
    growths, kept = np.zeros(terms.shape[1]), np.arange(terms.shape[1])
    while len(kept):
        found = np.linalg.lstsq(terms[:, kept], np.ones(len(terms)), rcond=None)[0]
        if found.min() >= 0.0:
            growths[kept] = found
            break
        kept = np.delete(kept, found.argmin())
    return growths


def _terms(rows: int, num_speculative_tokens: int) -> npt.NDArray[np.float64]:
    drafts = float(num_speculative_tokens > 0)
    verifies = _between(TOKEN_KNOTS, rows * (num_speculative_tokens + 1))
    return np.concatenate([verifies, num_speculative_tokens * _between(ROW_KNOTS, rows), [drafts]])


def _between(knots: Sequence[int], value: int) -> npt.NDArray[np.float64]:
    """Weight of each knot in a line through the two next to a value.

    >>> [float(weight) for weight in _between((1, 4, 16), 10)], [float(weight) for weight in _between((1, 4, 16), 28)]
    ([0.0, 0.5, 0.5], [0.0, -1.0, 2.0])
    """
    last = min(max(bisect_right(knots, value), 1), len(knots) - 1)
    weights = np.zeros(len(knots))
    weights[last] = (value - knots[last - 1]) / (knots[last] - knots[last - 1])
    weights[last - 1] = 1.0 - weights[last]
    return weights


def _sums() -> npt.NDArray[np.float64]:
    """From growths between knots to values at knots, of T, D and the constant.

    T at the first two knots grows from nothing, and at the second it is at least half of what lies between its neighbours.
    """
    sums, at = np.zeros((len(TOKEN_KNOTS) + len(ROW_KNOTS) + 1,) * 2), 0
    for size in (len(TOKEN_KNOTS), len(ROW_KNOTS), 1):
        sums[at : at + size, at : at + size] = np.tri(size)
        at += size
    sums[2 : len(TOKEN_KNOTS), :2] = 0.0
    sums[1, :3] = 0.25, 1.0, 0.25
    return sums


_SUMS: Final = _sums()
