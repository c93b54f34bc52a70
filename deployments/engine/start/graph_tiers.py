"""Which K an engine captures CUDA graphs for, at which sizes, and which steps will find no full graph: known before it starts.

On model runner V2 vLLM captures full graphs for each K that its table names, and a step at any other K runs without one.
Every K named makes graphs for each batch size, in the target and in an EAGLE head, and their memory is taken off the KV cache. So
the table names a few tiers, and the planner plans among those (GroupKey.graph_tiers). On runner V1 graphs are piecewise
and serve any K.

With several K one size hides another: vLLM looks only at the next larger size, which may be captured for another K (0.32,
v1/worker/gpu/cudagraph_utils.py, `_init_candidates`). Sizes that are common multiples of every K + 1 hide none.

A target with Mamba-like layers (Mamba, Mamba-2, short convolutions) gets no tiers: vLLM asserts at capture that a full graph
verifies the maximum (0.29 to 0.33, v1/attention/backends/mamba_attn.py, `build_for_cudagraph_capture`), after the whole model has
loaded. Its table names the maximum alone, and a step at any other K runs with piecewise graphs.

`GraphPlan` follows vLLM's candidates and dispatch by hand, so that `nightjar check` needs no vLLM and no GPU; a test holds it
against vLLM's own code. LoRA doubles what is captured and is not counted. Without known sizes (vLLM's own defaults) there is no
plan.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final

DEFAULT_TIERS: Final = (0, 1, 3)
"""And the engine's maximum."""
LARGEST_CAPTURE_SIZE: Final = 512
"""vLLM's own, in tokens (0.32, VllmConfig._set_cudagraph_sizes)."""
COARSEST_STEP: Final = 32
"""Of capture sizes, in tokens: beyond, a step would be padded by too much, and vLLM's own sizes stay."""
_SMALL_BATCHES: Final = (1, 2, 4)
GATED_DELTA_NET: Final = "linear_key_head_dim"
"""In the configuration of models with gated delta nets (Qwen3-Next, Qwen3.5), whose recurrent layers take any tiers."""
_SIZE_OPTIONS: Final = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")


def graph_tiers(wanted: Sequence[int] | None, max_num_speculative_tokens: int) -> tuple[int, ...]:
    """The K to capture for, ascending, 0 and the maximum among them; `wanted` None: the default.

    >>> graph_tiers(None, 5), graph_tiers([2, 9], 4), graph_tiers(None, 1)
    ((0, 1, 3, 5), (0, 2, 4), (0, 1))
    """
    chosen = DEFAULT_TIERS if wanted is None else wanted
    return tuple(sorted({0, max_num_speculative_tokens, *(k for k in chosen if k <= max_num_speculative_tokens)}))


def name_ks(ks: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Place each K of `wanted` at least once, since vLLM captures full graphs only for those that its table names.

    `ks[i]` is the K of batch size i + 1. The largest batch sizes give way, as few as possible, smaller K for larger
    batches; with fewer batch sizes than K the smallest K that remain unnamed win.

    >>> name_ks([3] * 8, (0, 1, 2, 3)), name_ks([5] * 6, (0, 1, 3, 5))
    ([3, 3, 3, 3, 3, 2, 1, 0], [5, 5, 5, 3, 1, 0])
    """
    every = set(wanted)
    for given_way in range(len(ks)):
        kept = list(ks[: len(ks) - given_way])
        missing = sorted(every - set(kept))
        if len(missing) <= given_way:
            return kept + list(ks[len(kept) : len(ks) - len(missing)]) + missing[::-1]
    missing = sorted(every - {ks[0]})[: len(ks) - 1]
    return [ks[0], *missing[::-1]]


def maximum_alone(max_num_speculative_tokens: int) -> str:
    """What an operator should know of a Mamba-like target."""
    return (
        f"full graphs for K = {max_num_speculative_tokens} alone, since the target has Mamba-like layers: steps at any other K run "
        "with piecewise graphs, or with none where cudagraph_mode has no piecewise ones"
    )


def to_table(ks: Sequence[int]) -> list[list[int]]:
    """K by batch size as vLLM's rows `[first, last, K]`.

    >>> to_table([3, 3, 0])
    [[1, 2, 3], [3, 3, 0]]
    """
    rows = []
    for k, group in groupby(enumerate(ks, start=1), key=lambda item: item[1]):
        sizes = [batch_size for batch_size, _ in group]
        rows.append([sizes[0], sizes[-1], k])
    return rows


def from_table(table: Sequence[Sequence[int]] | None, max_num_seqs: int, max_num_speculative_tokens: int) -> list[int]:
    """K of each batch size from 1 as vLLM takes it from the user's rows; the maximum everywhere where there are none.

    >>> from_table([[1, 2, 5], [4, 8, 1]], 5, 3)
    [3, 3, 3, 1, 1]
    """
    if not table:
        return [max_num_speculative_tokens] * max_num_seqs
    rows = sorted(tuple(row) for row in table)
    ks = []
    for batch_size in range(1, max_num_seqs + 1):
        reached = [k for first, _, k in rows if first <= batch_size]
        ks.append(min(reached[-1] if reached else rows[0][2], max_num_speculative_tokens))
    return ks


def capture_sizes(max_num_seqs: int, tiers: Sequence[int], largest: int = LARGEST_CAPTURE_SIZE) -> list[int]:
    """Sizes in tokens that each K + 1 divides, each K's largest batch and its smallest ones; empty where they would be too coarse.

    >>> capture_sizes(16, (0, 1, 3))
    [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64]
    """
    rows_to_tokens = [k + 1 for k in tiers]
    step = math.lcm(*rows_to_tokens)
    if step > COARSEST_STEP:
        return []
    most = min(max_num_seqs * max(rows_to_tokens), largest)
    sizes = set(range(step, most + 1, step))
    sizes |= {tokens * max_num_seqs for tokens in rows_to_tokens}
    sizes |= {tokens * batch_size for tokens in rows_to_tokens for batch_size in _SMALL_BATCHES if batch_size <= max_num_seqs}
    return sorted(size for size in sizes if size <= most)


def with_capture_sizes(compilation_config: object, sizes: Sequence[int]) -> object:
    """The user's `compilation_config` with these sizes in it.

    It stays as it is where the user chose sizes, and where it is no mapping (a level, or JSON in a string).
    """
    if not sizes or not isinstance(compilation_config, Mapping | None):
        return compilation_config
    users = dict(compilation_config or {})
    if any(users.get(option) is not None for option in _SIZE_OPTIONS):
        return compilation_config
    return users | {_SIZE_OPTIONS[0]: list(sizes)}


def sizes_in(compilation_config: object) -> tuple[int, ...]:
    """The capture sizes that it names, ascending; empty where they are left to vLLM."""
    sizes = compilation_config.get(_SIZE_OPTIONS[0]) if isinstance(compilation_config, Mapping) else None
    return tuple(sorted(sizes)) if isinstance(sizes, Sequence) and all(isinstance(size, int) for size in sizes) else ()


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
            for row_tokens in (k + 1 for k in self.tiers):
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
        return [(each, k) for k in self.tiers for each in rows if not self.has_full(each, k)]

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
            f"K = {k} at batch {_ranges([rows for rows, missed in misses if missed == k])}"
            for k in self.tiers
            if any(missed == k for _, missed in misses)
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
