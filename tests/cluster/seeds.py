"""What another fleet learned of the protocol tests' group: every K at every batch, speculation a fifth better than off."""

from __future__ import annotations

import math

from nightjar.cluster.storage.learned_file import About, LearnedFile
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.learned import LearnedCell, LearnedGroup
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


def some_file(*groups: LearnedGroup) -> LearnedFile:
    """A file of another cluster's third incarnation."""
    about = About(written_at="2026-05-01T12:00:00+00:00", incarnation=3, groups=("smollm2",))
    return LearnedFile(about=about, groups=groups or (some_group(),))
