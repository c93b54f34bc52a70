"""What an engine tells of one step: how long it took, and what it scheduled, drafted, accepted and generated, row by row.

Tuples, because thousands of them cross a pipe. A row is named by the number that its request was added under.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class RowStep(NamedTuple):
    """One request's part of a step."""

    row: int
    is_prefill: bool
    scheduled_tokens: int
    position: int
    """Tokens that the request had generated before the step."""
    drafted: int
    """Draft tokens of the request that the step verified."""
    generated: int

    @property
    def accepted(self) -> int:
        """Drafts that were accepted; the token that the target adds is none."""
        return max(self.generated - 1, 0) if self.drafted else 0


class Step(NamedTuple):
    """One engine step."""

    seconds: float
    cpu_seconds: float
    """Processor time of the engine's process meanwhile: less than `seconds` where somebody else had the core."""
    num_speculative_tokens: int
    """K that the step drafted with."""
    recomputed_tokens: int
    """Draft tokens that it recomputed, without those that it would have read anyway."""
    draft_forwards: int
    """Forwards of the draft model so far; 0 where the engine has none that is counted."""
    rows: tuple[RowStep, ...]
    preemptions: int = 0
    waiting: int = 0
    """Requests in the queue after it."""
    drafter_state: str = ""
    """Value of report.DrafterState after it; empty without our classes."""

    @property
    def generated(self) -> int:
        """Tokens that the step delivered."""
        return sum(row.generated for row in self.rows)

    @property
    def decode_rows(self) -> int:
        """Requests that decoded."""
        return sum(not row.is_prefill for row in self.rows)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that the step computed."""
        return sum(row.scheduled_tokens for row in self.rows if row.is_prefill)


def tokens_per_second(steps: Iterable[Step]) -> float:
    """Tokens of all steps over their time."""
    kept = list(steps)
    return sum(step.generated for step in kept) / sum(step.seconds for step in kept)


def core_share(steps: Iterable[Step]) -> float:
    """Share of the steps' time in which the engine had its core: below 1 where somebody else ran on it."""
    kept = list(steps)
    return sum(step.cpu_seconds for step in kept) / sum(step.seconds for step in kept)
