"""Acceptance by position: what share of rows keeps at least i draft tokens.

S_i is a survival probability, as vLLM's per-position counters give it: a step at K observes S_1..S_K at once, so every
shorter K is learned for free. Little evidence is shrunk to a prior; a position nobody tried goes on falling as the two
before it did. Acceptance hardly depends on the batch, so all cells of a group are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from nightjar.policy.wire.record import MAX_NUM_SPECULATIVE_TOKENS, DecayedSum

Floats = npt.NDArray[np.float64]

PRIOR_FIRST_ACCEPTANCE: Final = 0.7
"""S_1 before any evidence: between a weak draft model (0.5) and a good EAGLE head (0.85)."""
PRIOR_ROWS: Final = 20.0
"""Rows that a prior weighs as much as, so that fewer say less than it: a replica with fewer is not held against others."""
HALF_LIFE_ROWS: Final = 2000.0
"""Rows after which an old one counts half. Sampling error stays near 1 %, a change of topic shows within seconds."""
ROWS_PER_INDEPENDENT_ROW: Final = 4.0
"""Rows of one request resemble each other: this many say as much as one that was drawn on its own."""
ROWS_PER_REQUEST: Final = 16.0
"""The same for what the next requests will accept, which is what people read a prediction for: an answer is 50 to 100 rows, and
code accepts twice what talk does. The planner follows those that run."""
DRIFT_VARIANCE_PER_SECOND: Final = 0.1**2 / 120.0
"""How fast the conditional acceptance wanders while nobody looks, as a relative variance: 10 % in two minutes."""
GROUP_ROWS: Final = PRIOR_ROWS * ROWS_PER_INDEPENDENT_ROW
"""Rows that a group's share weighs as much as in what one of its replicas expects of its own traffic: twenty independent ones."""
LEAST_DIFFERENCE: Final = 0.05
"""A replica whose S_1 is within this share of its group's has the same traffic: plans would not differ by more than a margin."""
MOST_DRIFT_VARIANCE: Final = 0.25**2
"""However old, evidence of the same traffic says more than the prior."""
LEAST_SHARE: Final = 1e-9
"""A share that has decayed to less tells longer drafts nothing; soon after it no float can be divided by it."""


PositionSums = Annotated[tuple[DecayedSum, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)]


@dataclass(frozen=True, slots=True)
class AcceptanceEvidence:
    """Decayed rows: `reached[i]` verified more than i draft tokens, `accepted[i]` of them accepted more than i.

    `seen_at_s[i]` is when a row last reached position i, on the caller's clock (empty: now).
    """

    reached: PositionSums = ()
    accepted: PositionSums = ()
    seen_at_s: tuple[float, ...] = ()

    def plus(self, newer: AcceptanceEvidence, half_life_rows: float = HALF_LIFE_ROWS) -> AcceptanceEvidence:
        """This evidence, aged by the newer rows position by position, and the newer rows.

        What was known of a position is known as a share of the rows that came as far as the one before it: where those become
        fewer or more, it follows. So a K that runs tells of the longer ones, too. Texts that are easier are so for every draft: a
        position i that no newer row reached follows the last one that was reached, p, by the power i / p of what that rose by. (So
        do the classes of the profiles: code keeps 1.66 times as many first drafts as open-ended talk, and 2.9, 4.7, 8 and 11 times
        the next ones.)

        >>> AcceptanceEvidence((100.0,), (80.0,)).plus(AcceptanceEvidence((50.0, 50.0), (40.0, 20.0)), half_life_rows=50.0)
        AcceptanceEvidence(reached=(100.0, 50.0), accepted=(80.0, 20.0), seen_at_s=(0.0, 0.0))
        >>> AcceptanceEvidence((100.0, 100.0), (80.0, 40.0)).plus(AcceptanceEvidence((9e9,), (3.6e9,))).measured()
        (0.4, 0.1)
        """
        reached, accepted, seen = [], [], []
        follows, last_reached = 1.0, 1
        for position in range(max(len(self.reached), len(newer.reached))):
            rows, kept, at_s = newer._at(position)
            old_rows, old_kept, old_at_s = self._at(position)
            share_left = 0.5 ** (rows / half_life_rows) * _weight(old_rows, at_s - old_at_s) if rows else 1.0
            rise = follows if rows else follows ** ((position + 1) / last_reached)
            reached.append(old_rows * share_left + rows)
            accepted.append(min(old_kept * rise, old_rows) * share_left + kept)
            seen.append(at_s if rows else old_at_s)
            if rows:
                last_reached = position + 1
            if rows and old_kept > LEAST_SHARE * old_rows:
                follows = accepted[-1] / reached[-1] / (old_kept / old_rows)
        return AcceptanceEvidence(tuple(reached), tuple(accepted), tuple(seen))

    def sum(self, other: AcceptanceEvidence) -> AcceptanceEvidence:
        """Both together, as counted at the same time."""
        positions = range(max(len(self.reached), len(other.reached)))
        pairs = [(self._at(position), other._at(position)) for position in positions]
        return AcceptanceEvidence(tuple(a[0] + b[0] for a, b in pairs), tuple(a[1] + b[1] for a, b in pairs))

    def at(self, now_s: float) -> AcceptanceEvidence:
        """The same rows, seen at `now_s`."""
        return AcceptanceEvidence(self.reached, self.accepted, (now_s,) * len(self.reached))

    def aged(self, now_s: float) -> AcceptanceEvidence:
        """The same shares with the weight that they have at `now_s`.

        >>> AcceptanceEvidence((64.0,), (32.0,), (0.0,)).aged(1e9)
        AcceptanceEvidence(reached=(32.0,), accepted=(16.0,), seen_at_s=(1000000000.0,))
        """
        if not self.seen_at_s:
            return self.at(now_s)
        weights = [_weight(rows, now_s - at_s) for rows, at_s in zip(self.reached, self.seen_at_s, strict=True)]
        return AcceptanceEvidence(
            tuple(rows * weight for rows, weight in zip(self.reached, weights, strict=True)),
            tuple(kept * weight for kept, weight in zip(self.accepted, weights, strict=True)),
            (now_s,) * len(weights),
        )

    def acceptance(self, max_num_speculative_tokens: int) -> tuple[float, ...]:
        """S_1..S_max, never rising.

        >>> [round(share, 3) for share in AcceptanceEvidence().acceptance(3)]
        [0.7, 0.49, 0.343]
        >>> [round(share, 2) for share in AcceptanceEvidence((1e6, 1e6), (8e5, 4e5)).acceptance(3)]
        [0.8, 0.4, 0.2]
        """
        before, last = 1.0, 1.0
        result = []
        for position in range(max_num_speculative_tokens):
            prior = PRIOR_FIRST_ACCEPTANCE if position == 0 else last * min(1.0, last / before)
            rows, kept, _ = self._at(position)
            share = (kept + PRIOR_ROWS * prior) / (rows + PRIOR_ROWS)
            before, last = last, max(min(share, last, 1.0), 1e-6)
            result.append(last)
        return tuple(result)

    def covariance(
        self, acceptance: Sequence[float], now_s: float, rows_per_independent_row: float = ROWS_PER_INDEPENDENT_ROW
    ) -> Floats:
        """Covariance of the S_i given by `acceptance`: the conditional shares S_i/S_{i-1} err each on its own.

        A share is the less sure the fewer rows reached it, the longer ago, and the more they came from the same requests.
        """
        survival = np.array(acceptance)
        conditional = survival / np.concatenate(([1.0], survival[:-1]))
        sums = [self._at(position) for position in range(len(survival))]
        rows = np.array([reached for reached, _, _ in sums]) * np.concatenate(([1.0], survival[:-1]))
        age = np.array([drift(now_s - at_s) if reached else MOST_DRIFT_VARIANCE for reached, _, at_s in sums])
        informed = rows / rows_per_independent_row + PRIOR_ROWS / ROWS_PER_INDEPENDENT_ROW
        relative = (1.0 - conditional) / np.maximum(conditional, 1e-3) / informed + age
        least = np.minimum.outer(np.arange(len(survival)), np.arange(len(survival)))
        covariance: Floats = np.outer(survival, survival) * np.cumsum(relative)[least]
        return covariance

    def shrunk_to(self, group: AcceptanceEvidence) -> AcceptanceEvidence:
        """This, where a group's share weighs as much as GROUP_ROWS rows; less the further this one's S_1 is off the group's, since
        the distance says how far apart replicas are here. Positions that nobody here reached follow the group's.

        >>> group = AcceptanceEvidence((8000.0, 8000.0), (6000.0, 3000.0))
        >>> alike, other = AcceptanceEvidence((80.0,), (56.0,)), AcceptanceEvidence((320.0,), (80.0,))
        >>> [[round(share, 3) for share in one.shrunk_to(group).measured()] for one in (alike, other)]
        [[0.725, 0.35], [0.255, 0.043]]
        """
        weight_rows = self._rows_of_group(group)
        share = [min(1.0, weight_rows / rows) if rows else 0.0 for rows in group.reached]
        prior = AcceptanceEvidence(
            tuple(rows * kept for rows, kept in zip(group.reached, share, strict=True)),
            tuple(rows * kept for rows, kept in zip(group.accepted, share, strict=True)),
            group.seen_at_s,
        )
        return prior.plus(self, half_life_rows=math.inf)

    def deviations_from(self, group: AcceptanceEvidence, now_s: float) -> float:
        """Standard deviations by which this one's S_1 is off a group's; 0 where it is within LEAST_DIFFERENCE of it.

        S_1 stands for all: where drafts are worse, they are worse from the first token on.

        >>> halved = AcceptanceEvidence((400.0,), (160.0,))
        >>> round(halved.deviations_from(AcceptanceEvidence((9e9,), (7.2e9,)), now_s=0.0), 1)
        8.2
        """
        (rows, kept, at_s), (group_rows, group_kept, _) = self._at(0), group._at(0)
        if rows < PRIOR_ROWS or group_rows < PRIOR_ROWS:
            return 0.0
        mine, theirs = kept / rows, group_kept / group_rows
        if abs(mine - theirs) <= LEAST_DIFFERENCE * theirs:
            return 0.0
        sampled = max(mine * (1.0 - mine), 1.0 / rows) * ROWS_PER_INDEPENDENT_ROW / rows
        return abs(mine - theirs) / math.sqrt(sampled + mine * mine * drift(now_s - at_s))

    def _rows_of_group(self, group: AcceptanceEvidence) -> float:
        """Rows that a group's share is worth here: what an independent row scatters by, over the variance between replicas."""
        (rows, kept, _), (group_rows, group_kept, _) = self._at(0), group._at(0)
        if not rows or not group_rows:
            return GROUP_ROWS
        theirs = group_kept / group_rows
        scatter = max(theirs * (1.0 - theirs), LEAST_SHARE) * ROWS_PER_INDEPENDENT_ROW
        between = (kept / rows - theirs) ** 2 - scatter / rows
        return min(GROUP_ROWS, scatter / between) if between > 0.0 else GROUP_ROWS

    def seen_at(self, position: int) -> float:
        """When a row last reached a position; before all time where none did."""
        return self.seen_at_s[position] if position < len(self.seen_at_s) else -math.inf

    def measured(self) -> tuple[float, ...]:
        """Shares as counted, without a prior, as far as rows exist: what an operator sees."""
        return tuple(kept / rows for rows, kept in zip(self.reached, self.accepted, strict=True) if rows > 0)

    def _at(self, position: int) -> tuple[float, float, float]:
        if position >= len(self.reached):
            return 0.0, 0.0, 0.0
        return self.reached[position], self.accepted[position], self.seen_at_s[position] if self.seen_at_s else 0.0


def tokens_per_row(acceptance: Sequence[float], num_speculative_tokens: int) -> float:
    """E(k) = 1 + S_1 + ... + S_k: tokens one row gains in a step, the bonus token included.

    >>> tokens_per_row((0.8, 0.5, 0.25), 2)
    2.3
    """
    return 1.0 + sum(acceptance[:num_speculative_tokens])


def _weight(rows: float, age_s: float) -> float:
    """Share of their weight that so many rows still have at that age."""
    return 1.0 / (1.0 + rows * drift(age_s) / ROWS_PER_INDEPENDENT_ROW)


def drift(age_s: float) -> float:
    """Relative variance that `age_s` seconds without a row add to a share of kept drafts."""
    return min(max(age_s, 0.0) * DRIFT_VARIANCE_PER_SECOND, MOST_DRIFT_VARIANCE)
