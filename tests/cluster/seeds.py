"""What another fleet learned of the protocol tests' group: every K at every batch, speculation a fifth better than off."""

from __future__ import annotations

import math

from nightjar.cluster.storage.learned_file import About, LearnedFile
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.learned import LearnedCell, LearnedGroup
from nightjar.policy.status.stock_table import Lost, StockTable, WorstBatches
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import TableRow
from tests.cluster.protocol import GROUP

BATCHES = (1.0, 2.0, 3.0, 4.5, 6.5, 8.0)
"""Mean rows of each batch bucket up to 8 sequences."""
LENGTHS = (0, 1, 2, 3, 5)


def some_group(key: GroupKey = GROUP, steps: float = 500.0) -> LearnedGroup:
    """Steps of 10 ms and 4 % more for each draft token, of which four in five are accepted."""
    cells = tuple(
        LearnedCell(
            batch_bucket=bucket,
            num_speculative_tokens=length,
            steps=steps,
            log_step_seconds=steps * math.log(0.01 * (1.0 + 0.04 * length)),
            decode_rows=steps * rows,
            context_tokens=100.0 * steps * rows,
            age_s=12.5,
        )
        for bucket, rows in enumerate(BATCHES)
        for length in LENGTHS
    )
    return LearnedGroup(
        key=key,
        cells=cells,
        acceptance=AcceptanceEvidence((3000.0,) * 5, tuple(3000.0 * 0.8**position for position in range(1, 6))),
        plan=(TableRow(first_batch_size=1, last_batch_size=8, num_speculative_tokens=5),),
    )


def some_file(*groups: LearnedGroup, vllm_tables: tuple[StockTable, ...] | None = None) -> LearnedFile:
    """A file of another cluster's third incarnation; of a release before tables where none is given."""
    about = About(written_at="2026-05-01T12:00:00+00:00", incarnation=3, groups=("smollm2",), vllm_tables=vllm_tables)
    return LearnedFile(about=about, groups=groups or (some_group(),))


def some_table(group_id: str = GROUP.group_id, why_none: str = "") -> StockTable:
    """K = 5 up to four requests and 2 up to eight, for 2 % of the tokens; or why there is none."""
    if why_none:
        return StockTable(group_id=group_id, why_none=why_none)
    rows = [
        TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k)
        for first, last, k in ((1, 4, 5), (5, 8, 2))
    ]
    return StockTable(
        group_id=group_id,
        drafter_kind="draft_model",
        num_speculative_tokens=5,
        rows=tuple(rows),
        lost=Lost(share=0.02, low=0.01, high=0.03),
        worst=WorstBatches(first_batch_size=6, last_batch_size=7, lost=0.041),
        measured_to=7,
        taxes_off=True,
    )
