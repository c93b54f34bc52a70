"""How long a step takes at every batch bucket and K, also where nobody measured it, and how sure that is.

Two layers, both linear algebra over the measured cells. A physical shape (arXiv 2406.14066 uses a plainer one): seconds are a
sum of non-negative parts that grow with K, rows, context and verified tokens v = rows * (1 + K), with hinges in v because a
GPU's step is flat until it is bound by compute. Then a Gaussian process over the logarithm of what the shape leaves: near a
measured cell its measurement counts, far from any the shape does, and the covariance says how far is far. Fails towards not
knowing: without evidence, the covariance alone keeps a planner from speculating. docs/planner.md compares it with simpler ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import (
    PRIOR_CLEAN_STEPS,
    STEP_VARIANCE,
    Cell,
    CellEvidence,
    Floats,
    Table,
    drift_variance,
    table_of,
)
from nightjar.policy.wire.batch_buckets import bucket_range

HINGES_VERIFIED_TOKENS: Final = np.array([0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
"""Verified tokens at which a step may start to grow faster."""
_SCALES: Final = np.array([1.0, 0.1, 0.1, 0.1 / 64, 0.1 / 16_384] + [0.1 / 16] * len(HINGES_VERIFIED_TOKENS))
"""Share of the shortest step that one unit of each part is worth: constant, any K, K, K * rows, context, hinges."""
_PRIOR: Final = np.array([1.0, 1.0, 0.7, 0.0, 0.0] + [0.02] * len(HINGES_VERIFIED_TOKENS))
"""The shape before evidence, in those units: 10 % for drafting at all and 7 % a draft token (8B with EAGLE: 5 to 14 % together)."""
_PRIOR_DEVIATION: Final = np.array([1.0, 2.0, 0.7, 1.0, 0.5] + [0.3] * len(HINGES_VERIFIED_TOKENS))
"""How wrong that may be. Drafting at all takes 40 % of a step with a half-billion draft in eager mode; a GPU bound by compute has
a hinge of about 1, a small CPU engine one of 20 that any step shows."""
_RIDGE: Final = 0.03
"""Weight of that prior against a cell that weighs 1: a tie-breaker where the cells leave a part open."""
LEAST_SHAPE: Final = 0.05
"""A step by the shape, in shortest steps measured, is never less: cells that contradict each other may leave no constant part."""
STARTING_STEP_SECONDS: Final = 0.02
"""Of K=0 before any evidence. Every comparison of K cancels it."""

ROWS_DEVIATION: Final = 0.10
"""Standard deviation of what the shape leaves, common to all K of a bucket."""
K_DEVIATION: Final = 0.12
"""The same between two K that differ by a factor of two in 1 + K. Fitted on six engines, as the others
(`make bench-model` judges the model)."""
CELL_DEVIATION: Final = 0.02
"""What no neighbour can tell of a cell: graph sizes, padding, tiles."""
ROWS_OCTAVES: Final = 2.0
"""Distance in doublings of the batch over which cells resemble each other, in step times and in what ceilings keep."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Log seconds of a step by bucket and K (index into those asked for), at each bucket's usual rows and context."""

    log_seconds: Floats
    """(buckets, ks)."""
    covariance: Floats
    """(buckets, ks, ks): of the log seconds of one bucket's K among each other."""
    rows: Floats
    """(buckets,): decode rows that the prediction is for."""


def predict_step_times(
    cells: Mapping[Cell, CellEvidence],
    ks: Sequence[int],
    buckets: range,
    max_num_seqs: int,
    now_s: float,
    mixed_cells: Mapping[Cell, CellEvidence] = MappingProxyType({}),
) -> StepTimes:
    """Step times of `buckets` at `ks` from decayed evidence that is as old as it is at `now_s`.

    Cells with a K that is not among `ks` help the shape as well. `mixed_cells`, those with prefill, say alone how many rows a
    bucket usually has that has no pure decode step: an engine that stays nearly full has them at its end.
    """
    of_buckets = _buckets_of(cells)
    k = np.array([cell.num_speculative_tokens for cell in cells], dtype=np.int64)
    sums = table_of(list(cells.values()))
    bucket_rows, context_per_row = _usual(of_buckets, sums, buckets, max_num_seqs, mixed_cells)
    shape = (len(buckets), len(ks))
    asked = _Points(
        buckets=np.repeat(np.array(buckets), len(ks)),
        rows=np.repeat(bucket_rows, len(ks)),
        k=np.tile(np.array(ks, dtype=float), len(buckets)),
        context=np.repeat(bucket_rows * context_per_row, len(ks)),
    )
    alike = _kernel(asked.first(len(ks)), asked.first(len(ks)))
    if not cells:
        shape_seconds, doubt = _shape_seconds(asked.parts(), _PRIOR)
        log_seconds = np.log(STARTING_STEP_SECONDS * shape_seconds)
        return StepTimes(log_seconds.reshape(shape), alike + _within_buckets(doubt, shape), bucket_rows)
    measured, seen, noise = _measured(of_buckets, k, sums, now_s)
    shortest = seen.min()
    theta = _shape(measured.parts(), np.exp(shortest - seen), noise)
    seen_shape, seen_doubt = _shape_seconds(measured.parts(), theta)
    asked_shape, asked_doubt = _shape_seconds(asked.parts(), theta)
    across, among = _kernel(asked, measured), _kernel(measured, measured) + np.diag(noise)
    log_seconds = np.log(asked_shape) + shortest + across @ np.linalg.solve(among, seen - shortest - np.log(seen_shape))
    across += asked_doubt @ seen_doubt.T
    explained = np.linalg.solve(among + seen_doubt @ seen_doubt.T, across.T).reshape(-1, *shape).transpose(1, 0, 2)
    covariance = alike + _within_buckets(asked_doubt, shape) - across.reshape(*shape, -1) @ explained
    return StepTimes(log_seconds.reshape(shape), covariance, bucket_rows)


def step_noise(cells: Mapping[Cell, CellEvidence]) -> float:
    """Standard deviation of the logarithm of one pure decode step's time, within a cell; assumed where too few steps tell."""
    squares = steps = 0.0
    for cell in cells.values():
        if cell.log_seconds_squared and cell.steps > 1.0:
            squares += max(cell.log_seconds_squared - cell.log_seconds**2 / cell.steps, 0.0)
            steps += cell.steps - 1.0
    return math.sqrt((squares + STEP_VARIANCE) / (steps + 1.0))


@dataclass(frozen=True, slots=True)
class _Points:
    """Cells with what explains their step time; equally long columns."""

    buckets: npt.NDArray[np.int64]
    rows: Floats
    k: Floats
    context: Floats

    def first(self, count: int) -> Self:
        return type(self)(self.buckets[:count], self.rows[:count], self.k[:count], self.context[:count])

    def verified(self) -> Floats:
        return self.rows * (1.0 + self.k)

    def parts(self) -> Floats:
        """(points, parts): what the seconds are a sum of, in _SCALES."""
        columns = np.empty((len(self.rows), len(_SCALES)))
        columns[:, 0] = 1.0
        columns[:, 1] = self.k > 0
        columns[:, 2] = self.k
        columns[:, 3] = self.k * self.rows
        columns[:, 4] = self.context
        columns[:, 5:] = np.maximum(self.verified()[:, None] - HINGES_VERIFIED_TOKENS, 0.0)
        columns *= _SCALES
        return columns


def _buckets_of(cells: Mapping[Cell, CellEvidence]) -> npt.NDArray[np.int64]:
    return np.array([cell.batch_bucket for cell in cells], dtype=np.int64)


def _usual(
    of_buckets: npt.NDArray[np.int64], sums: Table, buckets: range, max_num_seqs: int, mixed_cells: Mapping[Cell, CellEvidence]
) -> tuple[Floats, Floats]:
    """Rows and context tokens a row of each bucket: its own where it has evidence, else the rows of its steps with prefill or its
    middle, and the group's context."""
    ranges = np.array([bucket_range(bucket, max_num_seqs) for bucket in buckets], dtype=float)
    usual_rows = np.sqrt(ranges[:, 0] * ranges[:, 1])
    mixed_steps, mixed_rows, _ = _by_bucket(_buckets_of(mixed_cells), table_of(list(mixed_cells.values())), len(buckets))
    steps, rows, context = _by_bucket(of_buckets, sums, len(buckets))
    np.divide(mixed_rows, mixed_steps, out=usual_rows, where=mixed_steps > 0)
    np.divide(rows, steps, out=usual_rows, where=steps > 0)
    context_per_row = np.full(len(buckets), context.sum() / max(rows.sum(), 1.0))
    np.divide(context, rows, out=context_per_row, where=steps > 0)
    return usual_rows, context_per_row


def _by_bucket(of_buckets: npt.NDArray[np.int64], sums: Table, count: int) -> tuple[Floats, Floats, Floats]:
    """(count,) each: steps, rows and context tokens of the first so many buckets."""
    reachable = of_buckets < count
    there = of_buckets[reachable]
    steps, rows, context = (
        np.bincount(there, sums[name][reachable], count).astype(np.float64) for name in ("steps", "rows", "context_tokens")
    )
    return steps, rows, context


def _measured(
    buckets: npt.NDArray[np.int64], k: npt.NDArray[np.int64], sums: Table, now_s: float
) -> tuple[_Points, Floats, Floats]:
    """The measured cells, the mean log seconds of each and its variance."""
    steps, mean, squares = sums["steps"], sums["log_seconds"] / sums["steps"], sums["log_seconds_squared"]
    told = squares > 0
    scatter = np.where(told, np.maximum(squares - steps * mean * mean, 0.0), 0.0).sum()
    degrees = np.where(told, np.maximum(steps - 1.0, 0.0), 0.0).sum()
    noise = (scatter + PRIOR_CLEAN_STEPS * STEP_VARIANCE) / (degrees + PRIOR_CLEAN_STEPS)
    points = _Points(buckets, sums["rows"] / steps, k.astype(float), sums["context_tokens"] / steps)
    drifted = np.array([drift_variance(now_s - measured_at_s) for measured_at_s in sums["measured_at_s"].tolist()])
    return points, mean, noise / steps + drifted


def _kernel(one: _Points, other: _Points) -> Floats:
    """Covariance of what the shape leaves, between two lists of cells.

    A part common to all K, one that wanders as K grows (none at K=0), both alike in nearby batches, and each cell's own.
    """
    octaves = (np.log2(one.rows)[:, None] - np.log2(other.rows)[None, :]) / ROWS_OCTAVES
    growth = np.minimum(np.log2(1.0 + one.k)[:, None], np.log2(1.0 + other.k)[None, :])
    alike = np.exp(-0.5 * octaves * octaves) * (ROWS_DEVIATION**2 + K_DEVIATION**2 * growth)
    same = (one.buckets[:, None] == other.buckets[None, :]) & (one.k[:, None] == other.k[None, :])
    kernel: Floats = alike + CELL_DEVIATION**2 * same
    return kernel


def _shape_seconds(parts: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Seconds of each cell by the shape, in shortest steps, and how each part's prior doubt moves their logarithm."""
    seconds = np.maximum(parts @ theta, LEAST_SHAPE)
    return seconds, parts * _PRIOR_DEVIATION / seconds[:, None]


def _within_buckets(doubt: Floats, shape: tuple[int, int]) -> Floats:
    by_bucket = doubt.reshape(*shape, -1)
    product: Floats = by_bucket @ by_bucket.transpose(0, 2, 1)
    return product


def _shape(parts: Floats, weights: Floats, noise: Floats) -> Floats:
    """Non-negative weights of the parts, least squares of relative errors, with the ridge to the prior.

    `weights` are shortest step / step, so that each cell's target is 1. A cell counts less the noisier it is.
    """
    trust = ROWS_DEVIATION**2 / (ROWS_DEVIATION**2 + noise)
    relative = parts * weights[:, None]
    gram = (relative * trust[:, None]).T @ relative + _RIDGE**2 * np.eye(len(_PRIOR))
    return non_negative_least_squares(gram, trust @ relative + _RIDGE**2 * _PRIOR)


def non_negative_least_squares(gram: Floats, target: Floats) -> Floats:
    """x >= 0 that minimises x @ gram @ x / 2 - target @ x, for a positive definite `gram` (Lawson and Hanson 1974).

    >>> non_negative_least_squares(np.eye(2), np.array([1.0, -1.0])).tolist()
    [1.0, 0.0]
    """
    x = _without_negative_weights(gram, target)
    if (target - gram @ x <= 1e-9).all():
        return x
    x = np.zeros(len(target))
    free = np.zeros(len(target), dtype=bool)
    for _ in range(3 * len(target)):
        gradient = np.where(free, -np.inf, target - gram @ x)
        entering = int(np.argmax(gradient))
        if gradient[entering] <= 1e-9:
            break
        free[entering] = True
        while True:
            index = np.flatnonzero(free)
            wished = np.zeros(len(target))
            wished[index] = np.linalg.solve(gram[np.ix_(index, index)], target[index])
            if wished[index].min() > 0.0:
                x = wished
                break
            falling = free & (wished <= 0.0)
            x = x + float(np.min(x[falling] / (x[falling] - wished[falling]))) * (wished - x)
            free &= x > 1e-12
            x[~free] = 0.0
    return x


def _without_negative_weights(gram: Floats, target: Floats) -> Floats:
    """All weights, then without those that came out negative, until none does: mostly the solution, in two or three steps."""
    kept = np.arange(len(target))
    while True:
        weights = np.linalg.solve(gram[np.ix_(kept, kept)], target[kept])
        if weights.size == 0 or weights.min() >= 0.0:
            x = np.zeros(len(target))
            x[kept] = weights
            return x
        kept = kept[weights > 0.0]
