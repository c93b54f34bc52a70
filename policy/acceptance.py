"""Acceptance by position: what share of rows keeps at least i draft tokens.

S_i is a survival probability, as vLLM's per-position counters give it: a step at K observes S_1..S_K at once, so every
shorter K is learned for free. Little evidence is shrunk to a prior; a position nobody tried goes on falling as the two
before it did. Acceptance hardly depends on the batch, so all cells of a group are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PRIOR_FIRST_ACCEPTANCE: Final = 0.7
"""S_1 before any evidence: between a weak draft model (0.5) and a good EAGLE head (0.85)."""
PRIOR_ROWS: Final = 20.0
"""Rows that a prior weighs as much as (facts of the fleet planner: 20)."""
HALF_LIFE_ROWS: Final = 2000.0
"""Rows after which an old one counts half. Sampling error stays near 1 %, a change of topic shows within seconds."""


@dataclass(frozen=True, slots=True)
class AcceptanceEvidence:
    """Decayed rows: `reached[i]` verified more than i draft tokens, `accepted[i]` of them accepted more than i."""

    reached: tuple[float, ...] = ()
    accepted: tuple[float, ...] = ()

    def plus(self, newer: AcceptanceEvidence, half_life_rows: float = HALF_LIFE_ROWS) -> AcceptanceEvidence:
        """This evidence, aged by the newer rows position by position, and the newer rows.

        >>> AcceptanceEvidence((100.0,), (80.0,)).plus(AcceptanceEvidence((50.0, 50.0), (40.0, 20.0)), half_life_rows=50.0)
        AcceptanceEvidence(reached=(100.0, 50.0), accepted=(80.0, 20.0))
        """
        reached, accepted = [], []
        for position in range(max(len(self.reached), len(newer.reached))):
            rows, kept = newer._at(position)
            old_rows, old_kept = self._at(position)
            share_left = 0.5 ** (rows / half_life_rows)
            reached.append(old_rows * share_left + rows)
            accepted.append(old_kept * share_left + kept)
        return AcceptanceEvidence(tuple(reached), tuple(accepted))

    def acceptance(self, max_num_speculative_tokens: int) -> tuple[float, ...]:
        """S_1..S_max, never rising.

        >>> [round(share, 3) for share in AcceptanceEvidence().acceptance(3)]
        [0.7, 0.49, 0.343]
        >>> [round(share, 2) for share in AcceptanceEvidence((1e6, 1e6), (8e5, 4e5)).acceptance(3)]
        [0.8, 0.4, 0.2]
        """
        return self._estimate(max_num_speculative_tokens, deviations=0.0)

    def optimistic_acceptance(self, max_num_speculative_tokens: int) -> tuple[float, ...]:
        """S_1..S_max, each two standard deviations better than estimated: what could still be true."""
        return self._estimate(max_num_speculative_tokens, deviations=2.0)

    def measured(self) -> tuple[float, ...]:
        """Shares as counted, without a prior, as far as rows exist: what an operator sees."""
        return tuple(kept / rows for rows, kept in zip(self.reached, self.accepted, strict=True) if rows > 0)

    def _estimate(self, positions: int, deviations: float) -> tuple[float, ...]:
        before, last = 1.0, 1.0
        result = []
        for position in range(positions):
            prior = PRIOR_FIRST_ACCEPTANCE if position == 0 else last * min(1.0, last / before)
            rows, kept = self._at(position)
            share = (kept + PRIOR_ROWS * prior) / (rows + PRIOR_ROWS)
            share += deviations * math.sqrt(max(share * (1.0 - share), 0.0) / (rows + PRIOR_ROWS))
            before, last = last, max(min(share, last, 1.0), 1e-6)
            result.append(last)
        return tuple(result)

    def _at(self, position: int) -> tuple[float, float]:
        return (self.reached[position], self.accepted[position]) if position < len(self.reached) else (0.0, 0.0)


def tokens_per_row(acceptance: Sequence[float], num_speculative_tokens: int) -> float:
    """E(k) = 1 + S_1 + ... + S_k: tokens one row gains in a step, the bonus token included.

    >>> tokens_per_row((0.8, 0.5, 0.25), 2)
    2.3
    """
    return 1.0 + sum(acceptance[:num_speculative_tokens])
