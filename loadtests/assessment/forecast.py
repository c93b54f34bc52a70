"""What the planner would have run in the hours that Prometheus kept, and what that would have gained, by a profile of step times.

Nothing here plans: the profile's step times become the evidence of a group, as an import would plant them, Prometheus' counts its
acceptance, and the planner of production (policy.planners.estimates) plans by it. Seconds per token follow from the same model
of step times and of steps with prefill that the planner stands on. What the profile does not reach is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nightjar.loadtests.assessment.history import History, Ran
from nightjar.loadtests.assessment.scrapes import Floats
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.step_cost import AT_ZERO, step_cost
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.evidence.step_time import predict_step_times
from nightjar.policy.planners.base import GroupView, present_indices, present_mixed_indices
from nightjar.policy.planners.estimates import Estimate, replan_alone
from nightjar.policy.priors import MOST_SEED_STEPS
from nightjar.policy.status.stock_table import StockTable, stock_off_drafts, stock_table, why_no_table
from nightjar.policy.wire.batch_buckets import bucket_range, buckets_up_to
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.words import in_words

LEARNING_COST: Final = 0.025
"""Share of output that measuring, restarts and late changes may take from the planner: in `make bench-policy` it gave 0.975 of an
oracle in the worst of 23 steady loads. The lower end of an interval is so much lower."""
UNCOMPARED: Final = 0.1
"""Standard deviation of the logarithm of a step time that nobody compared with the profile's, beside what all have in common: what
the planner takes an old measurement for (policy.evidence.cells, MOST_DRIFT_VARIANCE)."""
PARTS: Final = 8
"""Samples of every eighth scrape, by whose differences the doubt of sampling is told."""
USUAL_CONTEXT_TOKENS: Final = 512
"""Of a decoding request, where no counter tells."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Tokens a second of the planner over those of what ran, at the same batches in the same hours: 1.1 is 10 % more."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How the engines' steps compare with the profile's: they take `scale` times as long, within `spread` of that over so many
    cells (batch bucket and K)."""

    scale: float
    spread: float
    cells: int

    @property
    def doubt(self) -> float:
        """The spread by which cells count that were not compared: few that fit tell little, so UNCOMPARED counts as one more."""
        return math.sqrt((self.cells * self.spread**2 + UNCOMPARED**2) / (self.cells + 1.0))


@dataclass(frozen=True, slots=True)
class BucketForecast:
    """One batch bucket: K that the planner runs in steps without and with prefill, and what that gains over what ran."""

    num_speculative_tokens: int
    mixed_num_speculative_tokens: int
    gain: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """By batch bucket, and over all. `priced_share` is the share of busy hours at batches that the profile reaches,
    `sampling_doubt` the standard deviation of the gain's logarithm that comes of looking at batches now and then alone."""

    buckets: Mapping[int, BucketForecast]
    gain: Gain
    plan: str
    priced_share: float
    sampling_doubt: float
    vllm_table: StockTable | None
    """The plan as vLLM's own table; None for a drafter that takes none."""


@dataclass(frozen=True)
class Priced:
    """A profile at the batches, contexts and prompts that ran."""

    profile: Profile
    history: History
    ks: tuple[int, ...]
    """Those of the profile and every K that ran."""

    @property
    def buckets(self) -> range:
        """What the profile's engines reach."""
        return buckets_up_to(self.profile.limits.max_num_seqs)

    def rows(self, bucket: int) -> int:
        """Decode rows for which a bucket is priced: those that ran, or its middle."""
        first, last = bucket_range(bucket, self.profile.limits.max_num_seqs)
        return min(max(round(self.history.rows.get(bucket, math.sqrt(first * last))), first), last)

    def step_seconds(self, rows: int, k: int, prefill_tokens: int = 0) -> float:
        """Of a step at a K that is held, without noise."""
        draft = "active" if k else AT_ZERO[self.profile.mechanics(Mechanics.DORMANT)]
        context = self.history.context_tokens or USUAL_CONTEXT_TOKENS
        return step_cost(self.profile).seconds(rows, rows * context, k, prefill_tokens, draft)

    def evidence(self) -> Evidence:
        """What a group would know: the profile's step times, weighed as an import's, and what Prometheus counted."""
        cells: dict[Cell, CellEvidence] = {}
        mixed: dict[Cell, CellEvidence] = {}
        steps, context = MOST_SEED_STEPS, self.history.context_tokens or USUAL_CONTEXT_TOKENS
        prompt, per_token = self.history.prefill_tokens, self.history.prefill_tokens_per_token
        chunk = min(max(round(prompt or 0.0), 1), self.profile.limits.max_num_batched_tokens)
        for bucket in self.buckets:
            rows = self.rows(bucket)
            for k in self.ks:
                seconds = self.step_seconds(rows, k)
                cells[Cell(bucket, k)] = CellEvidence(steps, steps * math.log(seconds), steps * rows, steps * rows * context)
                mixed_s = self.step_seconds(rows, k, chunk)
                mixed[Cell(bucket, k, prefill=True)] = CellEvidence(
                    steps,
                    rows=steps * rows,
                    seconds=steps * mixed_s,
                    prefill_tokens=steps * chunk,
                    draft_tokens=steps * rows * k,
                )
        if not per_token or prompt is None:
            return Evidence(cells, self.history.acceptance)
        return Evidence(cells, self.history.acceptance, mixed, per_token / chunk, per_token)


def priced(profile: Profile, history: History) -> Priced:
    """The profile where it reaches what ran. Raises ValueError where a K ran that is longer than its longest."""
    longest = profile.max_num_speculative_tokens
    if history.longest_k > longest:
        raise ValueError(f"profile {profile.name}: K={history.longest_k} ran, it knows step times up to K={longest}")
    ran = {k for _, k in history.seconds}
    return Priced(profile, history, tuple(sorted({*profile.drafter.arms, *ran})))


def forecast(price: Priced, replicas: int) -> Forecast | None:
    """What the planner would run and gain in a fleet of so many engines. None where acceptance is unknown, and where no busy
    hour lies within the profile's reach."""
    history = price.history
    if not history.acceptance.reached or not any(bucket in price.buckets for bucket in history.bucket_seconds):
        return None
    costs = _costs(price, replicas)
    ratio = _ratio(costs, history.seconds)
    assert ratio is not None
    sampling, fitted = _sampling_doubt(costs, history), fit(price)
    deviation = math.hypot(_doubt(costs, history.seconds, fitted.doubt if fitted is not None else UNCOMPARED), sampling)
    gain = Gain(
        ratio,
        ratio * math.exp(-DOUBT_DEVIATIONS * deviation) * (1.0 - LEARNING_COST),
        ratio * math.exp(DOUBT_DEVIATIONS * deviation),
    )
    inside = sum(seconds for (bucket, _), seconds in history.seconds.items() if bucket in price.buckets)
    return Forecast(
        {bucket: _bucket_forecast(costs, history.seconds, bucket) for bucket in history.bucket_seconds if bucket in price.buckets},
        gain,
        in_words(costs.estimate.plan.summary),
        inside / sum(history.seconds.values()),
        sampling,
        _vllm_table(price, costs),
    )


def _vllm_table(price: Priced, costs: _Costs) -> StockTable | None:
    if why_no_table(costs.view):
        return None
    taxes_off = stock_off_drafts(price.profile.group) and price.profile.drafter.off is not Mechanics.STOCK
    name = f"profile {price.profile.name}"
    table = stock_table(costs.view, costs.estimate, price.history.bucket_seconds, taxes_off=taxes_off, group_id=name)
    return table if not table.why_none else None


def fit(price: Priced) -> Fit | None:
    """How long steps took beside the profile's; None where no counter tells."""
    costs = _costs(price, 1)
    logs, weights = [], []
    for (bucket, k), seconds in price.history.seconds.items():
        measured = price.history.step_seconds(bucket, k) if bucket in price.buckets else None
        if measured:
            expected = costs.step_seconds(bucket, k)
            logs.append(math.log(measured / expected))
            weights.append(seconds)
    if not logs:
        return None
    mean = float(np.average(logs, weights=weights))
    spread = math.sqrt(float(np.average((np.array(logs) - mean) ** 2, weights=weights)))
    return Fit(math.exp(mean), spread, len(logs))


def break_even(price: Priced, bucket: int) -> float | None:
    """Acceptance of the first draft from which some K is no slower than K = 0 in pure decode steps, where each draft is accepted as
    often as the one before it was; None where none is, however good the drafter."""
    rows = price.rows(bucket)
    off = price.step_seconds(rows, 0)
    needed = [
        _acceptance_giving(price.step_seconds(rows, k) / off, k)
        for k in price.ks
        if k and price.step_seconds(rows, k) / off <= 1 + k
    ]
    return min(needed, default=None)


def _acceptance_giving(tokens_per_row: float, k: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if sum(middle**place for place in range(k + 1)) < tokens_per_row else (low, middle)
    return high


@dataclass(frozen=True)
class _Costs:
    """Seconds of an engine per generated token by bucket, K and K beside prefill, and the plan. Arms are indices."""

    view: GroupView
    seconds: Floats
    """(buckets, ks, ks); infinite for pairs that may not be."""
    covariance: Floats
    """(buckets, ks, ks): of the log goodput of one bucket's K."""
    tokens_per_step: Floats
    """(buckets, ks): of pure decode steps."""
    estimate: Estimate
    planned: Sequence[int]
    planned_mixed: Sequence[int]

    def ran(self, bucket: int, k: int) -> float:
        index = self.view.ks.index(k)
        return float(self.seconds[bucket, index, index])

    def chosen(self, bucket: int) -> float:
        return float(self.seconds[bucket, self.planned[bucket], self.planned_mixed[bucket]])

    def step_seconds(self, bucket: int, k: int) -> float:
        return self.ran(bucket, k) * float(self.tokens_per_step[bucket, self.view.ks.index(k)])


def _costs(price: Priced, replicas: int) -> _Costs:
    profile = price.profile
    settings = parse_operator_settings({"mode": "auto", "planner": "fleet", "allowed_num_speculative_tokens": price.ks})
    evidence = price.evidence()
    view = GroupView(
        profile.group,
        settings,
        evidence,
        imported=tuple(evidence.cells),
        replicas=replicas,
        drafter_sleeps=profile.drafter.off is Mechanics.DORMANT,
    )
    estimate = replan_alone(view)
    most = profile.limits.max_num_seqs
    times = predict_step_times(evidence.cells, view.ks, view.buckets, most, view.now_s, evidence.mixed_cells)
    tokens = times.rows[:, None] * estimate.goodput_model.tokens_per_row
    pure = np.exp(times.log_seconds) / tokens
    beside = estimate.goodput_model.mixed_costs
    seconds = np.repeat(pure[:, :, None], len(view.ks), axis=2) if beside is None else pure[:, :, None] + beside
    running = view.with_plan(estimate.plan)
    return _Costs(
        view,
        seconds,
        estimate.goodput_model.covariance,
        tokens,
        estimate,
        present_indices(running).tolist(),
        present_mixed_indices(running).tolist(),
    )


def _ratio(costs: _Costs, seconds: Mapping[Ran, float]) -> float | None:
    """Tokens of the plan over those of what ran, in the same seconds at the same batches."""
    planned = ran = 0.0
    for (bucket, k), spent_s in seconds.items():
        if bucket in costs.view.buckets:
            planned += spent_s / costs.chosen(bucket)
            ran += spent_s / costs.ran(bucket, k)
    return planned / ran if ran else None


def _sampling_doubt(costs: _Costs, history: History) -> float:
    """What the samples of every eighth scrape scatter by, for all of them together."""
    parts = [_ratio(costs, History(history.stretches.part(number, PARTS)).seconds) for number in range(PARTS)]
    known = [math.log(part) for part in parts if part is not None]
    return float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else 0.0


def _doubt(costs: _Costs, seconds: Mapping[Ran, float], misfit: float) -> float:
    """Standard deviation of the ratio's logarithm, where the plan is another K than what ran: the planner's own doubt of its step
    times and acceptance, as if all buckets erred alike, and how unlike the profile the engines' steps are. That is a spread from
    bucket to bucket, so there each errs on its own."""
    planned = own = 0.0
    unlike: dict[int, float] = {}
    for (bucket, k), spent_s in seconds.items():
        if bucket not in costs.view.buckets:
            continue
        tokens = spent_s / costs.chosen(bucket)
        planned += tokens
        one, other = costs.planned[bucket], costs.view.ks.index(k)
        if one != other:
            cov = costs.covariance[bucket]
            own += tokens * math.sqrt(max(float(cov[one, one] + cov[other, other] - 2.0 * cov[one, other]), 0.0))
            unlike[bucket] = unlike.get(bucket, 0.0) + tokens * misfit
    return math.hypot(own, *unlike.values()) / planned if planned else 0.0


def _bucket_forecast(costs: _Costs, seconds: Mapping[Ran, float], bucket: int) -> BucketForecast:
    here = {ran: spent_s for ran, spent_s in seconds.items() if ran[0] == bucket}
    ratio = _ratio(costs, here)
    assert ratio is not None
    ks = costs.view.ks
    return BucketForecast(ks[costs.planned[bucket]], ks[costs.planned_mixed[bucket]], ratio)
