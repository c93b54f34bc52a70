"""What an OFF step should take at each batch, as engines are told it for their guard (policy.step.guard).

Only buckets whose OFF was measured have an expectation: the guard's own checks would find out a wrong guess, at a cost. An
expectation that no engine's step can have, as one absurd report makes it in a group of one, is none (INV-10).
"""

from __future__ import annotations

import math
from typing import Final

from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.evidence.implausible import LONGEST_STEP_SECONDS, SHORTEST_STEP_SECONDS
from nightjar.policy.wire.record import MAX_BATCH_SIZE
from nightjar.policy.wire.settings import OffStep

NEWS_SHARE: Final = 0.03
"""An expectation that moved by less is not sent again: settings change when there is news, not with every measurement."""


def expected_off_steps(
    evidence: Evidence, model: GoodputModel, calibration_clean_steps: int, before: tuple[OffStep, ...]
) -> tuple[OffStep, ...]:
    """OFF steps of the measured buckets, ascending; those sent before where nothing moved by a share of NEWS_SHARE."""
    now = tuple(
        OffStep(decode_rows=min(max(rows, 1.0), MAX_BATCH_SIZE), step_seconds=step_seconds)
        for bucket, rows in enumerate(model.rows.tolist())
        if evidence.is_measured(bucket, 0, calibration_clean_steps)
        and SHORTEST_STEP_SECONDS <= (step_seconds := rows / model.goodput_tokens_per_s(bucket, 0)) <= LONGEST_STEP_SECONDS
    )
    return before if len(now) == len(before) and all(map(_is_no_news, before, now)) else now


def _is_no_news(before: OffStep, now: OffStep) -> bool:
    """Compared at the same rows: where steps take time by rows, another mean of rows alone is no news."""
    share = math.log(now.step_seconds / before.step_seconds)
    return abs(share) < NEWS_SHARE or abs(share - math.log(now.decode_rows / before.decode_rows)) < NEWS_SHARE
