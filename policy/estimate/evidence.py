"""What a group has learned: step time by cell (batch bucket and K) and acceptance by position.

Sums decay with the clean steps that arrive and lose weight with the time that passes without any, so that the fleet follows
drift, an arm that does not run cannot look well known for ever, and memory stays O(groups). Acceptance is one for all
cells: a cell needs only its step time measured, a dozen steps, not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nightjar.policy.estimate.acceptance import AcceptanceEvidence, tokens_per_row

Cell = tuple[int, int]
"""Batch bucket and num_speculative_tokens."""

MEASURED_SHARE: Final = 0.75
"""Share of `calibration_clean_steps` at which a cell counts as measured: decay and steps cut short must not reopen it."""
STEP_VARIANCE: Final = 0.05**2
"""Of the logarithm of one clean step's time, where a cell has too few steps to tell: engines show 2 to 10 %."""
DRIFT_VARIANCE_PER_SECOND: Final = 0.03**2 / 600.0
"""How fast a true step time wanders: 3 % in ten minutes (contexts grow, cards throttle, neighbours come and go)."""
MOST_DRIFT_VARIANCE: Final = 0.1**2
"""However old a measurement is, it says more than none: the shape of an engine's step times hardly changes over night."""


def drift_variance(age_s: float) -> float:
    """Variance of the log step time that `age_s` seconds without a measurement add.

    >>> round(drift_variance(600.0) ** 0.5, 3), round(drift_variance(1e9) ** 0.5, 3), drift_variance(-5.0)
    (0.03, 0.1, 0.0)
    """
    return min(max(age_s, 0.0) * DRIFT_VARIANCE_PER_SECOND, MOST_DRIFT_VARIANCE)


@dataclass(frozen=True, slots=True)
class CellEvidence:
    """Decayed sums over clean steps: how many, the logarithms of their seconds, decode rows, context tokens, squared logarithms.

    `measured_at_s` is when the last of them was heard of, on the caller's clock; what is stored and read back is new again.
    """

    steps: float
    log_seconds: float
    rows: float
    context_tokens: float = 0.0
    log_seconds_squared: float = 0.0
    measured_at_s: float = 0.0

    def plus(self, newer: CellEvidence, half_life_steps: float) -> CellEvidence:
        """This evidence aged by the newer steps and by the time between, and the newer steps.

        >>> CellEvidence(8.0, -8.0, 32.0).plus(CellEvidence(4.0, -2.0, 20.0), half_life_steps=4.0)
        CellEvidence(steps=8.0, log_seconds=-6.0, rows=36.0, context_tokens=0.0, log_seconds_squared=0.0, measured_at_s=0.0)
        """
        share_left = 0.5 ** (newer.steps / half_life_steps) * self._weight_at(newer.measured_at_s)
        return CellEvidence(
            self.steps * share_left + newer.steps,
            self.log_seconds * share_left + newer.log_seconds,
            self.rows * share_left + newer.rows,
            self.context_tokens * share_left + newer.context_tokens,
            self.log_seconds_squared * share_left + newer.log_seconds_squared,
            max(self.measured_at_s, newer.measured_at_s),
        )

    def _weight_at(self, now_s: float) -> float:
        """Share of their weight that the sums have left: a true step time wanders, so many old ones tell little."""
        return 1.0 / (1.0 + self.steps * drift_variance(now_s - self.measured_at_s) / STEP_VARIANCE)

    def at(self, now_s: float) -> CellEvidence:
        """The same sums, heard of at `now_s`."""
        return CellEvidence(self.steps, self.log_seconds, self.rows, self.context_tokens, self.log_seconds_squared, now_s)

    @property
    def step_seconds(self) -> float:
        """Geometric mean of the step time: one stalled step in a hundred moves it by a few percent, not by its length."""
        return math.exp(self.log_seconds / self.steps)


@dataclass(frozen=True, slots=True)
class MixedEvidence:
    """Decayed sums over steps that computed prompt tokens besides decode rows: how many, seconds, decode rows, prompt tokens, and
    drafts that they verified."""

    steps: float
    seconds: float
    rows: float
    prefill_tokens: float
    draft_tokens: float

    def plus(self, newer: MixedEvidence, half_life_steps: float) -> MixedEvidence:
        """This evidence aged by the newer steps, and the newer steps.

        >>> MixedEvidence(8.0, 2.0, 32.0, 800.0, 64.0).plus(MixedEvidence(4.0, 1.0, 20.0, 100.0, 40.0), half_life_steps=4.0)
        MixedEvidence(steps=8.0, seconds=2.0, rows=36.0, prefill_tokens=500.0, draft_tokens=72.0)
        """
        share_left = 0.5 ** (newer.steps / half_life_steps)
        return MixedEvidence(
            self.steps * share_left + newer.steps,
            self.seconds * share_left + newer.seconds,
            self.rows * share_left + newer.rows,
            self.prefill_tokens * share_left + newer.prefill_tokens,
            self.draft_tokens * share_left + newer.draft_tokens,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a group knows. `cells` and `mixed_cells` are never changed in place.

    `mixed_steps_per_token` and `prefill_tokens_per_token`: steps with prefill beside decode rows, and prompt tokens, that come with
    each generated token, as replicas report of late.
    """

    cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)
    mixed_cells: Mapping[Cell, MixedEvidence] = field(default_factory=dict)
    mixed_steps_per_token: float = 0.0
    prefill_tokens_per_token: float = 0.0

    @property
    def only_length(self) -> int | None:
        """The one K that all of it is of; None where there are several, or none. Then nothing is known of any other K."""
        lengths = {length for _, length in self.cells}
        return lengths.pop() if len(lengths) == 1 else None

    def is_measured(self, bucket: int, num_speculative_tokens: int, calibration_clean_steps: int) -> bool:
        """Whether the cell's step time was measured in earnest."""
        cell = self.cells.get((bucket, num_speculative_tokens))
        return cell is not None and cell.steps >= MEASURED_SHARE * calibration_clean_steps

    def decode_rows(self, bucket: int) -> float | None:
        """Mean rows of a step in the bucket, over all K: arms are compared at the same rows, or chance would favour the fuller.

        None where the bucket has no evidence.
        """
        cells = [cell for (cell_bucket, _), cell in self.cells.items() if cell_bucket == bucket]
        return sum(cell.rows for cell in cells) / sum(cell.steps for cell in cells) if cells else None

    def goodput_tokens_per_s(self, bucket: int, num_speculative_tokens: int) -> float | None:
        """rows * E(k) / step time as measured in the cell, generated tokens per second; None for a cell without evidence."""
        cell, rows = self.cells.get((bucket, num_speculative_tokens)), self.decode_rows(bucket)
        if cell is None or rows is None:
            return None
        return rows * self.tokens_per_row(num_speculative_tokens) / cell.step_seconds

    def tokens_per_row(self, num_speculative_tokens: int) -> float:
        """E(k) at the group's estimated acceptance."""
        return tokens_per_row(self.acceptance.acceptance(num_speculative_tokens), num_speculative_tokens)
