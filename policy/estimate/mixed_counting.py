"""What a report adds to a group's knowledge of steps with prefill: differences of cumulative sums, checked like all others.

Fails closed: sums that no engine can have raise ImplausibleCountersError, and nothing of the report is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from nightjar.policy.estimate.evidence import Cell, MixedEvidence
from nightjar.policy.estimate.implausible import check_steps, require
from nightjar.policy.wire.report import Counters, GroupKey

MOST_PREFILL_TOKENS: Final = 1 << 20
"""In one step: vLLM's max_num_batched_tokens is a hundred times less."""


class CountedMixed(NamedTuple):
    """Cumulative sums of one cell's steps with prefill as last counted."""

    steps: int
    step_seconds: float
    decode_rows: int
    prefill_tokens: int
    draft_tokens: int


def count_mixed(
    counters: Counters, before: Mapping[Cell, CountedMixed], group: GroupKey
) -> tuple[dict[Cell, MixedEvidence], dict[Cell, CountedMixed]]:
    """What the report adds by cell, and the next baseline. Cells that are missing now are simply not counted any more."""
    now: dict[Cell, CountedMixed] = {}
    new: dict[Cell, MixedEvidence] = {}
    for cell in counters.mixed_cells:
        key = (cell.batch_bucket, cell.num_speculative_tokens)
        last = before.get(key, CountedMixed(0, 0.0, 0, 0, 0))
        if last.steps == cell.steps:
            now[key] = last
            continue
        now[key] = CountedMixed(cell.steps, cell.step_seconds, cell.decode_rows, cell.prefill_tokens, cell.draft_tokens)
        added = CountedMixed(
            cell.steps - last.steps,
            cell.step_seconds - last.step_seconds,
            cell.decode_rows - last.decode_rows,
            cell.prefill_tokens - last.prefill_tokens,
            cell.draft_tokens - last.draft_tokens,
        )
        _check(key, added, group)
        new[key] = MixedEvidence(*map(float, added))
    return new, now


def _check(key: Cell, added: CountedMixed, group: GroupKey) -> None:
    check_steps(key, group, added.steps, added.step_seconds, added.decode_rows, " with prefill")
    require(
        added.steps <= added.prefill_tokens <= MOST_PREFILL_TOKENS * added.steps,
        key,
        f"{added.prefill_tokens} prompt tokens in {added.steps} steps, allowed are 1 to {MOST_PREFILL_TOKENS} a step",
    )
    most_drafts = added.decode_rows * group.max_num_speculative_tokens
    require(
        0 <= added.draft_tokens <= most_drafts,
        key,
        f"{added.draft_tokens} drafts verified in steps with prefill, allowed are 0 to {most_drafts}",
    )
