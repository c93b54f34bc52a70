"""Static planners: tables of K by batch size that an operator writes once, TensorRT-LLM's and vLLM's, and one K per kind of step.

Sources: TensorRT-LLM's `draft_len_schedule` (pull requests 8194, 10860, 12262): a dict from the largest batch to a draft
length; above the last key speculation is off. vLLM's `num_speculative_tokens_per_batch_size` (pull request 32374,
`vllm/v1/spec_decode/dynamic/utils.py`): rows [first, last, K]; a gap takes the K of the row before it, and batches above the
last row keep the last K.

Assumed: both are tuned once for a profile at nominal acceptance (loadtests/arms/stock_table.py), which is what their documents
tell an operator to do.
Not modelled: vLLM counts every request of a step, also those in prefill. In a pure decode step that is the decode batch;
steps with prefill keep K here, for every planner. TensorRT-LLM's rolling acceptance threshold, which switches off for good,
is not used.

Nobody ships the pair of K, one for pure decode steps and one for those that also compute prompt tokens. It shows what planning the
two kinds of steps apart is worth without knowing more than which kind a step is.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from nightjar.loadtests.arms.stock_table import TableRows
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalOptionsError,
    StepOutcome,
    StepView,
    number_option,
    refuse_unknown,
    text_option,
)


class Table:
    """K by decode batch size from a list, which begins at batch 0. It learns nothing."""

    plans_mixed_steps = False

    def __init__(self, ks: Sequence[int]) -> None:
        self._ks = ks

    def choose(self, view: StepView) -> int:
        """The table's K."""
        return self._ks[min(view.decode_batch_size, len(self._ks) - 1)]

    def in_mixed_step(self, view: StepView) -> int:
        """The table's K: both engines look it up before every step."""
        return self.choose(view)

    def learn(self, outcome: StepOutcome) -> None:
        """Nothing to learn."""


def build_tensorrt_llm(options: LocalOptions, context: LocalContext) -> Table:
    """Option: `draft_len_schedule`, "4=4,8=2,32=1" for K = 4 up to batch 4, 2 up to 8, 1 up to 32 and 0 above."""
    refuse_unknown(options, ("draft_len_schedule",))
    rows = [(largest, k) for largest, k in _numbers(options, "draft_len_schedule", r"(\d+)=(\d+)")]
    largest = [row[0] for row in rows]
    if largest != sorted(set(largest)):
        raise LocalOptionsError(f"option draft_len_schedule: batch sizes must ascend, got {largest}")
    ks = [k for _, k in rows] + [0]
    return Table([ks[bisect_left(largest, size)] for size in range(context.max_num_seqs + 1)])


def build_vllm(options: LocalOptions, context: LocalContext) -> Table:
    """Option: `num_speculative_tokens_per_batch_size`, "1-4=3,9-32=1" for rows [1, 4, 3] and [9, 32, 1]."""
    refuse_unknown(options, ("num_speculative_tokens_per_batch_size",))
    rows = _numbers(options, "num_speculative_tokens_per_batch_size", r"(\d+)-(\d+)=(\d+)")
    edges = [edge for first, last, _ in rows for edge in (first, last + 1)]
    if edges[0] != 1 or edges != sorted(edges):
        raise LocalOptionsError(f"option num_speculative_tokens_per_batch_size: rows must begin at 1 and ascend, got {rows}")
    ks = [rows[0][2]] * (context.max_num_seqs + 1)
    for first, _, k in rows:
        ks[first:] = [k] * max(len(ks) - first, 0)
    return Table(ks)


class Pair:
    """Two K, one for each kind of step."""

    plans_mixed_steps = True

    def __init__(self, pure_k: int, mixed_k: int) -> None:
        self._pure_k, self._mixed_k = pure_k, mixed_k

    def choose(self, view: StepView) -> int:
        """The K of this kind of step."""
        return self._mixed_k if view.prefill_tokens else self._pure_k

    def in_mixed_step(self, view: StepView) -> int:  # noqa: ARG002 - not asked
        """The K of a step with prefill."""
        return self._mixed_k

    def learn(self, outcome: StepOutcome) -> None:
        """Nothing to learn."""


def build_pair(options: LocalOptions, context: LocalContext) -> Pair:
    """Options: `pure_k` and `mixed_k`."""
    refuse_unknown(options, ("pure_k", "mixed_k"))
    pure_k, mixed_k = (
        int(number_option(options, name, 0, 0, context.max_num_speculative_tokens)) for name in ("pure_k", "mixed_k")
    )
    return Pair(pure_k, mixed_k)


def tensorrt_llm_text(rows: TableRows) -> str:
    """Rows as `draft_len_schedule`; rows of K = 0 at the end are left out, as they are implied.

    >>> tensorrt_llm_text([(1, 4, 3), (5, 16, 1), (17, 64, 0)])
    '4=3,16=1'
    """
    kept = list(rows)
    while len(kept) > 1 and kept[-1][2] == 0:
        kept.pop()
    return ",".join(f"{last}={k}" for _, last, k in kept)


def vllm_text(rows: TableRows) -> str:
    """Rows as `num_speculative_tokens_per_batch_size`.

    >>> vllm_text([(1, 4, 3), (5, 16, 0)])
    '1-4=3,5-16=0'
    """
    return ",".join(f"{first}-{last}={k}" for first, last, k in rows)


def _numbers(options: LocalOptions, name: str, form: str) -> list[tuple[int, ...]]:
    text = text_option(options, name, "")
    parts = [re.fullmatch(form, part.strip()) for part in text.split(",")]
    found = [tuple(int(number) for number in part.groups()) for part in parts if part is not None]
    if len(found) != len(parts):
        raise LocalOptionsError(f"option {name} is {text[:60]!r}; each part must be of the form {form}")
    return found
