"""What a group has learned: step time by cell (batch bucket and K), acceptance by position, and the goodput they predict.

Sums decay with the clean steps that arrive, so that the fleet follows drift and memory stays O(groups). Predicted goodput
takes acceptance from all cells: a cell needs only its step time measured, a dozen steps, not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nightjar.policy.acceptance import AcceptanceEvidence, tokens_per_row

Cell = tuple[int, int]
"""Batch bucket and num_speculative_tokens."""

MEASURED_SHARE: Final = 0.75
"""Share of `calibration_clean_steps` at which a cell counts as measured: decay and steps cut short must not reopen it."""
GUESSED_STEP_GROWTH: Final = 0.1
"""Step time that one more draft token adds, as a share, where nothing like it was measured (CPU and 8B+EAGLE: 0.05 to 0.3)."""


@dataclass(frozen=True, slots=True)
class CellEvidence:
    """Decayed sums over clean steps: how many, the logarithms of their seconds, their decode rows."""

    steps: float
    log_seconds: float
    rows: float

    def plus(self, newer: CellEvidence, half_life_steps: float) -> CellEvidence:
        """This evidence aged by the newer steps, and the newer steps.

        >>> CellEvidence(8.0, -8.0, 32.0).plus(CellEvidence(4.0, -2.0, 20.0), half_life_steps=4.0)
        CellEvidence(steps=8.0, log_seconds=-6.0, rows=36.0)
        """
        share_left = 0.5 ** (newer.steps / half_life_steps)
        return CellEvidence(
            self.steps * share_left + newer.steps,
            self.log_seconds * share_left + newer.log_seconds,
            self.rows * share_left + newer.rows,
        )

    @property
    def step_seconds(self) -> float:
        """Geometric mean of the step time: one stalled step in a hundred moves it by a few percent, not by its length."""
        return math.exp(self.log_seconds / self.steps)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a group knows. `cells` is never changed in place."""

    cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)

    def is_measured(self, bucket: int, num_speculative_tokens: int, calibration_clean_steps: int) -> bool:
        """Whether the cell's step time is known well enough to decide on."""
        cell = self.cells.get((bucket, num_speculative_tokens))
        return cell is not None and cell.steps >= MEASURED_SHARE * calibration_clean_steps

    def decode_rows(self, bucket: int) -> float | None:
        """Mean rows of a step in the bucket, over all K: arms are compared at the same rows, or chance would favour the fuller.

        None where the bucket has no evidence.
        """
        cells = [cell for (cell_bucket, _), cell in self.cells.items() if cell_bucket == bucket]
        return sum(cell.rows for cell in cells) / sum(cell.steps for cell in cells) if cells else None

    def goodput_tokens_per_s(self, bucket: int, num_speculative_tokens: int) -> float | None:
        """rows * E(k) / step time, generated tokens per second; None for a cell without evidence."""
        cell, rows = self.cells.get((bucket, num_speculative_tokens)), self.decode_rows(bucket)
        if cell is None or rows is None:
            return None
        return rows * self.tokens_per_row(num_speculative_tokens) / cell.step_seconds

    def tokens_per_row(self, num_speculative_tokens: int) -> float:
        """E(k) at the group's estimated acceptance."""
        return tokens_per_row(self.acceptance.acceptance(num_speculative_tokens), num_speculative_tokens)

    def least_step_seconds(self, bucket: int, num_speculative_tokens: int) -> float | None:
        """Lower bound of the cell's step time: a step never gets shorter with K, so the longest of the shorter K's."""
        return max(
            (
                cell.step_seconds
                for (cell_bucket, length), cell in self.cells.items()
                if cell_bucket == bucket and length <= num_speculative_tokens
            ),
            default=None,
        )

    def guessed_step_seconds(self, bucket: int, num_speculative_tokens: int) -> float | None:
        """Step time of a cell not measured: the bucket's K=0, grown as in the nearest bucket that has both, else by a guess.

        None where the bucket's K=0 has no evidence.
        """
        off = self.cells.get((bucket, 0))
        if off is None:
            return None
        both = [
            other
            for other, length in self.cells
            if length == num_speculative_tokens and (other, 0) in self.cells and other != bucket
        ]
        if not both:
            return off.step_seconds * (1.0 + GUESSED_STEP_GROWTH * num_speculative_tokens)
        nearest = min(both, key=lambda other: (abs(other - bucket), other))
        growth = self.cells[nearest, num_speculative_tokens].step_seconds / self.cells[nearest, 0].step_seconds
        return off.step_seconds * growth
