"""Engine time that a group saved, or lost, under its present mode, against engines that had run one K in every step.

It counts since the policy began to, or since the mode of most of the group's replicas, or the planner that decides, last changed.
Counted are seconds of clean steps (pure decode, at one K for two steps) by batch bucket and K, and what catching up added to some.
A step that took s seconds at K would have taken s * goodput(K) / goodput(former K) for as many tokens at the former K; both are the
group's present estimate for the step's own batch bucket. Steps that also compute prompt tokens, or come right after a change of K,
are not compared. Fails towards silence: a former K that nobody measured here is not known, a bucket where the ratio is in doubt is
left out, and where too much time is left out nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from nightjar.policy.evidence.cells import Cell, Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS, MEASURED_STEPS
from nightjar.policy.evidence.goodput import GoodputModel

MOST_DEVIATION: Final = 0.1
"""Standard deviation of the logarithm of the ratio of two K's goodputs, above which a bucket is not known."""
MOST_LOG_RATIO: Final = 3.0
"""No K gives twenty times the tokens of another."""
LEAST_COMPARED: Final = 0.5
"""Share of the seconds of clean steps that must be known."""


class Under(NamedTuple):
    """A mode by its kind, the K of a pin, and in auto the planner."""

    kind: str
    num_speculative_tokens: int | None = None
    planner: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a group's engines did since `since_s`, as far as reports told one after the other: sums, never decayed.

    `under` is what most of its replicas ran under meanwhile (None: nothing was decided yet). `cells` are seconds of clean steps,
    `catch_up_s` is how much longer other steps took for catching up, `busy_s` is everything.
    """

    since_s: float
    busy_s: float = 0.0
    catch_up_s: float = 0.0
    cells: Mapping[Cell, float] = field(default_factory=dict)
    under: Under | None = None

    def plus(self, busy_s: float, catch_up_s: float, cells: Mapping[Cell, float]) -> Spent:
        """With what one more report told."""
        summed = {**self.cells, **{cell: self.cells.get(cell, 0.0) + seconds for cell, seconds in cells.items()}}
        return replace(self, busy_s=self.busy_s + busy_s, catch_up_s=self.catch_up_s + catch_up_s, cells=summed)


class Gained(NamedTuple):
    """Seconds that were spent and compared, and the share of the former K's time that they saved, with two deviations of doubt."""

    compared_s: float
    share: float
    low: float
    high: float


def measured(evidence: Evidence, imported: Container[Cell]) -> frozenset[int]:
    """The K that engines of the group itself have run for long enough to tell what they give."""
    return frozenset(
        cell.num_speculative_tokens
        for cell, known in evidence.cells.items()
        if known.steps >= MEASURED_STEPS and cell not in imported
    )


def gained(spent: Spent, model: GoodputModel, former: int, measured: Container[int]) -> Gained | None:
    """What `spent` saved against the K `former` in every step; None where that is not known: it is none of `measured`, say.

    Time at the former K itself saved nothing, without doubt. Doubts of two buckets add up: they come from the same few slopes.
    """
    if former not in model.ks or former not in measured:
        return None
    index = model.ks.index(former)
    log_ratio, deviation = model.gain(np.full(len(model.rows), index, dtype=np.int64))
    compared_s = former_s = doubt_s = 0.0
    for (bucket, k, _), seconds in spent.cells.items():
        if k not in model.ks or bucket >= len(model.rows):
            continue
        place = bucket, model.ks.index(k)
        if not (deviation[place] <= MOST_DEVIATION and abs(log_ratio[place]) <= MOST_LOG_RATIO):  # also where it is no number
            continue
        compared_s += seconds
        former_s += seconds * math.exp(log_ratio[place])
        doubt_s += seconds * math.exp(log_ratio[place]) * float(deviation[place])
    if former_s <= 0.0 or compared_s < LEAST_COMPARED * sum(spent.cells.values()):
        return None
    spent_s = compared_s + spent.catch_up_s
    least_s, most_s = (max(former_s + sign * DOUBT_DEVIATIONS * doubt_s, 1e-9) for sign in (-1.0, 1.0))
    return Gained(compared_s, 1.0 - spent_s / former_s, 1.0 - spent_s / least_s, 1.0 - spent_s / most_s)
