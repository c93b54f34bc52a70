"""vLLM's own table of K by batch size, tuned on what was measured: the rival as an expert would set it up.

Its K = 0 is not ours: vLLM's drafter runs on. So off has to beat speculation by what that costs before the table says 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

DRAFTER_TAX: Final = 1.2
"""Off over vLLM's own K = 0, tokens/s: `make bench-engine` measures 1.13 to 1.27 at batches of 1 to 16."""


def tuned_table(speeds: Mapping[int, Mapping[int, float]], max_num_seqs: int) -> list[tuple[int, int, int]]:
    """Rows [first batch, last batch, K] from tokens/s by batch size and K; between two measured batches the nearer one's K.

    >>> tuned_table({1: {0: 5.0, 5: 12.0}, 6: {0: 30.0, 1: 36.0}, 32: {0: 70.0, 1: 50.0}}, 32)
    [(1, 2, 5), (3, 13, 1), (14, 32, 0)]
    """
    batches = sorted(speeds)
    lasts = [math.isqrt(smaller * larger) for smaller, larger in pairwise(batches)] + [max_num_seqs]
    firsts = [1] + [last + 1 for last in lasts[:-1]]
    return [(first, last, _best(speeds[batch])) for first, last, batch in zip(firsts, lasts, batches, strict=True)]


def _best(speeds: Mapping[int, float]) -> int:
    return max(speeds, key=lambda length: speeds[length] if length else speeds[length] / DRAFTER_TAX)
