"""What a group may expect of every K in every batch bucket: log goodput, and how sure the difference of two K is.

Goodput is rows * E(k) / step time, generated tokens a second; its logarithm splits into acceptance (one for all buckets) and
step time (one for all prompts), so each is learned where it is cheapest. Where vLLM verifies fewer drafts than K, E(k) is that of
the bucket (ceilings.py). Planner, exploration, the price of a restart and what engines are told for their guard (policy.step.guard)
all read this one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.acceptance import ROWS_PER_INDEPENDENT_ROW, ROWS_PER_REQUEST, AcceptanceEvidence
from nightjar.policy.evidence.ceilings import EmittedTokens
from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS, measured_ks, told_deviation
from nightjar.policy.evidence.mixed_steps import charge
from nightjar.policy.evidence.step_time import StepTimes
from nightjar.policy.wire.record import LONGEST_STEP_SECONDS, MAX_BATCH_SIZE, SHORTEST_STEP_SECONDS
from nightjar.policy.wire.settings import OffStep

Floats = npt.NDArray[np.float64]

PREFILL_DEVIATION: Final = 0.1
"""Standard deviation of the logarithm of what a prompt adds to a step: known from sums over all prompts, and no line."""
NOISE_DEVIATIONS: Final = 2.33
"""Standard deviations that one in a hundred values of a normal distribution exceed."""
HORIZON_S: Final = 120.0
"""More goodput counts for so long at most against what it takes to get it, for nobody knows the load of the next hour. A restart
that is not expected to pay by then is not granted (restarts/on_time.py). A measurement can wait: it is paid out of a share of the
output, never out of a cold start's grant (exploration.py)."""


@dataclass(frozen=True)
class StepLimit:
    """An operator's limit of a step, and how long all but one step in a hundred take at most."""

    max_step_s: float
    expected_step_s: Floats
    """(buckets, ks)."""
    most_step_s: Floats
    """(buckets, ks): the same beyond doubt."""

    def keeps(self, step_s: Floats) -> npt.NDArray[np.bool_]:
        """(buckets, ks): whether such steps keep the limit; those of off (the first K) count as if they did."""
        within: npt.NDArray[np.bool_] = step_s <= self.max_step_s
        within[:, 0] = True
        return within


@dataclass(frozen=True)
class GoodputModel:
    """Log goodput by bucket and K. Arrays are never changed in place."""

    ks: tuple[int, ...]
    """The K that may run, ascending, 0 first."""
    log_goodput: Floats
    """(buckets, ks), of generated tokens a second."""
    covariance: Floats
    """(buckets, ks, ks), of the log goodput of one bucket's K."""
    rows: Floats
    """(buckets,): decode rows that it is for."""
    tokens_per_row: Floats
    """(buckets, ks): E(k)."""
    tokens_deviation: Floats
    """(buckets, ks): standard deviation of log E(k)."""
    limit: StepLimit | None = None
    """Where the operator limits a step."""
    mixed_costs: Floats | None = None
    """(buckets, ks, ks): what each K in steps with prefill costs beside each K of pure decode steps (of mixed_steps)."""
    evidence: Evidence | None = None
    at_s: float = 0.0
    """What it was made of, and when: for what people are told of it."""
    seconds: Floats | None = None
    """(buckets, ks): of a pure decode step; None where nobody told."""
    mixed_seconds: Floats | None = None
    """The same of a step with the usual prefill; None before there was any."""

    @cached_property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """(buckets, ks): whether a K keeps the operator's limit beyond doubt. Off always does: nothing is shorter."""
        return self._all if self.limit is None else self.limit.keeps(self.limit.most_step_s)

    @cached_property
    def may_be_tried(self) -> npt.NDArray[np.bool_]:
        """(buckets, ks): whether a K is expected to keep the limit: a few steps of it tell whether it does."""
        return self._all if self.limit is None else self.limit.keeps(self.limit.expected_step_s)

    @cached_property
    def told_deviation(self) -> Floats:
        """(buckets, ks, ks): standard deviation of one K's log goodput over another's, as people are told it (doubt.py)."""
        if self.evidence is None or self.evidence.is_censored:
            return told_deviation(self.covariance, self.measured)
        ks, acceptance = self.ks, self.evidence.acceptance
        more = _of_tokens(ks, acceptance, self.at_s, ROWS_PER_REQUEST) - _of_tokens(ks, acceptance, self.at_s)
        return told_deviation(self.covariance + more[None, :, :], self.measured)

    @cached_property
    def measured(self) -> npt.NDArray[np.bool_]:
        """(buckets, ks): which K engines ran for long enough to tell people of them; all where nothing says."""
        return self._all if self.evidence is None else measured_ks(self.evidence, self.ks, len(self.rows))

    @property
    def _all(self) -> npt.NDArray[np.bool_]:
        return np.ones(self.log_goodput.shape, dtype=np.bool_)

    @cached_property
    def limited(self) -> npt.NDArray[np.bool_]:
        """(buckets,): whether the K with the most goodput is one that the limit forbids."""
        best = np.argmax(self.log_goodput, axis=1)
        limited: npt.NDArray[np.bool_] = ~self.allowed[np.arange(len(best)), best]
        return limited

    @cached_property
    def _goodput(self) -> list[list[float]]:
        goodput: list[list[float]] = np.exp(self.log_goodput).tolist()
        return goodput

    def goodput_tokens_per_s(self, bucket: int, num_speculative_tokens: int) -> float:
        """Expected generated tokens a second. Raises ValueError for a K that may not run."""
        return self._goodput[bucket][self.ks.index(num_speculative_tokens)]

    def upper_bound(self) -> Floats:
        """(buckets, ks): log goodput that a K cannot exceed beyond doubt, because a step never gets shorter with K.

        As long as the longest expected step of the shorter K, and with acceptance DOUBT_DEVIATIONS better than expected.
        """
        most_tokens = np.log(self.rows)[:, None] + np.log(self.tokens_per_row) + DOUBT_DEVIATIONS * self.tokens_deviation
        log_seconds = np.log(self.rows)[:, None] + np.log(self.tokens_per_row) - self.log_goodput
        least_seconds = np.maximum.accumulate(log_seconds, axis=1)
        least_seconds[:, 1:] = least_seconds[:, :-1]
        upper_bound: Floats = most_tokens - least_seconds
        return upper_bound

    def gain(self, present: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """By bucket and K: log goodput above that of the bucket's `present` K (an index), and its standard deviation."""
        buckets = np.arange(len(present))
        gain = self.log_goodput - self.log_goodput[buckets, present][:, None]
        own = np.diagonal(self.covariance, axis1=1, axis2=2)
        variance = own + own[buckets, present][:, None] - 2.0 * self.covariance[buckets, present]
        return gain, np.sqrt(np.maximum(variance, 0.0))


def step_limit(times: StepTimes, max_step_s: float, noise: float, prefill_s: Floats) -> StepLimit:
    """A limit, and the longer of two steps: pure decode with `noise` (standard deviation of the logarithm of its time), and one
    with a long prompt, which adds `prefill_s` (buckets, ks; mixed_steps.long_prefill).
    """
    doubt = np.sqrt(np.maximum(np.diagonal(times.covariance, axis1=1, axis2=2), 0.0))

    def longest(deviations: float) -> Floats:
        decode_s = np.exp(np.minimum(times.log_seconds + deviations * doubt, 100.0))
        longest_s: Floats = np.maximum(
            decode_s * np.exp(NOISE_DEVIATIONS * noise), decode_s + prefill_s * np.exp(deviations * PREFILL_DEVIATION)
        )
        return longest_s

    return StepLimit(max_step_s, longest(0.0), longest(DOUBT_DEVIATIONS))


def goodput_model(
    ks: tuple[int, ...],
    times: StepTimes,
    evidence: Evidence,
    mixed_costs: Floats | None,
    now_s: float,
    limit: StepLimit | None = None,
    mixed_s: Floats | None = None,
    emitted: EmittedTokens | None = None,
) -> GoodputModel:
    """The table for `ks`, whose step times were predicted as `times` from `evidence`, and `mixed_s` those with prefill.

    `emitted` are the tokens of a row where acceptance by position does not tell.
    Each token takes longer by what its K costs in steps with prefill (`mixed_costs`, of mixed_steps).
    """
    if emitted is None:
        acceptance = evidence.acceptance
        of_all = 1.0 + _counts(ks) @ np.array(acceptance.acceptance(ks[-1]))
        tokens = np.broadcast_to(of_all, times.log_seconds.shape)
        covariance = np.broadcast_to(_of_tokens(ks, acceptance, now_s), times.covariance.shape)
    else:
        tokens, covariance = emitted.tokens, emitted.covariance
    log_goodput = np.log(times.rows)[:, None] + np.log(tokens) - times.log_seconds
    log_goodput = log_goodput - np.log1p(charge(mixed_costs, times.log_seconds.shape) * np.exp(log_goodput))
    return GoodputModel(
        ks,
        log_goodput,
        times.covariance + covariance,
        times.rows,
        tokens,
        np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0)),
        limit,
        mixed_costs,
        evidence,
        now_s,
        np.exp(times.log_seconds),
        mixed_s,
    )


def _counts(ks: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """(ks, positions): which draft positions each K has."""
    counts: npt.NDArray[np.bool_] = np.arange(1, ks[-1] + 1)[None, :] <= np.array(ks)[:, None]
    return counts


def _of_tokens(
    ks: tuple[int, ...],
    acceptance: AcceptanceEvidence,
    now_s: float,
    rows_per_independent_row: float = ROWS_PER_INDEPENDENT_ROW,
) -> Floats:
    """(ks, ks): covariance of log E(k)."""
    survival, counts = acceptance.acceptance(ks[-1]), _counts(ks)
    tokens = 1.0 + counts @ np.array(survival)
    of_survival = acceptance.covariance(survival, now_s, rows_per_independent_row)
    covariance: Floats = counts @ of_survival @ counts.T / np.outer(tokens, tokens)
    return covariance


NEWS_SHARE: Final = 0.03
"""An expectation that moved by less is not sent again: settings change when there is news, not with every measurement."""


def expected_off_steps(
    evidence: Evidence, model: GoodputModel, calibration_clean_steps: int, before: tuple[OffStep, ...]
) -> tuple[OffStep, ...]:
    """How long an OFF step should take in each measured bucket, ascending; as sent before where nothing moved by NEWS_SHARE.

    Only buckets whose OFF was measured have an expectation: the guard's own checks would find out a wrong guess, at a cost. An
    expectation that no engine's step can have, as one absurd report makes it in a group of one, is none (INV-10).
    """
    now = tuple(
        OffStep(decode_rows=min(max(rows, 1.0), MAX_BATCH_SIZE), step_seconds=step_seconds)
        for bucket, rows in enumerate(model.rows.tolist())
        if evidence.is_measured(bucket, 0, calibration_clean_steps)
        and SHORTEST_STEP_SECONDS <= (step_seconds := rows / model.goodput_tokens_per_s(bucket, 0)) <= LONGEST_STEP_SECONDS
    )
    return before if len(now) == len(before) and all(map(_is_no_news, before, now)) else now


def _is_no_news(before: OffStep, now: OffStep) -> bool:
    """Compared at the same rows: where steps take time by rows, another mean of rows alone is no news."""
    share = math.log(now.step_seconds / before.step_seconds)
    return abs(share) < NEWS_SHARE or abs(share - math.log(now.decode_rows / before.decode_rows)) < NEWS_SHARE
