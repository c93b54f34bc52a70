"""How much slower a replica steps than its group, so that what it measures stands beside what others measured.

Cards of one type differ by some percent, and a throttled one by more. All K of a slow card take longer alike, which no plan
need care about; but where the slow ones measured K = 0 and the fast ones K = 3, the difference would pass for a gain. So each
replica's residual against its group is learned, shrunk towards none, and taken off its voice before voices are merged
(pooling.py). Fails towards no correction: a replica that said little, or whose group has nobody to compare it with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from nightjar.policy.estimate.evidence import Cell, CellEvidence
from nightjar.policy.estimate.goodput import Floats, Outlook

PRIOR_STEPS: Final = 20.0
"""Steps that "as fast as its group" weighs as much as: steps scatter by about 5 %, and cards differ by about a quarter of that."""
HALF_LIFE_STEPS: Final = 500.0
"""Steps after which a residual counts half: a card heats up, and cools down, within minutes."""
MOST_LOG_SHARE: Final = 0.7
"""Twice as slow or as fast at most: beyond that it is no card of this group, or a liar (INV-10)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Decayed sums over clean steps of one replica: how many, and log seconds above its group's at the same cell and rows."""

    steps: float = 0.0
    log_share: float = 0.0

    def plus(self, steps: float, log_share: float) -> Pace:
        """This, aged by `steps` more, and them; `log_share` is their mean residual.

        >>> Pace(HALF_LIFE_STEPS, 50.0).plus(HALF_LIFE_STEPS, 0.1)
        Pace(steps=750.0, log_share=75.0)
        """
        share_left = 0.5 ** (steps / HALF_LIFE_STEPS)
        bounded = min(max(log_share, -MOST_LOG_SHARE), MOST_LOG_SHARE)
        return Pace(self.steps * share_left + steps, self.log_share * share_left + steps * bounded)

    @property
    def expected_log_share(self) -> float:
        """Log seconds above the group's, as far as the steps prove it."""
        return self.log_share / (self.steps + PRIOR_STEPS)


def offsets(paces: Mapping[str, Pace]) -> dict[str, float]:
    """Log seconds to take off each replica's voice: its pace above the median of those that have one, so that no common shift
    creeps in. Who never measured has none and moves nobody's."""
    shares = {replica_id: pace.expected_log_share for replica_id, pace in paces.items() if pace.steps}
    if len(shares) < 2:
        return dict.fromkeys(paces, 0.0)
    middle = median(shares.values())
    return {replica_id: shares.get(replica_id, middle) - middle for replica_id in paces}


def followed(pace: Pace, gave: Mapping[Cell, CellEvidence], known: Mapping[Cell, CellEvidence], slopes: Slopes) -> Pace:
    """The pace after a replica's voices `gave` became part of what its group has `known` since."""
    for cell, voice in sorted(gave.items()):
        group = known[cell]
        rows, usual_rows = voice.rows / voice.steps, group.rows / group.steps
        expected = group.log_seconds / group.steps + slopes.at(cell) * math.log(rows / usual_rows)
        pace = pace.plus(voice.steps, voice.log_seconds / voice.steps - expected)
    return pace


@dataclass(frozen=True, slots=True)
class Slopes:
    """By how much log step time grows with log rows, by bucket and arm: buckets are wide, and replicas differ in batch, too."""

    arms: tuple[int, ...] = ()
    slopes: Floats | None = None

    @classmethod
    def of(cls, ahead: Outlook | None) -> Slopes:
        """As an outlook has them; none without one."""
        if ahead is None or len(ahead.rows) < 2:
            return cls()
        log_rows = np.log(ahead.rows)
        log_seconds = log_rows[:, None] + np.log(ahead.tokens_per_row)[None, :] - ahead.log_goodput
        return cls(ahead.arms, np.gradient(log_seconds, log_rows, axis=0))

    def at(self, cell: Cell) -> float:
        """The slope in a cell; 0 in one that is no arm's."""
        bucket, length = cell
        if self.slopes is None or length not in self.arms or bucket >= len(self.slopes):
            return 0.0
        return float(self.slopes[bucket, self.arms.index(length)])
