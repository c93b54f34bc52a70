"""How surely a predicted gain is told to people, which is less than what a planner acts on.

A planner that is wrong measures, and is right a minute later. A person who reads that K=3 gives 20 % more decides by it, so the
interval must hold what K=3 then gives. The model of step times is smooth, and engines are not: one takes as long for one draft
token as for none, and twice as long for two. And the requests that ran are few. `make bench-model` measures how often such
intervals hold the truth, by profile and by what is known. No plan rests on these deviations: a planner's own are smaller.
Fails towards saying less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import Evidence, Floats

UNMEASURED: Final = 0.2
"""Standard deviation of the logarithm of a gain, at least, where either K was not measured in that batch bucket: its variance grows
by as much with each further bucket from the nearest where any was. No smooth model knows that one engine takes as long for one
draft token as for none, and twice as long for two (vLLM 0.32 on a CPU, 4 rows)."""
BEYOND: Final = 3.0
"""Times that variance where a K is longer than any that was measured: nothing bounds what it takes from above."""
MEASURED: Final = 0.03
"""What a measured K adds to the doubt of a gain: the model smooths what it measured."""
MEASURED_STEPS: Final = 8.0
"""Clean steps from which a K counts as measured."""
DOUBT_DEVIATIONS: Final = 2.0
"""Standard deviations after which something counts as beyond doubt, 1 in 40 times wrongly: a gain for which a plan changes, a step
within an operator's limit, a goodput that no K can exceed, and either end of an interval that people are told."""

Mask = npt.NDArray[np.bool_]


def told_deviation(covariance: Floats, measured: Mask) -> Floats:
    """(buckets, ks, ks): standard deviation that is told of the log goodput of one K over another.

    `covariance` is that of the log goodput of one bucket's K, `measured` says which K ran in which buckets.
    """
    own = np.diagonal(covariance, axis1=1, axis2=2)
    variance = np.maximum(own[:, :, None] + own[:, None, :] - 2.0 * covariance, 0.0)
    least = _least_variance(measured)
    unsure = np.maximum(least[:, :, None], least[:, None, :])
    told: Floats = np.sqrt(np.where(unsure > 0.0, np.maximum(variance, unsure), variance + 2.0 * MEASURED**2))
    same = np.arange(measured.shape[1])
    told[:, same, same] = 0.0
    return told


def measured_ks(evidence: Evidence, ks: Sequence[int], buckets: int) -> Mask:
    """(buckets, ks): whether engines ran the K in the bucket for long enough to tell."""
    measured = np.zeros((buckets, len(ks)), dtype=np.bool_)
    places = {k: place for place, k in enumerate(ks)}
    for (bucket, k, _), known in evidence.cells.items():
        if known.steps >= MEASURED_STEPS and bucket < buckets and k in places:
            measured[bucket, places[k]] = True
    return measured


def _least_variance(measured: Mask) -> Floats:
    """(buckets, ks): of a gain over or of the K; 0 where it was measured."""
    buckets, ks = np.flatnonzero(measured.any(axis=1)), np.flatnonzero(measured.any(axis=0))
    if not len(buckets):
        return np.full(measured.shape, BEYOND * UNMEASURED**2)
    away = np.abs(np.arange(len(measured))[:, None] - buckets[None, :]).min(axis=1)
    beyond = np.where(np.arange(measured.shape[1]) > ks.max(), BEYOND, 1.0)
    return np.where(measured, 0.0, UNMEASURED**2 * np.maximum(away, 1.0)[:, None] * beyond[None, :])
