"""Means that one replica cannot move (INV-10): no sample weighs more than a third, and one far from the median has no say.

Who is wrong is known from three samples on. With fewer nothing here says anything, and whoever asks must be content with the
physical limits of `counting.py`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

LEAST_REPLICAS: Final = 3
"""Replicas from which one that is wrong is outvoted."""
LEAST_STEPS: Final = 1.0
"""Steps that a replica's measurements must weigh until it counts as one that reported: clean ones, or those with catch-up."""
TELLING_STEPS: Final = 2.0
"""Clean steps that tell something by themselves, as one cannot, which may have stalled: that a replica is wrong, where so many over
all cells contradict the others, and whether a K that was tried is worth another look (planners/calibration.py)."""
OUTLIER_DEVIATIONS: Final = 3.0
"""Median absolute deviations from the median within which a replica's value counts."""
LEAST_DEVIATION: Final = 0.003
"""A floor for that deviation, 0.3 % of step time: where honest replicas agree, a faulty one moves the mean by less than the
`switch_margin` of any plan."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def capped_weights(weights: Floats) -> Floats:
    """Weights of three or more samples, the heaviest lowered until none is more than a third of their sum.

    >>> capped_weights(np.array([8.0, 1.0, 1.0, 1.0])).tolist(), capped_weights(np.array([9.0, 5.0, 1.0])).tolist()
    ([1.5, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    """
    heaviest_first = np.sort(weights)[::-1]
    for capped in range(LEAST_REPLICAS):
        cap = float(heaviest_first[capped:].sum()) / (LEAST_REPLICAS - capped)
        if heaviest_first[capped] <= cap:
            break
    return np.minimum(weights, cap)


def agreeing(values: Floats, weights: Floats, noise: Floats | float = 0.0) -> Mask:
    """Which of three or more samples are within three median absolute deviations of their weighted median.

    `noise`: standard deviation of each value where none is wrong; a difference that it explains makes no outlier.

    >>> agreeing(np.array([0.0, 0.01, -0.01, 2.3]), np.ones(4)).tolist()
    [True, True, True, False]
    """
    distance = np.abs(values - weighted_median(values, weights))
    spread = max(weighted_median(distance, weights), LEAST_DEVIATION)
    within: Mask = distance <= OUTLIER_DEVIATIONS * np.maximum(spread, noise)
    return within


def weighted_median(values: Floats, weights: Floats) -> float:
    """The value below which half of the weight lies."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2.0)])
