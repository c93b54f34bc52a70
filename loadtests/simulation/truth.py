"""What a simulated engine really yields at each K: true step times, and the true acceptance of the rows that are in the batch.

Regret is measured against it, and the oracle plays it. Nothing of it ever reaches a planner of policy/.
"""

from __future__ import annotations

from collections.abc import Sequence

from nightjar.loadtests.simulation.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.decode_rows import DecodeRows
from nightjar.loadtests.simulation.profiles import Drafter
from nightjar.loadtests.simulation.step_cost import PreparedCost


class Truth:
    """True goodput of one engine's batch, in generated tokens per second at speed 1."""

    def __init__(self, prepared: PreparedCost, classes: AcceptanceClasses, rows: DecodeRows, drafter: Drafter) -> None:
        self.arms = drafter.arms
        self._prepared = prepared
        self._classes = classes
        self._rows = rows
        self._drafter = drafter
        self._composition = -1
        self._tokens: list[float] = []

    def renew(self) -> None:
        """Acceptance has changed."""
        self._composition = -1

    def goodput(self, decode_rows: int, context_tokens: int, num_speculative_tokens: int) -> float:
        """Tokens per second of the present rows at a K that is held."""
        seconds = self._prepared.steady_seconds(decode_rows, context_tokens, num_speculative_tokens)
        return self._tokens_by_length()[num_speculative_tokens] / seconds

    def best(self, decode_rows: int, context_tokens: int, arms: Sequence[int]) -> int:
        """The K of `arms` with the highest goodput."""
        tokens, seconds = self._tokens_by_length(), self._prepared.steady_seconds
        return max(arms, key=lambda length: tokens[length] / seconds(decode_rows, context_tokens, length))

    def rates(self, decode_rows: int, context_tokens: int, num_speculative_tokens: int) -> tuple[float, float]:
        """Goodput at this K and at the best one."""
        best = self.best(decode_rows, context_tokens, self.arms)
        return (
            self.goodput(decode_rows, context_tokens, num_speculative_tokens),
            self.goodput(decode_rows, context_tokens, best),
        )

    def catch_up_seconds(self, lag_tokens: int) -> float:
        """Draft time that a restart with this lag costs."""
        return self._drafter.catch_up_seconds + self._drafter.catch_up_seconds_per_token * lag_tokens

    def _tokens_by_length(self) -> list[float]:
        """Tokens that a step of the present rows yields on average, for each K."""
        rows = self._rows
        if rows.composition != self._composition:
            self._composition = rows.composition
            self._tokens = [
                rows.count + sum(count * hits for count, hits in zip(rows.class_counts, column, strict=True))
                for column in zip(*self._classes.expected_hits, strict=True)
            ]
        return self._tokens
