"""What the planner `fleet` would still gain by measuring, and what each measurement costs.

A K is worth a measurement where it might beat the present one: where the expected improvement, by what is known and how
surely, is not negligible. A K that could only win by a miracle is never tried, however little is known of it, and one
that is known stops being worth it: exploration ends by itself, and reopens as evidence ages. Costs count in tokens, so that
one wrong step at a full batch weighs what it takes from the requests there. What is nearly as good as the present K stays in
doubt, and is looked at again as often as pauses and allowance let it (policy/exploration.py).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import MOSTLY_MIXED, Cell
from nightjar.policy.evidence.doubt import UNMEASURED
from nightjar.policy.evidence.goodput import Floats, GoodputModel
from nightjar.policy.evidence.robust import LEAST_REPLICAS, TELLING_STEPS
from nightjar.policy.planners.base import GroupView

LEAST_IMPROVEMENT: Final = 0.0005
"""Expected improvement, as a share of goodput, below which a K is not worth a measurement, however cheap it is."""
REFRESH_S: Final = 600.0
"""Where speculation runs, off is measured again this often, because the promise never to be below off rests on it; where off
runs, the best K is, because nothing else would tell that acceptance has risen."""
STALE_IMPROVEMENT: Final = 0.05
"""What such a measurement counts as worth: models of unmeasured cells were wrong by about that much (docs/planner.md)."""
OFTEN_STEPS: Final = 100.0
"""Clean steps at its K from which a bucket counts as often used."""
HOME_STEPS: Final = 48.0
"""Steps that a bucket's evidence of its K > 0 must weigh, three times over in a group of three or more, until it tries each other
such K once, though the model thinks little of it: one engine takes twice as long for K = 5 as for 3 at two rows, so the model
expected the same of one row, where K = 5 gives an eighth more. Steps fade: it takes 1.4 a second there, 12 in such a group."""
LEAST_CHANCE: Final = 0.5
"""Share of the present goodput that the model must expect of a K that is tried so."""
SETTLING_STEPS: Final = 2
"""Steps at the new K that do not count, because the engine still has to settle."""


MOST_MIXED_SHARE: Final = 0.3
"""Of steps, as the cost of a measurement has it: where hardly a step is clean, its deadline ends it. With a half, so four times the
steps, 32B stayed off at batch 34 (retrieval beside chat) where drafting gives 7 % more."""


class Measurement(NamedTuple):
    """A cell worth measuring: what knowing it may gain (share of goodput, and tokens a second of one replica that runs in its
    bucket) and what it costs (expected tokens lost)."""

    cell: Cell
    improvement: float
    gain_tokens_per_s: float
    cost_tokens: float


def measurements(view: GroupView, model: GoodputModel, planned: npt.NDArray[np.int64]) -> dict[int, tuple[Measurement, ...]]:
    """By bucket what is worth measuring there beside the planned K (an index), most worth for its cost first.

    Nothing whose steps are expected to exceed the operator's limit: a few that do in spite of that are what tells. Where most steps
    have prefill these count as well, and each K is tried once that was never measured in such.
    """
    is_mixed = view.evidence.is_mostly_mixed
    gain, deviation = model.gain(planned)
    deviation = np.maximum(deviation, _model_doubt(view, model, planned))
    margin = math.log1p(view.settings.switch_margin)
    most = model.upper_bound() - model.log_goodput[np.arange(len(planned)), planned][:, None] - margin
    improvement = np.minimum(expected_improvement(gain - margin, deviation), np.maximum(most, 0.0))
    for bucket, index in enumerate(planned):
        rival = 0 if index or len(model.ks) == 1 else 1 + int(np.argmax(gain[bucket, 1:]))
        if _is_stale(view, bucket, model.ks[index], model.ks[rival]):
            improvement[bucket, rival] = max(improvement[bucket, rival], STALE_IMPROVEMENT)
        for unseen in _unseen(view, model, bucket, int(index), gain[bucket]):
            improvement[bucket, unseen] = max(improvement[bucket, unseen], min(STALE_IMPROVEMENT, max(most[bucket, unseen], 0.0)))
    improvement[:, _waits_for_quiet(view)] = 0.0
    untried = [is_mixed and not view.is_measured_beside_prefill(k) for k in model.ks]
    improvement[:, untried] = np.maximum(improvement[:, untried], STALE_IMPROVEMENT)
    improvement = np.where(model.may_be_tried, improvement, 0.0)
    for bucket, k, _ in view.resting:
        if k in model.ks:
            improvement[bucket, model.ks.index(k)] = 0.0
    lost = np.expm1(np.minimum(expected_improvement(-gain, deviation), 2.0))
    steps = view.settings.calibration_clean_steps * _steps_per_clean_step(view, model) + SETTLING_STEPS
    cost = steps * model.rows[:, None] * model.tokens_per_row * lost
    gain_tokens_per_s = improvement * np.exp(model.log_goodput[np.arange(len(planned)), planned])[:, None]
    wanted: dict[int, tuple[Measurement, ...]] = {}
    for bucket in view.buckets:
        found = [
            Measurement(
                Cell(bucket, k, is_mixed),
                float(improvement[bucket, index]),
                float(gain_tokens_per_s[bucket, index]),
                float(cost[bucket, index]),
            )
            for index, k in enumerate(model.ks)
            if (index != planned[bucket] or untried[index]) and improvement[bucket, index] > LEAST_IMPROVEMENT
        ]
        if found:
            wanted[bucket] = tuple(sorted(found, key=lambda one: (-one.improvement / (one.cost_tokens + 1.0), one.cell)))
    return wanted


def _waits_for_quiet(view: GroupView) -> list[bool]:
    """(ks,): K that ran in pure decode steps, while users' time decides and most of it goes into steps with prefill.

    To know pure steps better is worth little then, and a drafter that sleeps while off is measured misses whole prompts.
    """
    is_quiet = view.settings.objective != "latency" or view.waits.share_beside_prefill <= MOSTLY_MIXED
    ran = {cell.num_speculative_tokens for cell in view.evidence.cells}
    return [not is_quiet and view.drafter_sleeps and k in ran for k in view.ks]


def _steps_per_clean_step(view: GroupView, model: GoodputModel) -> Floats:
    """(buckets, ks): steps that a measurement holds its K for one that counts: neither it nor the one before it has prefill,
    unless such steps count as well."""
    if view.evidence.is_mostly_mixed:
        return np.ones(model.log_goodput.shape)
    mixed = view.evidence.mixed_steps_per_token * model.rows[:, None] * model.tokens_per_row
    return np.asarray((1.0 - np.minimum(mixed, MOST_MIXED_SHARE)) ** -2.0)


def expected_improvement(mean: Floats, deviation: Floats) -> Floats:
    """E[max(X, 0)] of a normal X, elementwise.

    >>> [round(float(x), 4) for x in expected_improvement(np.array([0.0, 1.0, -1.0]), np.array([1.0, 1e-9, 1e-9]))]
    [0.3989, 1.0, 0.0]
    """
    deviation = np.maximum(deviation, 1e-9)
    z = np.clip(mean / deviation, -30.0, 30.0)
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    below = np.array([math.erf(value) for value in (z / math.sqrt(2.0)).ravel()]).reshape(z.shape)
    excess: Floats = np.maximum(mean * 0.5 * (1.0 + below) + deviation * density, 0.0)
    return excess


def _model_doubt(view: GroupView, model: GoodputModel, planned: npt.NDArray[np.int64]) -> Floats:
    """(buckets, ks): what a model may be wrong by in cells that were never measured, where a bucket is in use: where its own K
    has the clean steps of a measurement."""
    doubt = np.zeros(model.log_goodput.shape)
    used = view.settings.calibration_clean_steps
    for bucket, index in enumerate(planned):
        runs = view.evidence.cells.get(Cell(bucket, model.ks[index]))
        if runs is not None and runs.steps >= used:
            doubt[bucket] = [0.0 if view.is_measured(bucket, k) else UNMEASURED for k in model.ks]
    return doubt


def _unseen(view: GroupView, model: GoodputModel, bucket: int, planned: int, gain: Floats) -> list[int]:
    """Indices of the K > 0 of which a bucket at home with one has seen next to nothing; imported cells count as seen.

    `gain` is what each K adds to the log goodput of the `planned` one.
    """
    cells = view.evidence.cells
    runs = cells.get(Cell(bucket, model.ks[planned]))
    if planned == 0 or runs is None or runs.steps < HOME_STEPS * (LEAST_REPLICAS if view.replicas >= LEAST_REPLICAS else 1):
        return []
    tried = {
        cell.num_speculative_tokens for cell, known in cells.items() if cell.batch_bucket == bucket and known.steps >= TELLING_STEPS
    }
    return [
        index
        for index, k in enumerate(model.ks)
        if k and index != planned and gain[index] > math.log(LEAST_CHANCE) and k not in tried
    ]


def _is_stale(view: GroupView, bucket: int, planned: int, rival: int) -> bool:
    """Whether a bucket in use needs to see the other side of off, of which `rival` is the best K.

    A group that never saw off anywhere needs it at once; a rival known from elsewhere alone is seen here in every bucket in use.
    """
    cells = view.evidence.cells
    if planned and all(cell.num_speculative_tokens for cell in cells):
        return True
    runs, other = cells.get(Cell(bucket, planned)), cells.get(Cell(bucket, rival))
    least_steps = view.settings.calibration_clean_steps if Cell(bucket, rival) in view.imported else OFTEN_STEPS
    if rival == planned or runs is None or runs.steps < least_steps:
        return False
    return other is None or view.now_s - other.measured_at_s > REFRESH_S
