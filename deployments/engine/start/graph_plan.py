"""Which full CUDA graphs an engine on model runner V2 will capture, and which steps will find none: told before it starts.

Follows vLLM 0.32 by hand (v1/worker/gpu/cudagraph_utils.py, `_init_candidates` and `dispatch`), so that `nightjar check` needs no
vLLM and no GPU; a test holds it against vLLM's own code. LoRA doubles what is captured and is not counted. Without known sizes
(vLLM's own defaults) there is no plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class GraphPlan:
    """The target's graphs for these capture sizes in tokens, tiers of K and at most so many rows."""

    sizes: tuple[int, ...]
    tiers: tuple[int, ...]
    max_num_seqs: int

    @cached_property
    def full_graphs(self) -> frozenset[tuple[int, int]]:
        """(tokens, tokens of a row) of every full graph: each size rounded up to whole rows of each K + 1."""
        most = self.max_num_seqs * (max(self.tiers) + 1)
        found = set()
        for size in self.sizes:
            for row_tokens in (length + 1 for length in self.tiers):
                tokens = -(-size // row_tokens) * row_tokens
                if tokens <= min(most, max(self.sizes)) and tokens // row_tokens <= self.max_num_seqs:
                    found.add((tokens, row_tokens))
        return frozenset(found)

    @cached_property
    def _full_sizes(self) -> list[int]:
        return sorted({tokens for tokens, _ in self.full_graphs})

    def has_full(self, rows: int, num_speculative_tokens: int) -> bool:
        """Whether a step in which `rows` decode and verify K drafts each finds one. vLLM looks at the next larger size alone."""
        row_tokens = num_speculative_tokens + 1
        place = bisect_left(self._full_sizes, rows * row_tokens)
        return place < len(self._full_sizes) and (self._full_sizes[place], row_tokens) in self.full_graphs

    def misses(self) -> list[tuple[int, int]]:
        """(rows, K) of the tiers that find no full graph and run with piecewise ones or, above the largest size, with none."""
        rows = range(1, self.max_num_seqs + 1)
        return [(each, length) for length in self.tiers for each in rows if not self.has_full(each, length)]

    def in_words(self) -> str:
        """For an operator.

        >>> GraphPlan((1, 2, 4, 8), (0, 1), 4).in_words()
        '6 full graphs of the target; all 8 pairs of batch and K have one'
        """
        pairs, misses = self.max_num_seqs * len(self.tiers), self.misses()
        found = f"{len(self.full_graphs)} full graphs of the target; "
        if not misses:
            return f"{found}all {pairs} pairs of batch and K have one"
        missing = "; ".join(
            f"K = {length} at batch {_ranges([rows for rows, missed in misses if missed == length])}"
            for length in self.tiers
            if any(missed == length for _, missed in misses)
        )
        return f"{found}{len(misses)} of {pairs} pairs of batch and K have none: {missing}"


def _ranges(rows: Sequence[int]) -> str:
    """Ascending numbers in short.

    >>> _ranges([1, 2, 3, 7])
    '1 to 3, 7'
    """
    found: list[tuple[int, int]] = []
    for each in rows:
        first = found.pop()[0] if found and found[-1][1] == each - 1 else each
        found.append((first, each))
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in found)
