"""Which drafts a request accepts: survival by class of request, and how it drifts.

Survival[i] is the probability that more than i drafts of a row are accepted. Classes differ because texts do: code is easier to
draft than conversation, so what a batch accepts depends on who is in it. Drift multiplies every conditional acceptance, as a
change of topic or of sampling temperature does: the deeper a position, the more it loses.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from nightjar.loadtests.simulation.profiles import Profile


class AcceptanceClasses:
    """The classes of a profile under the present drift."""

    def __init__(self, profile: Profile) -> None:
        self._nominal = np.array([kind.survival for kind in profile.acceptance_classes], dtype=np.float64)
        self.survival: NDArray[np.float64] = self._nominal
        """survival[class, i]: probability that more than i drafts are accepted."""
        self.expected_hits: list[list[float]] = self._sums()
        """expected_hits[class][K]: drafts that a row of the class accepts on average when K are verified."""

    def __len__(self) -> int:
        return len(self._nominal)

    def scale(self, factor: float) -> None:
        """Set drift: every conditional acceptance is `factor` times the profile's, at most 1 (1.0: no drift)."""
        self.survival = _scaled(self._nominal, factor)
        self.expected_hits = self._sums()

    def _sums(self) -> list[list[float]]:
        return [list(accumulate(line, initial=0.0)) for line in self.survival.tolist()]


def scaled(profile: Profile, factor: float) -> Profile:
    """The profile with other texts: every conditional acceptance is `factor` times as high, at most 1."""
    survival = _scaled(np.array([kind.survival for kind in profile.acceptance_classes], dtype=np.float64), factor).tolist()
    classes = [
        kind.model_copy(update={"survival": tuple(line)}) for kind, line in zip(profile.acceptance_classes, survival, strict=True)
    ]
    return profile.model_copy(update={"acceptance_classes": tuple(classes)})


def _scaled(survival: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    conditional = survival.copy()
    conditional[:, 1:] /= np.maximum(survival[:, :-1], 1e-12)
    return np.cumprod(np.minimum(conditional * factor, 1.0), axis=1)
