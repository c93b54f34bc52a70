"""What catching up costs: so many seconds for every step that recomputes anything, and so many for every token.

Both matter. A forward of the draft over few tokens takes nearly as long as over many on a GPU, so that small chunks are dear there;
on a CPU each token has its price. A line is fitted to the steps of all replicas of a group (least squares, sums only), drawn to a
prior while there are few. Fails towards dear: the prior is, so that the first restarts are few and small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from nightjar.policy.evidence.robust import LEAST_REPLICAS, LEAST_STEPS, OUTLIER_DEVIATIONS, capped_weights
from nightjar.policy.wire.record import SignedSum

PRIOR_ON_CPU: Final = (0.1, 0.005)
PRIOR_ELSEWHERE: Final = (0.2, 0.0005)
"""Shares of an OFF step, for a step with any catch-up and for each token in it. Measured: 0.1 and 0.0054 with a draft of a fifth
of the target's size on a CPU (vLLM 0.32: 25 ms and 1.35 ms of 250 ms); by roofline 0.2 and 0.0001 for 0.5B beside 7B on a GPU,
where tokens come nearly free until a forward is bound by compute. Dear by a factor of five there, because drafts may be larger."""
PRIOR_CHUNKS: Final = (16.0, 128.0)
PRIOR_STEPS: Final = 0.5
"""The prior weighs as much as half a step at each of these chunks: little, because steps at one chunk alone leave it open how
much of their time is fixed, and then only the prior tells; steps at two soon do. So the prior is drawn through what was measured
first: where steps at one chunk took four times what it says, a token does as well. Unscaled it would lie below them at larger
chunks, which would look free: a real CPU engine went from 0.1 s to 1 s a step that way (docs/restarts.md)."""
LEAST_PRIOR_SHARE: Final = 0.1
"""The prior is never scaled below this, nor a token priced below this share of it: noise must not make tokens free."""
HALF_LIFE_STEPS: Final = 2_000.0
MOST_DISAGREEMENT: Final = 0.5
"""Contributions within e^0.5 of the median price count in any case: few steps scatter."""


@dataclass(frozen=True, slots=True)
class CatchUpCost:
    """The line: seconds that a step takes longer when it recomputes `n` tokens are `step_seconds` + n * `token_seconds`."""

    step_seconds: float
    token_seconds: float

    def times(self, share: float) -> CatchUpCost:
        """A line so many times as dear."""
        return CatchUpCost(self.step_seconds * share, self.token_seconds * share)

    def of_chunk(self, tokens: float) -> float:
        """Seconds that a step with so many tokens takes longer."""
        return self.step_seconds + self.token_seconds * tokens

    def of_lag(self, lag_tokens: float, chunk_tokens: float) -> float:
        """Seconds that catching up a lag takes in all, in chunks of at most `chunk_tokens`."""
        return math.ceil(lag_tokens / chunk_tokens) * self.step_seconds + self.token_seconds * lag_tokens


@dataclass(frozen=True, slots=True)
class CatchUpEvidence:
    """Decayed sums over steps with catch-up: steps, tokens n, n squared, seconds longer t, and n times t."""

    steps: SignedSum = 0.0
    tokens: SignedSum = 0.0
    tokens_squared: SignedSum = 0.0
    seconds: SignedSum = 0.0
    token_seconds: SignedSum = 0.0

    def plus(self, newer: CatchUpEvidence) -> CatchUpEvidence:
        """This evidence aged by the newer steps, and the newer."""
        share_left = 0.5 ** (newer.steps / HALF_LIFE_STEPS)
        return self.times(share_left).sum(newer)

    def sum(self, other: CatchUpEvidence) -> Self:
        """Both together."""
        return type(self)(
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.tokens_squared + other.tokens_squared,
            self.seconds + other.seconds,
            self.token_seconds + other.token_seconds,
        )

    def times(self, weight: float) -> Self:
        """All sums, weighted."""
        return type(self)(
            self.steps * weight,
            self.tokens * weight,
            self.tokens_squared * weight,
            self.seconds * weight,
            self.token_seconds * weight,
        )

    def cost(self, off_step_seconds: float, accelerator: str) -> CatchUpCost:
        """The line through these steps and the prior for an OFF step on that accelerator, as dear as they are; never negative.

        >>> cost = CatchUpEvidence().cost(0.25, "cpu")
        >>> round(cost.step_seconds, 6), round(cost.token_seconds, 6)
        (0.025, 0.00125)
        """
        prior = _prior(off_step_seconds, accelerator)
        known = self.sum(_as_steps(prior.times(max(self._share_of(prior), LEAST_PRIOR_SHARE))))
        determinant = known.steps * known.tokens_squared - known.tokens**2
        slope = (known.steps * known.token_seconds - known.tokens * known.seconds) / determinant
        slope = max(slope, LEAST_PRIOR_SHARE * prior.token_seconds)
        level = (known.seconds - slope * known.tokens) / known.steps
        if level < 0.0:
            slope, level = max(known.token_seconds / known.tokens_squared, LEAST_PRIOR_SHARE * prior.token_seconds), 0.0
        return CatchUpCost(max(level, 1e-6 * off_step_seconds), slope)

    def _share_of(self, line: CatchUpCost) -> float:
        """What these steps took over what a line says, as if so many steps as the prior weighs had been as the line says."""
        weight_seconds = _as_steps(line).seconds
        expected = line.step_seconds * self.steps + line.token_seconds * self.tokens
        return (self.seconds + weight_seconds) / (expected + weight_seconds)


@dataclass(frozen=True, slots=True)
class NewRestarts:
    """What a replica's counters added: steps with catch-up, restarts and those whose probe failed."""

    catch_up: CatchUpEvidence = CatchUpEvidence()
    restarts: int = 0
    failed_probes: int = 0

    def plus(self, newer: NewRestarts) -> NewRestarts:
        """Both together."""
        return NewRestarts(
            self.catch_up.plus(newer.catch_up), self.restarts + newer.restarts, self.failed_probes + newer.failed_probes
        )


def merge_catch_up(
    known: CatchUpEvidence, pending: Mapping[str, CatchUpEvidence], replicas: int, line: CatchUpCost
) -> tuple[CatchUpEvidence, frozenset[str]]:
    """The group's evidence with what enough replicas of `replicas` report (INV-10), and whose unmerged evidence is used up.

    In a group of three or more no contribution weighs more than a third, and one whose steps took far more or less than the
    others' is left out: measured by the `line` known so far, in seconds and in tokens times seconds.
    """
    needed = LEAST_REPLICAS if replicas >= LEAST_REPLICAS else 1
    contributions = {replica_id: waiting for replica_id, waiting in sorted(pending.items()) if waiting.steps >= LEAST_STEPS}
    if len(contributions) < needed:
        return known, frozenset()
    used = frozenset(contributions)
    heard = list(contributions.values())
    if needed > 1:
        heard = _agreeing(heard, line)
        steps = np.array([contribution.steps for contribution in heard])
        weights = capped_weights(steps) / steps if len(heard) >= needed else np.ones(len(heard))
        heard = [contribution.times(float(weight)) for contribution, weight in zip(heard, weights, strict=True)]
    total = CatchUpEvidence()
    for contribution in heard:
        total = total.sum(contribution)
    return known.plus(total), used


def _agreeing(contributions: list[CatchUpEvidence], line: CatchUpCost) -> list[CatchUpEvidence]:
    ratios = np.array([_ratios(contribution, line) for contribution in contributions])
    distance = np.abs(np.log(np.maximum(ratios, 1e-9)) - np.median(np.log(np.maximum(ratios, 1e-9)), axis=0))
    reach = OUTLIER_DEVIATIONS * np.median(distance, axis=0)
    agrees = (distance <= np.maximum(reach, MOST_DISAGREEMENT)).all(axis=1)
    return [contribution for contribution, is_heard in zip(contributions, agrees, strict=True) if is_heard]


def _ratios(contribution: CatchUpEvidence, line: CatchUpCost) -> tuple[float, float]:
    """What the contribution's steps took over what the line says, twice: of the seconds, and of tokens times seconds."""
    seconds = line.step_seconds * contribution.steps + line.token_seconds * contribution.tokens
    token_seconds = line.step_seconds * contribution.tokens + line.token_seconds * contribution.tokens_squared
    return contribution.seconds / seconds, contribution.token_seconds / token_seconds


def _prior(off_step_seconds: float, accelerator: str) -> CatchUpCost:
    step_share, token_share = PRIOR_ON_CPU if accelerator == "cpu" else PRIOR_ELSEWHERE
    return CatchUpCost(step_share * off_step_seconds, token_share * off_step_seconds)


def _as_steps(line: CatchUpCost) -> CatchUpEvidence:
    """Evidence of steps as the line says, as many as a prior weighs."""
    tokens, tokens_squared = PRIOR_STEPS * sum(PRIOR_CHUNKS), PRIOR_STEPS * sum(chunk * chunk for chunk in PRIOR_CHUNKS)
    steps = PRIOR_STEPS * len(PRIOR_CHUNKS)
    seconds = steps * line.step_seconds + tokens * line.token_seconds
    token_seconds = tokens * line.step_seconds + tokens_squared * line.token_seconds
    return CatchUpEvidence(steps, tokens, tokens_squared, seconds, token_seconds)
