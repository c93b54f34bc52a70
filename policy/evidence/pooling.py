"""How the measurements of many replicas become one group's, on arrival, so that no single replica can move it for long (INV-10).

A group's evidence is the mean of its replicas', after what is known of each replica is taken off: its effect, log seconds by which
its steps are longer than the others' at the same cell, shrunk towards none. All K of a slow card take longer alike, which no plan
need care about; but where the slow ones measured K = 0 and the fast ones K = 3, the difference would pass for a gain.

What arrives counts at once. Once three replicas have reported, none weighs more than a third and one that is far from the others'
median is left out, with all that it ever reported in the cell. A replica whose steps take twice or half the others' anywhere is
distrusted everywhere, for as long as that stands. Of two that no card of one group can both have measured, neither counts until a
third has reported. With fewer than that the physical limits of `counting.py` and the guard in each engine are what protects: one
faulty replica of a group may be believed for the seconds until two others have run what it praised.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.acceptance import PRIOR_ROWS, ROWS_PER_INDEPENDENT_ROW, AcceptanceEvidence
from nightjar.policy.evidence.cells import (
    PRIOR_CLEAN_STEPS,
    STEP_VARIANCE,
    Cell,
    CellEvidence,
    Evidence,
    Floats,
    Table,
    grown,
    sums_of,
)
from nightjar.policy.evidence.contributions import Contributions, steps_at
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.evidence.robust import (
    LEAST_DEVIATION,
    LEAST_REPLICAS,
    LEAST_STEPS,
    TELLING_STEPS,
    Mask,
    agreeing,
    capped_weights,
    weighted_median,
)

MOST_EFFECT: Final = 0.7
"""Twice as slow or as fast at most: beyond that it is no card of this group, or faulty (INV-10)."""


def pooled(
    contributions: Contributions, known: Evidence, changed: Collection[Cell], replicas: int, now_s: float
) -> tuple[Contributions, Evidence]:
    """Who is distrusted at `now_s`, and the group's evidence: what was `known`, with the `changed` cells and acceptance pooled
    anew; all cells, where somebody is distrusted who was not before, or the other way round.

    `replicas` is how many live: with fewer than three nobody can be outvoted.
    """
    before = contributions.distrusted
    contributions = _judged(contributions, replicas, now_s)
    if contributions.distrusted != before:
        changed = contributions.cells.keys()
    effects = np.array(contributions.effects)
    out = [contributions.rows[name] for name in contributions.distrusted]
    cells, mixed_cells = dict(known.cells), dict(known.mixed_cells)
    for cell in sorted(changed):
        table, kept = _cleared(contributions.cells[cell], out), mixed_cells if cell.prefill else cells
        one = _pooled_prefill(table) if cell.prefill else _pooled_clean(table, effects, replicas, now_s)
        if one is not None:
            kept[cell] = one
        else:
            kept.pop(cell, None)
    acceptance = known.acceptance
    if contributions.acceptance:
        acceptance = _pooled_acceptance(contributions)
    return contributions, replace(known, cells=cells, mixed_cells=mixed_cells, acceptance=acceptance)


def with_effects(contributions: Contributions, evidence: Evidence, slopes: Slopes, now_s: float) -> Contributions:
    """The contributions with each replica's effect as it follows from all that it measured beside what its group knows.

    Above the median of those that measured, so that no common shift creeps in; nobody has one in a group of one.
    """
    size = 1 + max(contributions.rows.values(), default=0)
    steps, above = np.zeros(size), np.zeros(size)
    for cell, table in contributions.cells.items():
        group = evidence.cells.get(cell)
        if group is None:
            continue
        weights = steps_at(table, now_s)
        weights[0] = 0.0
        seen = weights > 0.0
        sums = table[seen]
        rows = sums["rows"] / sums["steps"]
        expected = group.log_seconds / group.steps + slopes.at(cell) * np.log(rows / (group.rows / group.steps))
        residual = np.clip(sums["log_seconds"] / sums["steps"] - expected, -MOST_EFFECT, MOST_EFFECT)
        at = np.flatnonzero(seen)
        steps[at] += weights[seen]
        above[at] += weights[seen] * residual
    measured = steps > 0.0
    if measured.sum() < 2:
        return replace(contributions, effects=())
    effects = above / (steps + PRIOR_CLEAN_STEPS)
    effects = np.where(measured, effects - np.median(effects[measured]), 0.0)
    return replace(contributions, effects=tuple(effects.tolist()))


def without(contributions: Contributions, live: Collection[str], replicas: int, now_s: float) -> Contributions:
    """The contributions once only the `live` ones are replicas of the group: what the others measured is nobody's, and stays.

    Except what the others contradict: a faulty replica takes that with it.
    """
    left = [replica_id for replica_id in contributions.rows if replica_id not in live]
    if not left:
        return contributions
    gone = sorted(contributions.rows[replica_id] for replica_id in left)
    effects = np.array(contributions.effects)
    out = [contributions.rows[name] for name in contributions.distrusted]
    cells = {}
    for cell, table in contributions.cells.items():
        cleared = _cleared(table, out)
        if cell.prefill:
            cells[cell] = _without_rows(cleared, gone, np.ones(len(cleared), dtype=bool))
        else:
            cells[cell] = _without_rows(table, gone, _believed(cleared, effects, replicas, now_s))
    acceptance, remembered = dict(contributions.acceptance), contributions.remembered_acceptance or AcceptanceEvidence()
    names = sorted(acceptance)
    agrees = dict(zip(names, _agreeing_acceptance([acceptance[name] for name in names]), strict=True))
    for replica_id in left:
        its = acceptance.pop(replica_id, None)
        if its is not None and agrees[replica_id] and replica_id not in contributions.distrusted:
            remembered = remembered.aged(now_s).sum(its.aged(now_s)).at(now_s)
    kept = {replica_id: row for replica_id, row in contributions.rows.items() if replica_id in live}
    kept_effects = tuple(0.0 if row in gone else effect for row, effect in enumerate(contributions.effects))
    distrusted = tuple(name for name in contributions.distrusted if name in kept)
    return Contributions(kept, cells, acceptance, remembered, distrusted, kept_effects)


@dataclass(frozen=True, slots=True)
class Slopes:
    """By how much log step time grows with log rows, by bucket and K: buckets are wide, and replicas differ in batch, too."""

    ks: tuple[int, ...] = ()
    slopes: Floats | None = None

    @classmethod
    def of(cls, model: GoodputModel | None) -> Slopes:
        """As a goodput model has them; none without one."""
        if model is None or len(model.rows) < 2:
            return cls()
        log_rows = np.log(model.rows)
        log_seconds = log_rows[:, None] + np.log(model.tokens_per_row) - model.log_goodput
        return cls(model.ks, np.gradient(log_seconds, log_rows, axis=0))

    def at(self, cell: Cell) -> float:
        """The slope in a cell; 0 in one whose K may not run."""
        bucket, k, _ = cell
        if self.slopes is None or k not in self.ks or bucket >= len(self.slopes):
            return 0.0
        return float(self.slopes[bucket, self.ks.index(k)])


def _judged(contributions: Contributions, replicas: int, now_s: float) -> Contributions:
    """The contributions with the replicas that are distrusted now: where three or more reported a cell, those that are further from
    their median than a card of this group can be. None in a group of fewer."""
    steps_against = np.zeros(1 + max(contributions.rows.values(), default=0))
    if replicas >= LEAST_REPLICAS:
        for cell, table in contributions.cells.items():
            if cell.prefill:
                continue
            weights = steps_at(table, now_s)
            weights[0] = 0.0
            reported = np.flatnonzero(weights >= LEAST_STEPS)
            if len(reported) < LEAST_REPLICAS:
                continue
            means, weights = _log_seconds(table, np.empty(0))[reported], weights[reported]
            far = np.abs(means - weighted_median(means, capped_weights(weights))) > MOST_EFFECT
            steps_against[reported[far]] += weights[far]
    distrusted = tuple(sorted(name for name, row in contributions.rows.items() if steps_against[row] >= TELLING_STEPS))
    return contributions if distrusted == contributions.distrusted else replace(contributions, distrusted=distrusted)


def _cleared(table: Table, rows: Sequence[int]) -> Table:
    """The table without what these rows hold."""
    there = [row for row in rows if row < len(table)]
    if not there:
        return table
    after = grown(table, 1)
    after[there] = 0.0
    return after


def _log_seconds(table: Table, effects: Floats) -> Floats:
    """(rows,): mean log seconds of a step by row, the replica's effect taken off."""
    steps = table["steps"]
    means: Floats = np.divide(table["log_seconds"], steps, out=np.zeros(len(steps)), where=steps > 0.0)
    known = min(len(effects), len(means))
    means[:known] -= effects[:known]
    return means


def _believed(table: Table, effects: Floats, replicas: int, now_s: float) -> Mask:
    """(rows,): whether a row's measurements count. Row 0 always does."""
    weights = steps_at(table, now_s)
    believed = weights > 0.0
    reported = np.flatnonzero(weights[1:] >= LEAST_STEPS) + 1
    if replicas < LEAST_REPLICAS or len(reported) < 2:
        return believed
    means = _log_seconds(table, effects)[reported]
    if len(reported) < LEAST_REPLICAS:
        if abs(means[0] - means[1]) > MOST_EFFECT:
            believed[1:] = False
        return believed
    noise = np.sqrt(STEP_VARIANCE / weights[reported])
    agree = agreeing(means, capped_weights(weights[reported]), noise)
    believed[1:] = False
    believed[reported] = agree
    return believed


def _pooled_clean(table: Table, effects: Floats, replicas: int, now_s: float) -> CellEvidence | None:
    """All rows as one, or None where nobody can be believed: the time is a mean, and what a plan only corrects by (context, noise)
    a median once three are believed, as are the tokens that a row emits; rows are bounded by the bucket."""
    believed = np.flatnonzero(_believed(table, effects, replicas, now_s))
    if not len(believed):
        return None
    weights = steps_at(table, now_s)[believed]
    weights = _capped(weights, believed)
    sums = table[believed]
    steps = sums["steps"]
    total = float(weights.sum())
    log_seconds = float(weights @ _log_seconds(table, effects)[believed]) / total
    told = sums["log_seconds_squared"] > 0.0
    means = sums["log_seconds"] / steps
    scatters = np.maximum(sums["log_seconds_squared"] / steps - means**2, 0.0)
    scatter = _middle(scatters[told], weights[told]) + log_seconds**2 if told.any() else 0.0
    context = _middle(sums["context_tokens"] / steps, weights)
    rows = float(weights @ (sums["rows"] / steps))
    emitted = rows * _middle(sums["generated_tokens"] / sums["rows"], weights) if sums["generated_tokens"].any() else 0.0
    return CellEvidence(
        total, total * log_seconds, rows, total * context, total * scatter, generated_tokens=emitted, measured_at_s=now_s
    )


def _capped(weights: Floats, believed: npt.NDArray[np.intp]) -> Floats:
    """Weights in which no replica has more than a third once three are believed; what is nobody's keeps its own."""
    nobodys = int(believed[0] == 0)
    if len(weights) - nobodys < LEAST_REPLICAS:
        return weights
    return np.concatenate((weights[:nobodys], capped_weights(weights[nobodys:])))


def _middle(values: Floats, weights: Floats) -> float:
    """A median where three or more have a say, else a mean."""
    if len(values) >= LEAST_REPLICAS:
        return weighted_median(values, weights)
    return float(weights @ values / weights.sum())


def _pooled_prefill(table: Table) -> CellEvidence | None:
    """As `_pooled_clean`, of steps with prefill: they differ by their prompts, so the gate is the spread alone."""
    present = np.flatnonzero(table["steps"] > 0.0)
    if not len(present):
        return None
    means = table[present]
    weights = means["steps"].copy()
    sums = sums_of(means)
    sums /= weights[:, None]
    if len(present) >= LEAST_REPLICAS:
        capped = _capped(weights, present)
        agree = agreeing(np.log(means["seconds"]), capped)
        means, weights = means[agree], capped[agree]
    total = float(weights.sum())
    return CellEvidence(
        total,
        rows=total * _middle(means["rows"], weights),
        seconds=total * float(weights @ means["seconds"]) / total,
        prefill_tokens=total * _middle(means["prefill_tokens"], weights),
        draft_tokens=total * _middle(means["draft_tokens"], weights),
    )


def _pooled_acceptance(contributions: Contributions) -> AcceptanceEvidence:
    """Position by position, as old as its youngest row; a replica that disagrees at one, by more than noise, has no say at any."""
    own = [
        one
        for name, one in sorted(contributions.acceptance.items())
        if one.reached and one.reached[0] > 0.0 and name not in contributions.distrusted
    ]
    believed = [one for one, agrees in zip(own, _agreeing_acceptance(own), strict=True) if agrees]
    remembered = contributions.remembered_acceptance or AcceptanceEvidence()
    reached, accepted, seen_at_s = [], [], []
    for position in range(max((len(one.reached) for one in believed), default=0)):
        latest_s = max(one.seen_at(position) for one in believed)
        rows, kept = _rows_at([one.aged(latest_s) for one in believed], position)
        rows, kept = rows[rows > 0.0], kept[rows > 0.0]
        if not len(rows):
            break
        weights = capped_weights(rows) if len(rows) >= LEAST_REPLICAS else rows
        reached.append(float(weights.sum()))
        accepted.append(float(weights @ (kept / rows)))
        seen_at_s.append(latest_s)
    mine = AcceptanceEvidence(tuple(reached), tuple(accepted), tuple(seen_at_s))
    return remembered.plus(mine, half_life_rows=np.inf) if remembered.reached else mine


def _agreeing_acceptance(own: Sequence[AcceptanceEvidence]) -> list[bool]:
    """Which are an outlier at no position, by more than noise: a replica that is wrong at one is left out at all. All, while fewer
    than three reported."""
    agrees = np.ones(len(own), dtype=bool)
    for position in range(max((len(one.reached) for one in own), default=0)):
        rows, kept = _rows_at(own, position)
        there = rows >= PRIOR_ROWS
        if there.sum() < LEAST_REPLICAS:
            break
        shares, weights = kept[there] / rows[there], capped_weights(rows[there])
        center = weighted_median(shares, weights)
        noise = np.sqrt(max(center * (1.0 - center), LEAST_DEVIATION) * ROWS_PER_INDEPENDENT_ROW / rows[there])
        agrees[there] &= agreeing(shares, weights, noise)
    return [bool(does) for does in agrees]


def _rows_at(own: Sequence[AcceptanceEvidence], position: int) -> tuple[Floats, Floats]:
    """Rows of each that reached a position, and those of them that it accepted."""
    is_there = [position < len(one.reached) for one in own]
    rows = [one.reached[position] if there else 0.0 for one, there in zip(own, is_there, strict=True)]
    kept = [one.accepted[position] if there else 0.0 for one, there in zip(own, is_there, strict=True)]
    return np.array(rows), np.array(kept)


def _without_rows(table: Table, gone: Sequence[int], believed: Mask) -> Table:
    """The table with what `gone` rows hold in row 0, as far as it is believed."""
    after = grown(table, 1)
    sums, measured_at_s = sums_of(after), after["measured_at_s"]
    for row in gone:
        if row >= len(table):
            continue
        if believed[row]:
            sums[0] += sums[row]
            measured_at_s[0] = max(measured_at_s[0], measured_at_s[row])
        after[row] = 0.0
    return after
