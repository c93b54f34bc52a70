"""Noise of step times: lognormal around the median, and rare stalls. Drawn in blocks, by the number of the step alone.

Two engines with the same seed see the same noise in the same step, whatever their planners do (common random numbers).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from nightjar.loadtests.simulation.profiles import StepNoise

BLOCK: Final = 1024


class NoiseStream:
    """The noise of one engine, step after step."""

    def __init__(self, noise: StepNoise, seed: int) -> None:
        self._noise = noise
        self._seed = seed
        self._beginnings = 0
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        self._stalls: list[float] = []
        self._at = BLOCK

    def apply(self, seconds: float) -> float:
        """The next step's time, where it takes `seconds` without noise."""
        at = self._at
        if at == BLOCK:
            self._draw()
            at = 0
        self._at = at + 1
        return seconds * self._factors[at] + self._stalls[at]

    def begin_anew(self) -> None:
        """Count steps from here: what follows hangs on the seed and on how often it began anew."""
        self._beginnings += 1
        self._rng = np.random.default_rng((self._seed, self._beginnings))
        self._at = BLOCK

    def _draw(self) -> None:
        noise = self._noise
        self._factors = self._rng.lognormal(0.0, noise.lognormal_sd, BLOCK).tolist()
        self._stalls = np.where(self._rng.random(BLOCK) < noise.stall_share, noise.stall_seconds, 0.0).tolist()
