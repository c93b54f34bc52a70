"""A profile at nominal acceptance and mean context: what it carries, and where speculation stops paying.

Loads are built from this, in shares of what one engine carries, so that every profile meets the same regimes, whatever its
speed. No planner that learns ever sees it; regret is measured against engine/truth.py, which knows the present rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.service.lengths import Traffic
from nightjar.loadtests.simulation.step_cost import PreparedCost, prepared_cost
from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.restarts.price import chunk_tokens
from nightjar.policy.wire.operator import OperatorSettings


@dataclass(frozen=True)
class Nominal:
    """A profile under one kind of traffic and mechanics."""

    profile: Profile
    dataset: Traffic
    mechanics: Mechanics

    @cached_property
    def _cost(self) -> PreparedCost:
        return prepared_cost(self.profile, self.profile.mechanics(self.mechanics))

    @cached_property
    def context_per_row(self) -> float:
        """Mean tokens of context of a decoding request."""
        return self.dataset.mean_context_tokens

    @cached_property
    def max_rows(self) -> int:
        """Requests that decode at once in a full engine: bounded by max_num_seqs and by the KV cache."""
        limits = self.profile.limits
        fitting = int(limits.num_blocks * limits.block_size / (self.context_per_row + limits.block_size / 2))
        return max(min(limits.max_num_seqs, fitting), 1)

    def step_seconds(self, rows: int, k: int) -> float:
        """Of a decode step of `rows` requests at K = `length`, without noise."""
        return self._cost.steady_seconds(rows, int(rows * self.context_per_row), k)

    def goodput(self, rows: int, k: int) -> float:
        """Generated tokens a second, at nominal acceptance."""
        return rows * self._tokens_per_row[k] / self.step_seconds(rows, k)

    @cached_property
    def _tokens_per_row(self) -> tuple[float, ...]:
        return tuple(accumulate((1.0, *self.profile.mean_survival())))

    def best_k(self, rows: int) -> int:
        """K with the most goodput; the shorter one where two are equal."""
        return max(self.profile.drafter.arms, key=lambda k: (self.goodput(rows, k), -k))

    @cached_property
    def crossover_rows(self) -> int:
        """The least batch from which off is best; where speculation pays at every batch, half of a full engine."""
        off = [rows for rows in range(1, self.max_rows + 1) if self.best_k(rows) == 0]
        return off[0] if off and off[0] > 1 else max(self.max_rows // 2, 2)

    @cached_property
    def catch_up_chunk_tokens(self) -> int:
        """What one step may recompute for planners that learn no such thing: by true costs at the crossover, the chunk that the
        operator's default of `catch_up_slowdown` allows, which binds the fleet planner as well."""
        rows, few, many = self.crossover_rows, 16, 128
        off_s = self.step_seconds(rows, 0)
        few_s, many_s = (self._catch_up_step_seconds(rows, tokens) - off_s for tokens in (few, many))
        token_s = (many_s - few_s) / (many - few)
        cost = CatchUpCost(max(few_s - few * token_s, 1e-6 * off_s), token_s)
        return chunk_tokens(off_s, cost, rows, OperatorSettings().catch_up_slowdown)

    def _catch_up_step_seconds(self, rows: int, tokens: int) -> float:
        context_tokens = int(rows * self.context_per_row)
        return self._cost.cost.seconds(rows, context_tokens, 0, 0, "dormant", tokens + rows, 0)

    def requests_per_s(self, rows: int) -> float:
        """Arrivals at which about `rows` requests decode at once in one engine, at the best K (Little's law)."""
        generate_s = self.dataset.mean_output_tokens / self.goodput(rows, self.best_k(rows))
        return 1.0 / (generate_s + self.prefill_seconds)

    @property
    def prefill_seconds(self) -> float:
        """Engine time of an average prompt, where full chunks of prompts are computed at once."""
        chunk = self.profile.limits.max_num_batched_tokens
        return self._cost.cost.seconds(0, 0, 0, prefill_tokens=chunk) * self.dataset.mean_prefill_tokens / chunk

    def rows_at(self, requests_per_s: float) -> float:
        """About how many requests decode at once in one engine at a rate of arrivals; full where it cannot keep up."""
        low, high = 1, self.max_rows
        if requests_per_s <= self.requests_per_s(1):
            return requests_per_s / self.requests_per_s(1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.requests_per_s(middle) <= requests_per_s else (low, middle)
        return float(high)

    @cached_property
    def capacity(self) -> float:
        """Requests a second that one full engine answers at the best K."""
        return max(self.requests_per_s(rows) for rows in {self.max_rows, max(self.max_rows // 2, 1), max(self.max_rows // 4, 1)})
