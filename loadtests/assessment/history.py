"""What engines ran by their scrapes: how long at which batch and K, what was accepted, and how long steps took.

A stretch between two scrapes of one engine counts half for the batch that the first saw and half for the second's; K and
acceptance are those of the stretch, from what its counters counted. A stretch in which scrapes are missing tells nothing but how
long it was. Pure functions of the samples. Fails towards not knowing: what no counter tells is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from nightjar.loadtests.assessment.scrapes import EngineScrapes, Floats, Metric
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES

MOST_PERIODS: Final = 4.0
"""Scrape periods between two samples above which scrapes are missing: one or two that were lost are bridged."""
HELD_WITHIN: Final = 0.2
"""A stretch whose drafts are this near to a whole number of tokens ran one K; the ends of answers and grammars cut some drafts."""
LEAST_HELD_SHARE: Final = 0.1
"""Of all drafts. With fewer in stretches of one K, all count for acceptance."""
DRAFTS_ALWAYS: Final = 0.95
"""Share of decode rows that verified drafts from which all are said to have: the first token of an answer has none."""
DRAFTS_NEVER: Final = 0.02

Ran = tuple[int, int]
"""Batch bucket and K."""


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches between two scrapes, of all engines; equally long columns, and `accepted_at` with a row for each stretch."""

    seconds: Floats
    before: Floats
    """Requests running at the beginning."""
    after: Floats
    drafts: Floats
    draft_tokens: Floats
    accepted_tokens: Floats
    generated_tokens: Floats
    prompt_tokens: Floats
    cached_tokens: Floats
    step_seconds: Floats
    step_rows: Floats
    answers: Floats
    answer_tokens: Floats
    answered_prompt_tokens: Floats
    accepted_at: Floats

    def only(self, kept: npt.NDArray[np.bool_]) -> Self:
        """Those of `kept`."""
        return type(self)(*(getattr(self, column.name)[kept] for column in fields(self)))

    def part(self, number: int, parts: int) -> Self:
        """Every `parts`-th stretch, beginning with `number`: a sample of the same hours by fewer scrapes."""
        return self.only(np.arange(len(self.seconds)) % parts == number)


_COUNTERS: Final = {
    "drafts": Metric.DRAFTS,
    "draft_tokens": Metric.DRAFT_TOKENS,
    "accepted_tokens": Metric.ACCEPTED_TOKENS,
    "generated_tokens": Metric.GENERATED_TOKENS,
    "prompt_tokens": Metric.PROMPT_TOKENS,
    "cached_tokens": Metric.CACHED_TOKENS,
    "step_seconds": Metric.STEP_SECONDS,
    "step_rows": Metric.STEP_ROWS,
    "answers": Metric.ANSWERS,
    "answer_tokens": Metric.ANSWER_TOKENS,
    "answered_prompt_tokens": Metric.ANSWERED_PROMPT_TOKENS,
}


@dataclass(frozen=True, slots=True)
class Scraped:
    """Every stretch that was scraped without a hole, what the holes took, and the usual time between two scrapes."""

    stretches: Stretches
    missed_s: float
    period_s: float


def scraped(engines: Sequence[EngineScrapes]) -> Scraped:
    """The stretches of all engines. A hole is a stretch of more than MOST_PERIODS usual ones."""
    gaps = [np.diff(engine.get(Metric.RUNNING).times_s) for engine in engines]
    all_gaps = np.concatenate([*gaps, np.zeros(0)])
    period_s = float(np.median(all_gaps)) if len(all_gaps) else 0.0
    positions = max((len(engine.accepted_at) for engine in engines), default=0)
    parts = [_stretches(engine, positions) for engine in engines]
    columns = [
        np.concatenate([getattr(part, column.name) for part in parts] or [np.zeros((0, positions))]) for column in fields(Stretches)
    ]
    whole = Stretches(*columns)
    holds = whole.seconds <= MOST_PERIODS * period_s
    return Scraped(whole.only(holds), float(whole.seconds[~holds].sum()), period_s)


def _stretches(engine: EngineScrapes, positions: int) -> Stretches:
    running = engine.get(Metric.RUNNING)
    times_s = running.times_s
    seconds, before, after = np.diff(times_s), running.values[:-1], running.values[1:]
    at = np.zeros((len(seconds), positions))
    for position, series in enumerate(engine.accepted_at):
        at[:, position] = series.increase_between(times_s)
    counted = {name: engine.get(metric).increase_between(times_s) for name, metric in _COUNTERS.items()}
    moved = (counted["generated_tokens"] > 0.0) | (counted["step_rows"] > 0.0)
    busy_s = np.where(np.maximum(before, after) >= 1.0, seconds, 0.0)
    return Stretches(
        seconds=seconds,
        before=before,
        after=after,
        accepted_at=np.stack([_spread(at[:, place], moved, busy_s) for place in range(positions)], axis=1) if positions else at,
        **{name: _spread(counts, moved, busy_s) for name, counts in counted.items()},
    )


def _spread(counts: Floats, moved: npt.NDArray[np.bool_], busy_s: Floats) -> Floats:
    """Counts of each stretch, where those of one in which the counters moved belong to the busy stretches before it in which they
    stood still as well: Ray exports every ten seconds, and may be scraped more often.

    >>> _spread(np.array([0.0, 0.0, 9.0, 4.0]), np.array([False, False, True, True]), np.array([0.0, 5.0, 10.0, 5.0])).tolist()
    [0.0, 3.0, 6.0, 4.0]
    """
    if not moved.any():
        return counts
    last = int(np.flatnonzero(moved)[-1]) + 1
    groups = np.concatenate(([0], np.cumsum(moved[: last - 1]))).astype(np.int64)
    weights = np.where(moved[:last], np.maximum(busy_s[:last], 1e-9), busy_s[:last])
    totals, spans = np.bincount(groups, counts[:last]), np.bincount(groups, weights)
    spread: Floats = np.concatenate((totals[groups] * weights / spans[groups], counts[last:]))
    return spread


@dataclass(frozen=True)
class History:
    """What the stretches add up to. Seconds are an engine's, summed over engines."""

    stretches: Stretches

    @cached_property
    def idle_s(self) -> float:
        """Without a request."""
        halves, batches = self._halves
        return float(halves[batches < 1.0].sum())

    @cached_property
    def seconds(self) -> Mapping[Ran, float]:
        """Busy seconds by batch bucket and K. A stretch in which only a part of the rows drafted counts for both K and 0."""
        halves, batches = self._halves
        ks, share = np.tile(self._ks, 2), np.tile(self.drafted_share, 2)
        busy = batches >= 1.0
        buckets = _buckets(batches)
        found: dict[Ran, float] = {}
        for k, weight in ((ks, halves * share), (np.zeros_like(ks), halves * (1.0 - share))):
            kept = busy & (weight > 0.0)
            for key, seconds in zip(zip(buckets[kept].tolist(), k[kept].tolist(), strict=True), weight[kept], strict=True):
                found[key] = found.get(key, 0.0) + float(seconds)
        return dict(sorted(found.items()))

    @cached_property
    def bucket_seconds(self) -> Mapping[int, float]:
        """Busy seconds by batch bucket."""
        found: dict[int, float] = {}
        for (bucket, _), seconds in self.seconds.items():
            found[bucket] = found.get(bucket, 0.0) + seconds
        return found

    @cached_property
    def rows(self) -> Mapping[int, float]:
        """Mean running requests by batch bucket."""
        halves, batches = self._halves
        buckets = _buckets(batches)
        return {
            bucket: float(np.average(batches[here], weights=halves[here]))
            for bucket in self.bucket_seconds
            if (here := (batches >= 1.0) & (buckets == bucket)).any()
        }

    @property
    def drafted(self) -> bool:
        """Whether any draft was verified."""
        return bool(self.stretches.drafts.sum() > 0.0)

    @cached_property
    def drafted_share(self) -> Floats:
        """Of each stretch: share of decode rows that verified drafts."""
        held = self.stretches
        rows = np.where(held.step_rows > 0.0, held.step_rows, held.generated_tokens - held.accepted_tokens)
        share = np.where(rows > 0.0, held.drafts / np.where(rows > 0.0, rows, 1.0), held.drafts > 0.0)
        return np.where(share >= DRAFTS_ALWAYS, 1.0, np.where(share <= DRAFTS_NEVER, 0.0, share))

    @cached_property
    def acceptance(self) -> AcceptanceEvidence:
        """Rows that reached and accepted each draft position. Counters tell how many drafts there were and how long they were
        together: positions beyond the mean length were reached by the rest. So stretches of one K count, unless there are few."""
        held = self.stretches.only(self._is_held)
        if held.drafts.sum() < LEAST_HELD_SHARE * self.stretches.drafts.sum():
            held = self.stretches
        mean = held.draft_tokens / np.maximum(held.drafts, 1.0)
        places = np.arange(held.accepted_at.shape[1])
        reached = (np.clip(mean[:, None] - places, 0.0, 1.0) * held.drafts[:, None]).sum(axis=0)
        accepted = np.minimum(held.accepted_at.sum(axis=0), reached)
        known = int((reached > 0.0).sum())
        return AcceptanceEvidence(tuple(reached[:known].tolist()), tuple(accepted[:known].tolist()))

    def accepted_share(self, bucket: int) -> float | None:
        """Accepted of verified draft tokens in stretches that began and ended in a bucket; None without any."""
        held = self.stretches.only(self._stays_in(bucket))
        drafted = float(held.draft_tokens.sum())
        return float(held.accepted_tokens.sum()) / drafted if drafted else None

    def step_seconds(self, bucket: int, k: int) -> float | None:
        """Mean seconds of a step (weighted by its rows, those with prefill among them) in stretches that began and ended in a
        bucket and ran one K; None where nothing tells."""
        runs = self._stays_in(bucket) & (self._ks == k) & np.isin(self.drafted_share, (0.0, 1.0))
        held = self.stretches.only(runs & (self._is_held | (k == 0)))
        rows = float(held.step_rows.sum())
        return float(held.step_seconds.sum()) / rows if rows else None

    @cached_property
    def longest_k(self) -> int:
        """The highest K that ran."""
        return max((k for _, k in self.seconds), default=0)

    @cached_property
    def prefill_tokens_per_token(self) -> float | None:
        """Prompt tokens that were computed, of each generated token; None where no counter tells."""
        held = self.stretches
        generated, prompts = float(held.generated_tokens.sum()), float(held.prompt_tokens.sum())
        return max(prompts - float(held.cached_tokens.sum()), 0.0) / generated if generated and prompts else None

    @cached_property
    def prefill_tokens(self) -> float | None:
        """Tokens of a mean prompt that were computed; None where no counter tells."""
        answer_tokens = self._mean(self.stretches.answer_tokens)
        if answer_tokens is None or self.prefill_tokens_per_token is None:
            return None
        return self.prefill_tokens_per_token * answer_tokens

    @cached_property
    def context_tokens(self) -> float | None:
        """Tokens that a decoding request has in the KV cache, on average, where answers' lengths are memoryless: its prompt and one
        mean answer, half generated of one that is twice as long as the mean since long ones decode for longer."""
        prompt, answer = self._mean(self.stretches.answered_prompt_tokens), self._mean(self.stretches.answer_tokens)
        return None if prompt is None or answer is None else prompt + answer

    def _mean(self, sums: Floats) -> float | None:
        answers = float(self.stretches.answers.sum())
        return float(sums.sum()) / answers if answers else None

    @cached_property
    def _halves(self) -> tuple[Floats, Floats]:
        """Seconds and batch of the first halves, then of the second ones."""
        held = self.stretches
        return np.tile(held.seconds / 2.0, 2), np.concatenate((held.before, held.after))

    @cached_property
    def _ks(self) -> npt.NDArray[np.int64]:
        """K of each stretch, as far as it drafted."""
        held = self.stretches
        mean = np.where(held.drafts > 0.0, held.draft_tokens / np.maximum(held.drafts, 1.0), 0.0)
        ks: npt.NDArray[np.int64] = np.maximum(np.rint(mean), held.drafts > 0.0).astype(np.int64)
        return ks

    @cached_property
    def _is_held(self) -> npt.NDArray[np.bool_]:
        held = self.stretches
        mean = held.draft_tokens / np.maximum(held.drafts, 1.0)
        found: npt.NDArray[np.bool_] = (held.drafts > 0.0) & (np.abs(mean - np.rint(mean)) <= HELD_WITHIN)
        return found

    def _stays_in(self, bucket: int) -> npt.NDArray[np.bool_]:
        held = self.stretches
        stays: npt.NDArray[np.bool_] = (
            (_buckets(held.before) == bucket) & (_buckets(held.after) == bucket) & (np.minimum(held.before, held.after) >= 1.0)
        )
        return stays


def _buckets(batches: Floats) -> npt.NDArray[np.int64]:
    """policy.wire.batch_buckets.batch_bucket of each."""
    found: npt.NDArray[np.int64] = np.maximum(np.searchsorted(FIRST_BATCH_SIZES, batches, side="right") - 1, 0)
    return found
