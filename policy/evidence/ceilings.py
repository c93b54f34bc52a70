"""Tokens that a row emits in a step under each ceiling, where vLLM verifies as many of the K drafts as it likes.

Under adaptive verification nobody outside the GPU knows how many drafts were admitted, so what was accepted of a position says
nothing of a shorter K: position 3 is empty because the draft was wrong, or because it was not looked at. What is known is what came
out: tokens by batch bucket and ceiling. Their logarithm is a Gaussian process, as that of step times is (step_time.py): around a
shape in which each draft is kept with the same probability given the one before, it wanders with the doublings of 1 + K, alike in
nearby batches, and not at all at K = 0, where a row emits one token. So a ceiling that never ran is what its neighbours say, with a
doubt that grows with their distance. Fails towards not knowing: without evidence the shape is the prior of acceptance.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.acceptance import PRIOR_FIRST_ACCEPTANCE, PRIOR_ROWS, ROWS_PER_INDEPENDENT_ROW, drift
from nightjar.policy.evidence.cells import Cell, CellEvidence, Floats, table_of
from nightjar.policy.evidence.step_time import ROWS_OCTAVES

KEPT_DEVIATION: Final = 0.2
"""Standard deviation of the logarithm of a row's tokens between two ceilings that differ by a factor of two in 1 + K, beside the
shape: a full engine may admit nearly all of one draft and hardly any of a second."""
MOST_SHAPE_ROWS: Final = 200.0
"""Rows that one cell weighs as in the shape, however many it has: the shape is between all."""
LEAST_VARIANCE: Final = 0.25
"""Of the tokens of one row and step, where all that were seen are alike."""
ALL_KEPT: Final = 1e-6
"""A share of lost drafts below which all are kept."""


@dataclass(frozen=True, slots=True)
class EmittedTokens:
    """Tokens of a row and step by bucket and K, the bonus token included."""

    tokens: Floats
    """(buckets, ks), from 1 to 1 + K."""
    covariance: Floats
    """(buckets, ks, ks), of their logarithms, among the K of a bucket."""


def predict_emitted(cells: Mapping[Cell, CellEvidence], ks: Sequence[int], rows: Floats, now_s: float) -> EmittedTokens:
    """What `ks` emit in buckets of so many `rows`, as of `now_s`.

    >>> seen = {Cell(3, 3): CellEvidence(100.0, -300.0, 400.0, generated_tokens=880.0)}
    >>> found = predict_emitted(seen, (0, 1, 3, 5), np.array([4.0]), 0.0)
    >>> [round(float(tokens), 2) for tokens in found.tokens[0]]
    [1.0, 1.61, 2.2, 2.43]
    >>> [round(float(variance) ** 0.5, 2) for variance in np.diag(found.covariance[0])]
    [0.0, 0.15, 0.07, 0.17]
    """
    drafting = {cell: known for cell, known in cells.items() if cell.num_speculative_tokens and known.rows > 0.0}
    asked_k = np.array(ks, dtype=float)
    log_shape, growth = np.log(kept_at(PRIOR_FIRST_ACCEPTANCE, asked_k)), np.log2(1.0 + asked_k)
    among_ks = KEPT_DEVIATION**2 * np.minimum.outer(growth, growth)
    if not drafting:
        return _bounded(np.tile(log_shape, (len(rows), 1)), np.tile(among_ks, (len(rows), 1, 1)), asked_k)
    k = np.array([cell.num_speculative_tokens for cell in drafting], dtype=float)
    sums = table_of(list(drafting.values()))
    mean = np.clip(sums["generated_tokens"] / sums["rows"], 1.0, 1.0 + k)
    independent_rows = sums["rows"] / ROWS_PER_INDEPENDENT_ROW
    scatter = np.maximum((mean - 1.0) * (1.0 + k - mean), LEAST_VARIANCE) / (independent_rows * mean**2)
    aged = np.array([drift(now_s - at_s) for at_s in sums["measured_at_s"].tolist()])
    noise = scatter + ((mean - 1.0) / mean) ** 2 * aged
    weights = np.minimum(sums["rows"], MOST_SHAPE_ROWS)
    kept = acceptance_giving(mean, k)
    common = float((weights @ kept + PRIOR_ROWS * PRIOR_FIRST_ACCEPTANCE) / (weights.sum() + PRIOR_ROWS))
    above_shape = np.log(mean) - np.log(kept_at(common, k))
    seen_growth, seen_rows = np.log2(1.0 + k), sums["rows"] / sums["steps"]
    gram = _alike(seen_rows, seen_rows) * KEPT_DEVIATION**2 * np.minimum.outer(seen_growth, seen_growth) + np.diag(noise)
    # (buckets, ks, cells): what each measured cell has in common with each K of each bucket.
    across = _alike(rows, seen_rows)[:, None, :] * KEPT_DEVIATION**2 * np.minimum(growth[:, None], seen_growth[None, :])[None, :, :]
    log_tokens = np.log(kept_at(common, asked_k))[None, :] + across @ np.linalg.solve(gram, above_shape)
    told = np.linalg.solve(gram, across.reshape(-1, len(k)).T).T.reshape(across.shape)
    return _bounded(log_tokens, among_ks[None, :, :] - across @ told.transpose(0, 2, 1), asked_k)


def acceptance_giving(tokens: Floats, k: Floats) -> Floats:
    """The probability, the same at each position, with which drafts are kept where rows emit so many `tokens` at K = `k`.

    >>> [round(float(kept), 3) for kept in acceptance_giving(np.array([1.0, 1.75, 3.0]), np.array([4.0, 2.0, 2.0]))]
    [0.0, 0.5, 1.0]
    """
    low, high = np.zeros(len(tokens)), np.ones(len(tokens))
    for _ in range(30):
        middle = (low + high) / 2.0
        too_few = kept_at(middle, k) < tokens
        low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
    return high


def kept_at(acceptance: Floats | float, k: Floats) -> Floats:
    """1 + a + a^2 + ... + a^k, for each K.

    >>> kept_at(0.5, np.array([0.0, 1.0, 2.0])).tolist(), kept_at(1.0, np.array([3.0])).tolist()
    ([1.0, 1.5, 1.75], [4.0])
    """
    lost = 1.0 - np.asarray(acceptance)
    tokens: Floats = np.where(lost < ALL_KEPT, k + 1.0, (1.0 - (1.0 - lost) ** (k + 1.0)) / np.maximum(lost, ALL_KEPT))
    return tokens


def _alike(one: Floats, other: Floats) -> Floats:
    octaves = (np.log2(one)[:, None] - np.log2(other)[None, :]) / ROWS_OCTAVES
    alike: Floats = np.exp(-0.5 * octaves * octaves)
    return alike


def _bounded(log_tokens: Floats, covariance: Floats, k: npt.NDArray[np.float64]) -> EmittedTokens:
    return EmittedTokens(np.clip(np.exp(log_tokens), 1.0, 1.0 + k), covariance)
