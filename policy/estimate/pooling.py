"""How the evidence of many replicas becomes one group's, so that no single replica can move it (INV-10).

Each replica's new steps wait until enough different replicas have news of the same cell; then they are merged at once: no
replica weighs more than a third, and a value far from the others' median is left out. A voice that no replica of the group can
have counts for none, where there are others to wait for: or a liar would hurry those beside it. Waiting costs a group of
three or more that each cell must be seen by three of them before it counts.

What holds with fewer: in a group of one or two nobody can say who lies, so evidence counts as it comes, and only the
physical limits of `counting.py` protect the plan. What such a group learned stays when it grows. What waits ages as all evidence
does: it is merged with the weight that it has left, and after a while it is no voice any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.estimate.acceptance import HALF_LIFE_ROWS, ROWS_PER_INDEPENDENT_ROW, AcceptanceEvidence
from nightjar.policy.estimate.evidence import Cell, CellEvidence, Evidence, MixedEvidence
from nightjar.policy.estimate.pace import MOST_LOG_SHARE

QUORUM: Final = 3
"""Replicas that must agree: with three, one liar is outvoted."""
LEAST_STEPS: Final = 2.0
"""Clean steps that a replica must bring before it has a voice on a cell, where a quorum is asked. Where steps take half a second a
batch moves on after two or three; the evidence counts its steps, so that a plan doubts it as it should."""
LEAST_STEPS_LEFT: Final = 1.0
"""Clean steps that such a voice must still weigh for its age: two steps wait for others for a quarter of an hour, many for half an
hour."""
LEAST_ROWS: Final = 20.0
"""Decode rows that a replica must bring before it has a voice on acceptance, where a quorum is asked."""
OUTLIER_DEVIATIONS: Final = 3.0
"""Median absolute deviations from the median within which a replica's value counts."""
LEAST_DEVIATION: Final = 0.003
"""A floor for that deviation, 0.3 % of step time: where honest replicas agree, a liar moves the mean by less than the
`switch_margin` of any plan."""

Floats = npt.NDArray[np.float64]
_NONE_MIXED: Final[Mapping[Cell, MixedEvidence]] = MappingProxyType({})
_NO_OFFSETS: Final[Mapping[str, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pending:
    """One replica's evidence that its group has not merged yet; O(cells) a replica (INV-8)."""

    cells: Mapping[Cell, CellEvidence] = field(default_factory=dict)
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)
    mixed_cells: Mapping[Cell, MixedEvidence] = field(default_factory=dict)

    def plus(
        self,
        cells: Mapping[Cell, CellEvidence],
        acceptance: AcceptanceEvidence,
        half_life_steps: float,
        now_s: float,
        mixed_cells: Mapping[Cell, MixedEvidence] = _NONE_MIXED,
    ) -> Pending:
        """This and what is heard at `now_s`; what waits long ages like all evidence."""
        merged, mixed = dict(self.cells), dict(self.mixed_cells)
        for cell, heard in cells.items():
            newer = heard.at(now_s)
            merged[cell] = merged[cell].plus(newer, half_life_steps) if cell in merged else newer
        for cell, heard_mixed in mixed_cells.items():
            mixed[cell] = mixed[cell].plus(heard_mixed, half_life_steps) if cell in mixed else heard_mixed
        return Pending(merged, self.acceptance.plus(acceptance.at(now_s)), mixed)

    def has_voice(self, cell: Cell, now_s: float) -> bool:
        """Whether it waits only for others before it counts on the cell: it brought enough, and not too long ago."""
        mine = self.cells.get(cell)
        return mine is not None and mine.steps >= LEAST_STEPS and mine.steps_at(now_s) >= LEAST_STEPS_LEFT


def voices_on(cell: Cell, pending: Mapping[str, Pending], now_s: float) -> dict[str, bool]:
    """The replicas whose word on a cell waits for others, and whether it will count."""
    names = [replica_id for replica_id, waiting in pending.items() if waiting.has_voice(cell, now_s)]
    return dict(zip(names, _credible([pending[replica_id].cells[cell] for replica_id in names]), strict=True))


def quorum(replicas: int) -> int:
    """How many replicas must have news of a cell before a group of `replicas` believes it."""
    return QUORUM if replicas >= QUORUM else 1


def merge(
    evidence: Evidence,
    pending: Mapping[str, Pending],
    half_life_steps: float,
    now_s: float = 0.0,
    offsets: Mapping[str, float] = _NO_OFFSETS,
) -> tuple[Evidence, dict[str, Pending]]:
    """The group's evidence with all news that enough replicas share, and what is left waiting of each replica that gave some.

    `pending` names every live replica of the group, also those without news: their number sets the quorum. `offsets` are log
    seconds by which a replica's steps are known to be longer than its group's (pace.py); they are taken off its voice.
    """
    needed = quorum(len(pending))
    cells, taken = _merge_cells(evidence.cells, pending, needed, half_life_steps, now_s, offsets)
    acceptance, heard = _merge_acceptance(evidence.acceptance, pending, needed, now_s)
    mixed_cells, mixed_taken = _merge_mixed_cells(evidence.mixed_cells, pending, needed, half_life_steps)
    left = {}
    for replica_id in {*taken, *heard, *mixed_taken}:
        before = pending[replica_id]
        gone, mixed_gone = taken.get(replica_id, ()), mixed_taken.get(replica_id, ())
        left[replica_id] = Pending(
            {cell: waiting for cell, waiting in before.cells.items() if cell not in gone},
            AcceptanceEvidence() if replica_id in heard else before.acceptance,
            {cell: waiting for cell, waiting in before.mixed_cells.items() if cell not in mixed_gone},
        )
    return replace(evidence, cells=cells, acceptance=acceptance, mixed_cells=mixed_cells), left


def capped_weights(weights: Floats) -> Floats:
    """Weights of three or more voices, the heaviest lowered until none is more than a third of their sum.

    >>> capped_weights(np.array([8.0, 1.0, 1.0, 1.0])).tolist(), capped_weights(np.array([9.0, 5.0, 1.0])).tolist()
    ([1.5, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    """
    heaviest_first = np.sort(weights)[::-1]
    for capped in range(QUORUM):
        cap = float(heaviest_first[capped:].sum()) / (QUORUM - capped)
        if heaviest_first[capped] <= cap:
            break
    return np.minimum(weights, cap)


def robust_mean(values: Floats, weights: Floats) -> float:
    """Weighted mean of the values within three median absolute deviations of their weighted median: an outlier has no say.

    >>> round(robust_mean(np.array([0.0, 0.01, -0.01, 2.3]), np.ones(4)), 4)
    0.0
    """
    center = _weighted_median(values, weights)
    deviation = max(_weighted_median(np.abs(values - center), weights), LEAST_DEVIATION)
    reach = OUTLIER_DEVIATIONS * deviation
    return float(np.average(values, weights=np.where(np.abs(values - center) <= reach, weights, 0.0)))


def _merge_cells(
    known: Mapping[Cell, CellEvidence],
    pending: Mapping[str, Pending],
    needed: int,
    half_life_steps: float,
    now_s: float,
    offsets: Mapping[str, float],
) -> tuple[Mapping[Cell, CellEvidence], dict[str, set[Cell]]]:
    voices: dict[Cell, list[str]] = defaultdict(list)
    for replica_id in sorted(pending):
        waiting = pending[replica_id]
        for cell in waiting.cells:
            if needed == 1 or waiting.has_voice(cell, now_s):
                voices[cell].append(replica_id)
    merged, taken = dict(known), defaultdict(set)
    for cell, replica_ids in voices.items():
        if len(replica_ids) < needed:
            continue
        spoken = [pending[name].cells[cell].aged(now_s).faster_by(offsets.get(name, 0.0)) for name in replica_ids]
        credible = [voice for voice, can_be in zip(spoken, _credible(spoken), strict=True) if can_be or needed == 1]
        if len(credible) < needed and len(spoken) < len(pending):
            continue
        newer = _one_cell(credible if len(credible) >= needed else spoken, needed).at(now_s)
        merged[cell] = merged[cell].plus(newer, half_life_steps) if cell in merged else newer
        for replica_id in replica_ids:
            taken[replica_id].add(cell)
    return merged, taken


def _credible(voices: Sequence[CellEvidence]) -> list[bool]:
    """Whether each voice is one that a card of this group can have: steps of twice or half the others' time are none of theirs.

    Who is wrong is known from three on.
    """
    if len(voices) < QUORUM:
        return [True] * len(voices)
    means = [voice.log_seconds / voice.steps for voice in voices]
    middle = median(means)
    return [abs(mean - middle) <= MOST_LOG_SHARE for mean in means]


def _one_cell(voices: list[CellEvidence], needed: int) -> CellEvidence:
    """All voices on one cell as one. With a quorum the time is a robust mean, and what a plan only corrects by (context, noise)
    a median; rows are bounded by the bucket."""
    sums = np.array(
        [(voice.steps, voice.log_seconds, voice.rows, voice.context_tokens, voice.log_seconds_squared) for voice in voices]
    )
    if needed == 1:
        return CellEvidence(*(float(total) for total in sums.sum(axis=0)))
    steps, weights = sums[:, 0], capped_weights(sums[:, 0])
    means = sums / steps[:, None]
    total, log_seconds = float(weights.sum()), robust_mean(means[:, 1], weights)
    told = means[:, 4] > 0
    scatters = np.maximum(means[:, 4] - means[:, 1] ** 2, 0.0)
    scatter = _weighted_median(scatters[told], weights[told]) + log_seconds**2 if told.any() else 0.0
    return CellEvidence(
        total,
        total * log_seconds,
        float(means[:, 2] @ weights),
        total * _weighted_median(means[:, 3], weights),
        total * scatter,
    )


def _merge_mixed_cells(
    known: Mapping[Cell, MixedEvidence], pending: Mapping[str, Pending], needed: int, half_life_steps: float
) -> tuple[Mapping[Cell, MixedEvidence], dict[str, set[Cell]]]:
    """As `_merge_cells`: seconds a step as a robust mean, what explains them as medians."""
    voices: dict[Cell, list[str]] = defaultdict(list)
    for replica_id in sorted(pending):
        for cell, waiting in pending[replica_id].mixed_cells.items():
            if needed == 1 or waiting.steps >= LEAST_STEPS:
                voices[cell].append(replica_id)
    merged, taken = dict(known), defaultdict(set)
    for cell, replica_ids in voices.items():
        if len(replica_ids) < needed:
            continue
        newer = _one_mixed_cell([pending[replica_id].mixed_cells[cell] for replica_id in replica_ids], needed)
        merged[cell] = merged[cell].plus(newer, half_life_steps) if cell in merged else newer
        for replica_id in replica_ids:
            taken[replica_id].add(cell)
    return merged, taken


def _one_mixed_cell(voices: list[MixedEvidence], needed: int) -> MixedEvidence:
    sums = np.array([(voice.steps, voice.seconds, voice.rows, voice.prefill_tokens) for voice in voices])
    if needed == 1:
        return MixedEvidence(*(float(total) for total in sums.sum(axis=0)))
    steps, weights = sums[:, 0], capped_weights(sums[:, 0])
    means, total = sums / steps[:, None], float(weights.sum())
    return MixedEvidence(
        total,
        total * float(np.exp(robust_mean(np.log(means[:, 1]), weights))),
        total * _weighted_median(means[:, 2], weights),
        total * _weighted_median(means[:, 3], weights),
    )


def _merge_acceptance(
    known: AcceptanceEvidence, pending: Mapping[str, Pending], needed: int, now_s: float
) -> tuple[AcceptanceEvidence, set[str]]:
    """Position by position; a replica that is heard on the first position is heard on all that it reached.

    Voices that do not agree are left out at all positions, if a quorum does agree.
    """
    least = LEAST_ROWS if needed > 1 else 1.0
    voices = {
        replica_id: waiting.acceptance.aged(now_s)
        for replica_id, waiting in sorted(pending.items())
        if waiting.acceptance.reached and waiting.acceptance.reached[0] >= least
    }
    if len(voices) < needed:
        return known, set()
    all_voices = list(voices.values())
    agreeing = _agreeing(all_voices) if needed > 1 else all_voices
    if len(agreeing) < needed and len(all_voices) < len(pending):
        return known, set()
    believed = agreeing if len(agreeing) >= needed else all_voices
    reached, accepted = [], []
    for position in range(max(len(voice.reached) for voice in believed)):
        rows, kept = _rows_at(believed, position)
        rows, kept = rows[rows > 0], kept[rows > 0]
        if len(rows) < needed:
            break
        weights = capped_weights(rows) if needed > 1 else rows
        share = robust_mean(kept / rows, weights) if needed > 1 else float(kept.sum() / rows.sum())
        reached.append(float(weights.sum()))
        accepted.append(float(weights.sum()) * share)
    half_life_rows = HALF_LIFE_ROWS * len(believed)
    return known.plus(AcceptanceEvidence(tuple(reached), tuple(accepted)).at(now_s), half_life_rows), set(voices)


def _agreeing(voices: list[AcceptanceEvidence]) -> list[AcceptanceEvidence]:
    """The voices that are an outlier at no position, by more than luck: where a later position gives a lie away, an earlier one at
    which it passes for luck is no better."""
    agrees = np.ones(len(voices), dtype=bool)
    for position in range(max(len(voice.reached) for voice in voices)):
        rows, kept = _rows_at(voices, position)
        there = rows > 0
        if there.sum() < QUORUM:
            break
        shares, weights = kept[there] / rows[there], capped_weights(rows[there])
        center = _weighted_median(shares, weights)
        spread = _weighted_median(np.abs(shares - center), weights)
        luck = np.sqrt(max(center * (1.0 - center), LEAST_DEVIATION) * ROWS_PER_INDEPENDENT_ROW / rows[there])
        agrees[there] &= np.abs(shares - center) <= OUTLIER_DEVIATIONS * np.maximum(spread, luck)
    return [voice for voice, does in zip(voices, agrees, strict=True) if does]


def _rows_at(voices: list[AcceptanceEvidence], position: int) -> tuple[Floats, Floats]:
    """Rows of each voice that reached a position, and those of them that it accepted."""
    is_there = [position < len(voice.reached) for voice in voices]
    rows = [voice.reached[position] if there else 0.0 for voice, there in zip(voices, is_there, strict=True)]
    kept = [voice.accepted[position] if there else 0.0 for voice, there in zip(voices, is_there, strict=True)]
    return np.array(rows), np.array(kept)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2.0)])
