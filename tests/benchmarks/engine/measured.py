"""Segments and cells: steps of one arm at one batch, and what they amount to.

What was measured while somebody else ran on the core is measured again, a few times at most; what that is is decided by processor
time alone, never by what it would show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from tests.benchmarks.engine.step_record import Step

OFF: Final = "K=0"
AUTO: Final = "auto"
LEAST_CORE_SHARE: Final = 0.9
"""Of its steps' time that an engine must have had its core."""


def arm_name(num_speculative_tokens: int) -> str:
    """As in rows and tables.

    >>> arm_name(3)
    'K=3'
    """
    return f"K={num_speculative_tokens}"


@dataclass(frozen=True, slots=True)
class Segment:
    """Successive measured steps of one arm at one batch. Segments of the `half` odd pick and teach, even ones score."""

    batch: int
    arm: str
    half: str
    steps: tuple[Step, ...]
    first_question: int = 0
    """Its rows are the questions from this one on."""

    @property
    def seconds(self) -> float:
        """Time of its steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of its steps."""
        return sum(step.cpu_seconds for step in self.steps)

    @property
    def tokens(self) -> int:
        """Tokens of its steps."""
        return sum(step.generated for step in self.steps)

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        return {
            "batch": self.batch,
            "arm": self.arm,
            "half": self.half,
            "first_question": self.first_question,
            "steps": len(self.steps),
            "seconds": round(self.seconds, 6),
            "cpu_seconds": round(self.cpu_seconds, 6),
            "tokens": self.tokens,
            "lengths": sorted({step.num_speculative_tokens for step in self.steps}),
        }


def speed(segments: Iterable[Segment]) -> float:
    """Tokens per second of all segments together."""
    kept = list(segments)
    return sum(segment.tokens for segment in kept) / sum(segment.seconds for segment in kept)


def speed_ratio(one: Sequence[Segment], other: Sequence[Segment]) -> float:
    """Of two samples of segments."""
    return speed(one) / speed(other)


def expected_speed(segments: Iterable[Segment], survival: Sequence[float]) -> float:
    """Tokens per second of all segments together if each row had got what it verified at this acceptance.

    Time is as measured; of the texts, which are never twice the same for two arms, no arm has the luck.
    """
    kept = list(segments)
    tokens = sum(1.0 + sum(survival[: row.drafted]) for segment in kept for step in segment.steps for row in step.rows)
    return tokens / sum(segment.seconds for segment in kept)


def step_seconds(segments: Iterable[Segment]) -> float:
    """Median time of their steps."""
    return median(step.seconds for segment in segments for step in segment.steps)


def acceptance_counts(steps: Iterable[Step], positions: int) -> tuple[list[int], list[int]]:
    """Rows that verified more than i drafts, and rows of which more than i were accepted, for each position i."""
    reached, accepted = [0] * positions, [0] * positions
    for step in steps:
        for row in step.rows:
            for position in range(row.drafted):
                reached[position] += 1
                accepted[position] += row.accepted > position
    return reached, accepted
