"""vLLM's own table of K by batch size, tuned as an expert would: the rival in every comparison, measured or simulated.

Its K = 0 need not be ours: vLLM's drafter runs on there, so where speeds of off are those of a drafter that sleeps, off has to beat
speculation by what that costs before the table says 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby, pairwise

TableRows = tuple[tuple[int, int, int], ...]
"""vLLM's `num_speculative_tokens_per_batch_size`: first batch, last batch, K; ascending, without a gap."""


def tuned_table(speeds: Mapping[int, Mapping[int, float]], max_num_seqs: int, off_costs: float = 1.0) -> TableRows:
    """The fastest K at each batch from 1 to `max_num_seqs`, from tokens/s by batch size and K; of equals the smaller.

    Between two measured batches the nearer one decides, by their ratio. `off_costs` is by how much our off is faster than vLLM's.

    >>> tuned_table({1: {0: 5.0, 5: 12.0}, 6: {0: 30.0, 1: 36.0}, 32: {0: 70.0, 1: 50.0}}, 32)
    ((1, 2, 5), (3, 13, 1), (14, 32, 0))
    >>> tuned_table({batch: {0: batch, 1: 2.0} for batch in (1, 2, 3, 4)}, 4)
    ((1, 1, 1), (2, 4, 0))
    """
    batches = sorted(speeds)
    lasts = [math.isqrt(smaller * larger) for smaller, larger in pairwise(batches)] + [max_num_seqs]
    rows, first = [], 1
    for k, same in groupby(zip(lasts, batches, strict=True), lambda one: _fastest(speeds[one[1]], off_costs)):
        *_, (last, _) = same
        rows.append((first, last, k))
        first = last + 1
    return tuple(rows)


def _fastest(speeds: Mapping[int, float], off_costs: float) -> int:
    return max(speeds, key=lambda k: (speeds[k] if k else speeds[k] / off_costs, -k))
