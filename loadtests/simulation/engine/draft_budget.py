"""vLLM's adaptive verification inside a simulated engine: how many of a step's drafts are verified, and which.

Source: vLLM 0.32 and 0.33, `vllm/v1/worker/gpu/spec_decode/adaptive_verification.py`. Costs of drafting by requests and of a
forward by tokens are profiled at start-up; each step takes the number of drafts with the most tokens per millisecond,

    n = argmax over 0..drafts of  (requests + sum of the n highest survivals) / (draft_cost[requests] + verify_cost[tokens + n]),

with confidences that are a step or two old, and gives these n to the rows whose drafts are the likeliest by the newest ones. It
never drafts fewer than K and never verifies more: K, the step's `num_spec_tokens_to_schedule`, is the ceiling. The three functions
below are held against vLLM's own (tests/engine/worker/test_draft_budget.py).

Assumed: of each row's drafts the drafter knows with probability `confidence` how many will be kept, and beyond that what its class
keeps on average. So confidences are calibrated, as vLLM's on-line model makes them, and their correlation with acceptance is
`confidence`. Not modelled: a request's first confidences, which are 1; padding to captured sizes, of which the costs know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.step_cost import StepCost, step_cost

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Curve = Sequence[tuple[int, float]]

PROFILED_CONTEXT: Final = 512
"""Tokens of context of a request in the runs that are profiled, where each token is a request's. vLLM's default is 8,192, at which
a draft seems as dear as a request's whole KV; an operator sets VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN to the traffic's."""
LARGEST_GRAPH: Final = 512
"""Tokens of the largest step that vLLM captures a graph of."""
LEAST_COST_MS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class CostTables:
    """Milliseconds as the budget is chosen by."""

    draft_ms: Floats
    """By requests."""
    verify_ms: Floats
    """By tokens of a step."""


def cost_tables(draft: Curve, verify: Curve, max_num_reqs: int, max_batch_tokens: int, graph_limit: int) -> CostTables:
    """Tables from profiled sizes, none cheaper than a smaller one: a step up to `graph_limit` is padded to the next size, and
    beyond it costs are linear between the sizes there."""
    drafting, verifying = _table(max_num_reqs, draft, graph_limit), _table(max_batch_tokens, verify, graph_limit)
    return CostTables(np.maximum(drafting, 0.0), np.maximum(verifying, LEAST_COST_MS))


def chosen_budget(costs: CostTables, survival: Floats, requests: int, tokens: int, sampling: int, most: int) -> int:
    """Drafts of the whole step to verify, at most `most`.

    `survival` are those of all its drafts, in any order, `tokens` what it computes besides, `sampling` the requests that get a
    token anyway.
    """
    best_first = np.sort(survival)[::-1][:most]
    accepted = np.concatenate(([sampling], sampling + np.cumsum(best_first)))
    seconds = costs.draft_ms[requests] + costs.verify_ms[tokens : tokens + len(accepted)]
    return int(np.argmax(accepted / seconds))


def admitted(survival: Floats, scheduled: Integers, budget: int) -> Integers:
    """How many drafts of each row are verified, where the `budget` likeliest of all are. `survival` (rows, K) never rises along a
    row, so that they are the first ones of each."""
    rows, longest = survival.shape
    if budget >= int(scheduled.sum()):
        return scheduled
    beyond = np.arange(longest)[None, :] >= scheduled[:, None]
    ranked = np.where(beyond, -np.inf, survival).ravel()
    winners = np.argsort(-ranked, kind="stable")[:budget]
    return np.bincount(winners // longest, minlength=rows)


class DraftBudget:
    """Adaptive verification of one engine. `confidence` from 0 to 1 is its drafter's; `seed` decides what it knows of which row."""

    def __init__(self, profile: Profile, confidence: float, seed: int) -> None:
        self._costs = _profiled(profile.model_dump_json(exclude_unset=True))
        self._confidence = confidence
        self._rng = np.random.default_rng((seed, 0))

    def choose(self, survival: Floats, tokens: int) -> int:
        """How many of the drafts of rows whose classes keep `survival` (rows, K) are verified in a step that computes `tokens`
        without them. By confidences of a step before, which say of this one's drafts what their class does."""
        rows = len(survival)
        return chosen_budget(self._costs, self._known(survival, None).ravel(), rows, tokens, rows, survival.size)

    def admit(self, survival: Floats, budget: int, kept: Integers) -> Integers:
        """How many drafts of each row are verified, of which so many would be `kept` if all were."""
        rows, longest = survival.shape
        return admitted(self._known(survival, kept), np.full(rows, longest), budget)

    def _known(self, survival: Floats, kept: Integers | None) -> Floats:
        """(rows, K): survival as the drafter sees it; the truth of each row with probability `confidence`, else another draw."""
        rows, longest = survival.shape
        told = (self._rng.random((rows, 1)) < survival).sum(axis=1)
        if kept is not None:
            told = np.where(self._rng.random(rows) < self._confidence, np.minimum(kept, longest), told)
        is_kept = np.arange(longest)[None, :] < told[:, None]
        known: Floats = self._confidence * is_kept + (1.0 - self._confidence) * survival
        return known


def _table(limit: int, curve: Curve, graph_limit: int) -> Floats:
    sizes, costs = np.asarray(curve, dtype=np.float64).T
    costs = np.maximum.accumulate(costs)
    asked = np.arange(limit + 1)
    table: Floats = costs[np.minimum(np.searchsorted(sizes, asked), len(sizes) - 1)]
    unpadded, beyond = asked > graph_limit, sizes > graph_limit
    if graph_limit and beyond.any():
        table[unpadded] = np.interp(asked[unpadded], sizes[beyond], costs[beyond])
    if len(sizes) > 1:
        after = asked > sizes[-1]
        table[after] = costs[-1] + (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2]) * (asked[after] - sizes[-1])
    return table


@lru_cache(maxsize=16)
def _profiled(profile: str) -> CostTables:
    """What an engine of this profile measures of itself when it starts."""
    of_engine = Profile.model_validate_json(profile)
    limits, longest = of_engine.limits, of_engine.max_num_speculative_tokens
    sizes = _graph_sizes(min(LARGEST_GRAPH, limits.max_num_batched_tokens))
    tokens = _with_tail(sizes, limits.max_num_batched_tokens)
    cost = step_cost(of_engine)
    verify = [(size, 1e3 * _forward_s(cost, size, min(size, limits.max_num_seqs))) for size in tokens]
    requests = sorted({min(size, limits.max_num_seqs) for size in sizes})
    draft = [(count, 1e3 * _drafting_s(cost, count, longest)) for count in requests]
    return cost_tables(draft, verify, limits.max_num_seqs, limits.max_num_batched_tokens, sizes[-1])


def _graph_sizes(largest: int) -> list[int]:
    """vLLM's default: 1, 2, 4, by eights up to 256, and by sixteens."""
    return [size for size in (1, 2, 4, *range(8, 257, 8), *range(272, LARGEST_GRAPH + 1, 16)) if size <= largest]


def _with_tail(sizes: Sequence[int], most: int) -> list[int]:
    """The sizes, and those beyond them that are profiled: half as much again, then each doubling."""
    size = sizes[-1]
    tail = {min(size + size // 2, most)}
    while size < most:
        size = min(2 * size, most)
        tail.add(size)
    return [*sizes, *sorted(tail - set(sizes))]


def _forward_s(cost: StepCost, tokens: int, rows: int) -> float:
    """Seconds of a forward of the target over so many tokens of so many requests."""
    return cost.seconds(rows, rows * PROFILED_CONTEXT, 0, draft="dormant", verified_tokens=(tokens - rows) / rows)


def _drafting_s(cost: StepCost, rows: int, longest: int) -> float:
    """Seconds of the drafter over as many requests."""
    both = cost.seconds(rows, rows * PROFILED_CONTEXT, longest, verified_tokens=0)
    return max(both - _forward_s(cost, rows, rows), 0.0)
