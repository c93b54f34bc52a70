"""What speculation costs in steps that also compute prompt tokens: the part that clean steps cannot show.

In a pure decode step verifying drafts is nearly free while the step is bound by memory. A step that also prefills is bound by
compute, so there every verified token costs what a prompt token costs, and the drafter reads the prompt as well. Near the
crossover that decides: a K that wins clean steps by some percent may lose overall. Learned from sums of such steps by
batch bucket and K; without any, speculation is charged nothing. Fails towards the plan that clean steps alone would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, median
from typing import Final, NamedTuple

import numpy as np

from nightjar.policy.evidence.cells import Evidence, Floats, table_of
from nightjar.policy.evidence.step_time import StepTimes, non_negative_least_squares

TRAFFIC_HALF_LIFE_S: Final = 60.0
"""How long it is remembered what traffic is like, the mix of prompts and answers and how many wait (waits.py): longer than a burst,
shorter than a change of regime."""
SHARE_LEAST_STEPS: Final = 30.0
"""Steps that a share is of at least. Time alone does not make less of so many steps with prefill: where one takes ten seconds, a
minute holds too few."""
TRUST_STEPS: Final = 10.0
"""Mixed steps of a cell at which its mean weighs half: prompts differ, so few of them say little."""
LATE_SHARE: Final = 0.01
"""Of all steps, those that may take longer than an operator's limit: it bounds the 99th percentile."""
LONGER_SHARE: Final = 0.1
"""By which K may prolong a step with prefill that exceeds an operator's limit at K = 0 already."""
PROMPT_SPREAD: Final = 1.3
"""Standard deviation of the logarithm of a prompt's tokens: of chats (ShareGPT 1.3, Azure's conversations 1.0)."""
_PARTS: Final = ("step", "tokens", "drafting", "drafter's prompts")
"""What the seconds of a step with prefill are a sum of; `drafting` is the share of what K adds to a pure decode step."""
_RIDGE: Final = np.array([0.05, 0.01, 0.02, 0.05])
"""Pull of each part towards nothing, against a cell that weighs 1. Least for the tokens, which every such step has."""


class MixedShare(NamedTuple):
    """How much of one replica's work comes with prefill: decayed sums of its steps with prefill beside decode rows, of the prompt
    tokens of all its steps, of its generated tokens, of the answers that these began, and of all steps that cells count."""

    steps: float = 0.0
    prefill_tokens: float = 0.0
    tokens: float = 0.0
    answers: float = 0.0
    counted_steps: float = 0.0

    @property
    def of_steps(self) -> float:
        """Of the steps that cells count, those with prefill beside decode rows: the others are clean. 0 until there are enough of
        them: every load begins with prompts."""
        return self.steps / self.counted_steps if self.counted_steps >= SHARE_LEAST_STEPS else 0.0

    def after(
        self, steps: float, prefill_tokens: float, tokens: float, answers: float, counted_steps: float, elapsed_s: float
    ) -> MixedShare:
        """The sums `elapsed_s` later (infinite for an engine's first report, which forgets the ones before it).

        >>> MixedShare(80.0, 8000.0, 4000.0, 100.0, 400.0).after(2.0, 100.0, 300.0, 3.0, 9.0, TRAFFIC_HALF_LIFE_S)
        MixedShare(steps=42.0, prefill_tokens=4100.0, tokens=2300.0, answers=53.0, counted_steps=209.0)
        >>> MixedShare(30.0, 3000.0, 4000.0, 100.0, 40.0).after(2.0, 100.0, 300.0, 3.0, 9.0, TRAFFIC_HALF_LIFE_S)
        MixedShare(steps=32.0, prefill_tokens=3100.0, tokens=4300.0, answers=103.0, counted_steps=49.0)
        """
        left = 0.5 ** (elapsed_s / TRAFFIC_HALF_LIFE_S)
        if math.isfinite(elapsed_s) and self.steps:
            left = max(left, min(1.0, SHARE_LEAST_STEPS / self.steps))
        return MixedShare(
            self.steps * left + steps,
            self.prefill_tokens * left + prefill_tokens,
            self.tokens * left + tokens,
            self.answers * left + answers,
            self.counted_steps * left + counted_steps,
        )


def per_token(shares: Iterable[MixedShare]) -> tuple[float, float, float]:
    """Steps with prefill beside decode rows, prompt tokens of all steps, and answers, for each generated token: of each the median
    replica's, so that no liar moves it (INV-10); 0 without any."""
    told = [share for share in shares if share.tokens > 0.0]
    if not told:
        return 0.0, 0.0, 0.0
    return (
        median(share.steps / share.tokens for share in told),
        median(share.prefill_tokens / share.tokens for share in told),
        median(share.answers / share.tokens for share in told),
    )


def share_of_steps(shares: Iterable[MixedShare]) -> float:
    """Of the steps that cells count, those with prefill beside decode rows: the median replica's share; 0 without any.

    >>> share_of_steps([MixedShare(steps=30.0, counted_steps=40.0), MixedShare(steps=10.0, counted_steps=40.0), MixedShare()])
    0.5
    """
    return median([share.of_steps for share in shares if share.counted_steps >= SHARE_LEAST_STEPS] or [0.0])


def mixed_costs(
    evidence: Evidence,
    times: StepTimes,
    ks: Sequence[int],
    mixed_s: Floats | None,
    *,
    drafter_sleeps: bool,
    emitted: Floats | None = None,
) -> Floats | None:
    """(buckets, ks, ks): seconds per generated token that K in steps with prefill (last axis) costs beside a K of pure decode
    steps (the axis before); infinite for pairs that may not be. None while nobody knows. `mixed_s` is what `mixed_seconds` answers.

    A step with prefill takes its time, and the tokens that its rows generate need no pure decode step any more, as far as there are
    any. There are as many such steps as the prompts fill: a prompt that finds the engine idle runs in a step of its own, and the
    drafter reads it there. A drafter that sleeps at K = 0 would wake at every change from one kind of step to the other, so there
    both K are 0 or neither is; and off is off in all steps.
    """
    if mixed_s is None or evidence.prefill_tokens_per_token <= 0.0:
        return None
    steps_per_token = evidence.prefill_tokens_per_token / _usual_prefill(evidence)
    tokens = times.rows[:, None] * _tokens_per_row(evidence, ks, emitted)
    pure_s_per_token = np.exp(times.log_seconds) / tokens
    saved_s = pure_s_per_token[:, :, None] * np.minimum(tokens, 1.0 / steps_per_token)[:, None, :]
    costs: Floats = steps_per_token * (mixed_s[:, None, :] - saved_s)
    costs[:, 0, 1:] = np.inf
    if drafter_sleeps:
        costs[:, 1:, 0] = np.inf
    return costs


def charge(costs: Floats | None, shape: tuple[int, int]) -> Floats:
    """(buckets, ks) of this shape: seconds per generated token that a K loses to K = 0 in steps with prefill, with the K that
    is best for it there; no K gains. `costs` is what `mixed_costs` answers."""
    if costs is None:
        return np.zeros(shape)
    charged: Floats = np.maximum(costs.min(axis=2) - costs[:, 0, 0][:, None], 0.0)
    return charged


def _usual_prefill(evidence: Evidence) -> float:
    """Prompt tokens of a step with prefill beside decode rows."""
    cells = evidence.mixed_cells.values()
    return sum(cell.prefill_tokens for cell in cells) / sum(cell.steps for cell in cells)


def mixed_seconds(evidence: Evidence, times: StepTimes, ks: Sequence[int], prefills: Floats | float = 1.0) -> Floats | None:
    """(buckets, ks): seconds of a step with `prefills` times the usual prefill that verifies as many drafts as it drafts; None
    before there was any.

    A constant, every token that the target computes (the verified drafts among them), a share of what K adds to a pure decode step,
    and each prompt token that the drafter reads, all non-negative. That share is 1 at most: such a step drafts for the same rows,
    so what K adds to it beyond that is the drafter's reading of prompts, which is the same at every K. A token takes it as long as
    the target at most: one step with three prompt tokens, slow for another reason, must not price those of a whole prompt.
    """
    shape, cells = times.log_seconds.shape, evidence.mixed_cells
    if not cells:
        return None
    pure_s = np.exp(times.log_seconds)
    added_s = pure_s - pure_s[:, :1]
    k_drafted = np.array([cell.num_speculative_tokens for cell in cells], dtype=float)
    adds_s = np.array([np.interp(cell.num_speculative_tokens, ks, added_s[cell.batch_bucket]) for cell in cells])
    sums, prefill = table_of(list(cells.values())), _usual_prefill(evidence)
    steps, seconds = sums["steps"], sums["seconds"] / sums["steps"]
    trust = steps / (steps + TRUST_STEPS)
    parts = _parts(
        (sums["rows"] + sums["draft_tokens"]) / steps, adds_s, np.minimum(k_drafted, 1.0), sums["prefill_tokens"] / steps
    )
    weights = _weights(parts, seconds, trust)
    each_k = np.tile(np.array(ks, dtype=float), shape[0])
    rows = np.repeat(times.rows, shape[1])
    tokens = prefill * np.broadcast_to(prefills, shape).ravel()
    asked = _parts(rows * (1.0 + each_k), added_s.ravel(), np.minimum(each_k, 1.0), tokens)
    seconds_of_mixed: Floats = (asked @ weights).reshape(shape)
    return seconds_of_mixed


def _weights(parts: Floats, seconds: Floats, trust: Floats) -> Floats:
    """Of each part of steps with prefill which took so many `seconds` and weigh `trust`; the drafter's prompts weigh as much as
    tokens at most, and where they would weigh more, one weight is fitted to both."""
    tokens, prompts = _PARTS.index("tokens"), _PARTS.index("drafter's prompts")
    weights = _fitted(parts, seconds, trust)
    if weights[prompts] > weights[tokens]:
        together = parts.copy()
        together[:, prompts] += parts[:, tokens]
        together[:, tokens] = 0.0
        weights = _fitted(together, seconds, trust)
        weights[tokens] = weights[prompts]
    return weights


def _fitted(parts: Floats, seconds: Floats, trust: Floats) -> Floats:
    """Weights by least squares, none negative; that of drafting is the whole at most, the others are what they are beside it."""
    size = np.abs(parts).mean(axis=0)
    scale = np.where(size > 0.0, size, 1.0)
    relative = parts / scale / seconds[:, None]
    gram = (relative * trust[:, None]).T @ relative + np.diag(_RIDGE**2)
    target = trust @ relative
    weights: Floats = non_negative_least_squares(gram, target) / scale
    drafting = _PARTS.index("drafting")
    if weights[drafting] > 1.0:
        others = np.arange(len(weights)) != drafting
        weights[drafting] = 1.0
        left = target[others] - gram[others, drafting] * scale[drafting]
        weights[others] = non_negative_least_squares(gram[np.ix_(others, others)], left) / scale[others]
    return weights


def long_prefill(
    evidence: Evidence, times: StepTimes, ks: Sequence[int], max_step_s: float, emitted: Floats | None = None
) -> Floats:
    """(buckets, ks): seconds by which a step with a long prompt exceeds a pure decode step; 0 where such steps do not count.

    A long prompt prolongs a step as many times as the usual one as it is longer, or as much as its tokens take where that is more.
    Where off's usual step with a prompt exceeds the limit, no K keeps it there: such steps count then only for a K that makes them
    longer still, by more than LONGER_SHARE.
    """
    usual_s = mixed_seconds(evidence, times, ks)
    if usual_s is None:
        return np.zeros(times.log_seconds.shape)
    decode_s = np.exp(times.log_seconds)
    tokens = times.rows[:, None] * _tokens_per_row(evidence, ks, emitted)
    share = evidence.mixed_steps_per_token * tokens
    longer = np.vectorize(long_prompt, otypes=[float])(share)
    long_s = mixed_seconds(evidence, times, ks, longer)
    assert long_s is not None
    beyond_s = np.maximum(longer * np.maximum(usual_s - decode_s, 0.0), long_s - decode_s)
    off_s = usual_s[:, :1]
    prolongs = (usual_s > (1.0 + LONGER_SHARE) * off_s) & (share > LATE_SHARE)
    counted: Floats = np.where((off_s <= max_step_s) | prolongs, beyond_s, 0.0)
    return counted


def long_prompt(share: float) -> float:
    """How many times the mean is the prompt that LATE_SHARE of all steps exceed, where a `share` of them carries one; 1 at least.

    >>> [round(long_prompt(share), 1) for share in (0.0, 0.05, 0.1, 0.2, 0.4, 2.0)]
    [1.0, 1.3, 2.3, 3.6, 5.5, 8.8]
    """
    if share <= LATE_SHARE:
        return 1.0
    deviations = NormalDist().inv_cdf(1.0 - LATE_SHARE / min(share, 1.0))
    return max(math.exp(PROMPT_SPREAD * deviations - PROMPT_SPREAD**2 / 2.0), 1.0)


def _tokens_per_row(evidence: Evidence, ks: Sequence[int], emitted: Floats | None) -> Floats:
    """(buckets or 1, ks): tokens of a row and step, those `emitted` where acceptance by position does not tell."""
    return np.array([evidence.tokens_per_row(k) for k in ks])[None, :] if emitted is None else emitted


def _parts(verified: Floats, adds_s: Floats, drafts: Floats, prefill: Floats) -> Floats:
    """(steps, parts), of steps that verify so many tokens of decode rows, drafts among them, draft a K that adds so much to a pure
    decode step, or nothing (`drafts` is 1 or 0), and compute a prefill."""
    return np.stack([np.ones_like(verified), verified + prefill, adds_s, prefill * drafts], axis=1)
