"""What a group has learned: step time by cell (batch bucket and K) and acceptance by position.

Sums decay with the clean steps that arrive and lose weight with the time that passes without any, so that the fleet follows
drift, a K that does not run cannot look well known for ever, and memory stays O(groups). Acceptance is one for all
cells: a cell needs only its step time measured, a dozen steps, not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.acceptance import AcceptanceEvidence, tokens_per_row


class Cell(NamedTuple):
    """What steps are told apart by: batch bucket, K, and whether they computed prompt tokens besides their decode rows."""

    batch_bucket: int
    num_speculative_tokens: int
    prefill: bool = False

    def heard_at(self, now_s: float) -> float:
        """When steps that are reported at `now_s` count as measured: at the same time always with prefill, which do not age."""
        return 0.0 if self.prefill else now_s


MEASURED_SHARE: Final = 0.75
"""Share of `calibration_clean_steps` at which a cell counts as measured: decay and steps cut short must not reopen it."""
STEP_VARIANCE: Final = 0.05**2
"""Of the logarithm of one clean step's time, where a cell has too few steps to tell: engines show 2 to 10 %."""
PRIOR_CLEAN_STEPS: Final = 20.0
"""Clean steps that an assumption weighs as much as: that steps scatter by STEP_VARIANCE, and that a replica is as fast as its group
(cards differ by about a quarter of what steps scatter by)."""
DRIFT_VARIANCE_PER_SECOND: Final = 0.03**2 / 600.0
"""How fast a true step time wanders: 3 % in ten minutes (contexts grow, cards throttle, neighbours come and go)."""
MOSTLY_MIXED: Final = 0.5
"""Share of an engine's work with prefill beside decode rows, above which its plan is about this. Of the steps of its cells: clean
ones are too few. Of its time: a sleeping drafter's group measures no K in clean steps again (planners/calibration.py)."""
MOST_DRIFT_VARIANCE: Final = 0.1**2
"""However old a measurement is, it says more than none: the shape of an engine's step times hardly changes over night."""


def drift_variance(age_s: float) -> float:
    """Variance of the log step time that `age_s` seconds without a measurement add.

    >>> round(drift_variance(600.0) ** 0.5, 3), round(drift_variance(1e9) ** 0.5, 3), drift_variance(-5.0)
    (0.03, 0.1, 0.0)
    """
    return min(max(age_s, 0.0) * DRIFT_VARIANCE_PER_SECOND, MOST_DRIFT_VARIANCE)


class CellEvidence(NamedTuple):
    """Decayed sums over the steps of a cell: how many, and what `report.CellCounters` counts of them.

    `generated_tokens` are kept where acceptance by position is censored alone, and are 0 elsewhere (ceilings.py).
    `measured_at_s` is when the last of them was heard of, on the caller's clock; what is stored and read back is new again.
    """

    steps: float = 0.0
    log_seconds: float = 0.0
    rows: float = 0.0
    context_tokens: float = 0.0
    log_seconds_squared: float = 0.0
    seconds: float = 0.0
    prefill_tokens: float = 0.0
    draft_tokens: float = 0.0
    generated_tokens: float = 0.0
    measured_at_s: float = 0.0

    def plus(self, newer: CellEvidence, half_life_steps: float) -> CellEvidence:
        """This evidence aged by the newer steps and by the time between, and the newer steps.

        >>> summed = CellEvidence(8.0, -8.0, 32.0).plus(CellEvidence(4.0, -2.0, 20.0), half_life_steps=4.0)
        >>> summed.steps, summed.log_seconds, summed.rows
        (8.0, -6.0, 36.0)
        """
        share_left = 0.5 ** (newer.steps / half_life_steps) * self._weight_at(newer.measured_at_s)
        return CellEvidence(
            self.steps * share_left + newer.steps,
            self.log_seconds * share_left + newer.log_seconds,
            self.rows * share_left + newer.rows,
            self.context_tokens * share_left + newer.context_tokens,
            self.log_seconds_squared * share_left + newer.log_seconds_squared,
            self.seconds * share_left + newer.seconds,
            self.prefill_tokens * share_left + newer.prefill_tokens,
            self.draft_tokens * share_left + newer.draft_tokens,
            self.generated_tokens * share_left + newer.generated_tokens,
            max(self.measured_at_s, newer.measured_at_s),
        )

    def _weight_at(self, now_s: float) -> float:
        """Share of their weight that the sums have left: a true step time wanders, so many old ones tell little."""
        return 1.0 / (1.0 + self.steps * drift_variance(now_s - self.measured_at_s) / STEP_VARIANCE)

    def at(self, now_s: float) -> CellEvidence:
        """The same sums, heard of at `now_s`."""
        return self._replace(measured_at_s=now_s)

    @property
    def step_seconds(self) -> float:
        """Geometric mean of the step time: one stalled step in a hundred moves it by a few percent, not by its length."""
        return math.exp(self.log_seconds / self.steps)


SUMS: Final = np.dtype([(name, np.float64) for name in CellEvidence._fields])
"""A row of a table: evidence of one cell, or of one replica in it. All but the last are sums."""

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.void]
"""(rows,) of SUMS."""


def table_of(rows: Sequence[CellEvidence]) -> Table:
    """The rows as a table."""
    table: Table = np.array(rows, dtype=np.float64).reshape(-1, len(CellEvidence._fields)).view(SUMS)[:, 0]
    return table


def grown(table: Table, rows: int) -> Table:
    """A copy of a table with at least so many rows."""
    numbers = np.zeros((max(len(table), rows), len(CellEvidence._fields)))
    numbers[: len(table)] = _numbers(table)
    after: Table = numbers.view(SUMS)[:, 0]
    return after


def sums_of(table: Table) -> Floats:
    """(rows, sums): the sums of a table as plain numbers in the same memory, for what is done to all of them alike."""
    return _numbers(table)[:, :-1]


def _numbers(table: Table) -> Floats:
    return table.view(np.float64).reshape(len(table), len(CellEvidence._fields))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a group knows: of cells without prefill, `cells`, and of those with, `mixed_cells`. Neither is changed in place.

    `mixed_steps_per_token`, `prefill_tokens_per_token` and `answers_per_token`: what comes with each generated token, as replicas
    report of late: steps with prefill beside decode rows, prompt tokens, and answers. `mixed_share_of_steps`: of the steps that
    their cells count, those with prefill.
    """

    cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)
    mixed_cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    mixed_steps_per_token: float = 0.0
    prefill_tokens_per_token: float = 0.0
    answers_per_token: float = 0.0
    mixed_share_of_steps: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no step of either kind was learned from."""
        return not self.cells and not self.mixed_cells

    @property
    def is_mostly_mixed(self) -> bool:
        """Whether most steps that can be measured in most replicas have prefill: there measurements are of such steps as well."""
        return self.mixed_share_of_steps > MOSTLY_MIXED

    @property
    def ks(self) -> frozenset[int]:
        """The K that ran, as far as plans go by it: in pure decode steps and, where most steps have prefill, in those."""
        mixed = self.mixed_cells if self.is_mostly_mixed else ()
        return frozenset(cell.num_speculative_tokens for cell in (*self.cells, *mixed))

    def of(self, cell: Cell) -> CellEvidence | None:
        """What is known of a cell of either kind."""
        return (self.mixed_cells if cell.prefill else self.cells).get(cell)

    @property
    def only_k(self) -> int | None:
        """The one K that all of it is of; None where there are several, or none. Then nothing is known of any other K."""
        ks = self.ks
        return next(iter(ks)) if len(ks) == 1 else None

    @property
    def is_censored(self) -> bool:
        """Whether acceptance by position does not tell what a shorter or longer K emits: the cells then hold tokens instead."""
        return any(known.generated_tokens for known in self.cells.values())

    @property
    def ran(self) -> frozenset[int]:
        """The K that ran in any step, those with prefill among them."""
        return frozenset(cell.num_speculative_tokens for cell in (*self.cells, *self.mixed_cells))

    def is_measured(self, bucket: int, num_speculative_tokens: int, calibration_clean_steps: int) -> bool:
        """Whether the cell's step time was measured in earnest."""
        cell = self.cells.get(Cell(bucket, num_speculative_tokens))
        return cell is not None and cell.steps >= MEASURED_SHARE * calibration_clean_steps

    def is_measured_beside_prefill(self, num_speculative_tokens: int, calibration_clean_steps: int) -> bool:
        """Whether K ran in as many steps with prefill as a measurement has, at any batch: their time is a sum over rows."""
        mixed = self.mixed_cells.items()
        steps = sum(known.steps for cell, known in mixed if cell.num_speculative_tokens == num_speculative_tokens)
        return steps >= MEASURED_SHARE * calibration_clean_steps

    def decode_rows(self, bucket: int) -> float | None:
        """Mean rows of a step in the bucket, over all K, which are compared at the same rows, or chance would favour the fuller.

        None where the bucket has no evidence.
        """
        cells = [known for cell, known in self.cells.items() if cell.batch_bucket == bucket]
        return sum(known.rows for known in cells) / sum(known.steps for known in cells) if cells else None

    def goodput_tokens_per_s(self, bucket: int, num_speculative_tokens: int) -> float | None:
        """rows * E(k) / step time as measured in the cell, generated tokens per second; None for a cell without evidence."""
        cell, rows = self.cells.get(Cell(bucket, num_speculative_tokens)), self.decode_rows(bucket)
        if cell is None or rows is None:
            return None
        emitted = cell.generated_tokens / cell.rows if cell.generated_tokens else self.tokens_per_row(num_speculative_tokens)
        return rows * emitted / cell.step_seconds

    def tokens_per_row(self, num_speculative_tokens: int) -> float:
        """E(k) at the group's estimated acceptance."""
        return tokens_per_row(self.acceptance.acceptance(num_speculative_tokens), num_speculative_tokens)
