"""What a group may expect of every arm in every batch bucket: log goodput, and how sure the difference of two arms is.

Goodput is rows * E(k) / step time, generated tokens a second; its logarithm splits into acceptance (one for all buckets) and
step time (one for all prompts), so each is learned where it is cheapest. Planner, exploration and the price of a restart all
read this one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nightjar.policy.estimate.acceptance import AcceptanceEvidence
from nightjar.policy.estimate.step_time import StepTimes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outlook:
    """Log goodput by bucket and arm. Arrays are never changed in place."""

    arms: tuple[int, ...]
    """The K that may run, ascending, 0 first."""
    log_goodput: Floats
    """(buckets, arms), of generated tokens a second."""
    covariance: Floats
    """(buckets, arms, arms), of the log goodput of one bucket's arms."""
    rows: Floats
    """(buckets,): decode rows that it is for."""
    tokens_per_row: Floats
    """(arms,): E(k)."""
    tokens_deviation: Floats
    """(arms,): standard deviation of log E(k)."""

    @cached_property
    def _goodput(self) -> list[list[float]]:
        goodput: list[list[float]] = np.exp(self.log_goodput).tolist()
        return goodput

    def goodput_tokens_per_s(self, bucket: int, num_speculative_tokens: int) -> float:
        """Expected generated tokens a second. Raises ValueError for a K that is not an arm."""
        return self._goodput[bucket][self.arms.index(num_speculative_tokens)]

    def ceiling(self) -> Floats:
        """(buckets, arms): log goodput that an arm cannot exceed beyond doubt, because a step never gets shorter with K.

        As long as the longest expected step of the shorter K, and with acceptance two standard deviations better than expected.
        """
        most_tokens = np.log(self.rows)[:, None] + np.log(self.tokens_per_row) + 2.0 * self.tokens_deviation
        log_seconds = np.log(self.rows)[:, None] + np.log(self.tokens_per_row) - self.log_goodput
        least_seconds = np.maximum.accumulate(log_seconds, axis=1)
        least_seconds[:, 1:] = least_seconds[:, :-1]
        ceiling: Floats = most_tokens - least_seconds
        return ceiling

    def gain(self, present: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """By bucket and arm: log goodput above that of the bucket's `present` arm (an index), and its standard deviation."""
        buckets = np.arange(len(present))
        gain = self.log_goodput - self.log_goodput[buckets, present][:, None]
        own = np.diagonal(self.covariance, axis1=1, axis2=2)
        variance = own + own[buckets, present][:, None] - 2.0 * self.covariance[buckets, present]
        return gain, np.sqrt(np.maximum(variance, 0.0))


def outlook(
    arms: tuple[int, ...], times: StepTimes, acceptance: AcceptanceEvidence, charged_s_per_token: Floats, now_s: float
) -> Outlook:
    """The table for `arms`, whose step times were predicted as `times`.

    `charged_s_per_token`: (buckets, arms), what each token takes longer on top (mixed_steps.charge).
    """
    survival = acceptance.acceptance(arms[-1])
    counts = np.arange(1, len(survival) + 1)[None, :] <= np.array(arms)[:, None]
    tokens = 1.0 + counts @ np.array(survival)
    covariance = counts @ acceptance.covariance(survival, now_s) @ counts.T / np.outer(tokens, tokens)
    log_goodput = np.log(times.rows)[:, None] + np.log(tokens)[None, :] - times.log_seconds
    log_goodput = log_goodput - np.log1p(charged_s_per_token * np.exp(log_goodput))
    return Outlook(arms, log_goodput, times.covariance + covariance[None, :, :], times.rows, tokens, np.sqrt(np.diag(covariance)))
