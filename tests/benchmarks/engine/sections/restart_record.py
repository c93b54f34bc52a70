"""One restart of an engine as it was measured: its steps, in order, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, Final

from tests.benchmarks.engine.step_record import Step, core_share

NEAR_STEPS: Final = 8
"""OFF steps on either side, at most, that tell the machine's pace in a restart: it does not keep it for long."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart: the OFF steps before it, those that recomputed, those that drafted, and the OFF steps that came next."""

    how: str
    batch: int
    off_steps: int
    lag_tokens: int
    chunk_tokens: int | None
    before: tuple[Step, ...]
    catching_up: tuple[Step, ...]
    drafting: tuple[Step, ...]
    after: tuple[Step, ...]

    def times(self, share: float) -> Restart:
        """The same, had each of its steps taken so many times as long."""
        parts = (self.before, self.catching_up, self.drafting, self.after)
        before, catching_up, drafting, after = (
            tuple(step._replace(seconds=step.seconds * share) for step in part) for part in parts
        )
        return replace(self, before=before, catching_up=catching_up, drafting=drafting, after=after)

    @property
    def off_seconds(self) -> float:
        """Median OFF step before it."""
        return median(step.seconds for step in self.before)

    @property
    def near_off_seconds(self) -> float:
        """An OFF step at the pace that the machine had meanwhile: the median of the last ones before it, and of the next ones."""
        return fmean((median(step.seconds for step in self.before[-NEAR_STEPS:]), median(step.seconds for step in self.after)))

    @property
    def core_share(self) -> float:
        """Share of its time in which the engine had its core."""
        return core_share((*self.before, *self.catching_up, *self.after))

    @property
    def longest_over_before(self) -> float:
        """Longest step that recomputed, over the OFF step; 1 where none did."""
        return max((step.seconds for step in self.catching_up), default=self.off_seconds) / self.off_seconds

    @property
    def first_drafting_over_before(self) -> float:
        """The first step that drafts verifies nothing yet."""
        return self.drafting[0].seconds / self.off_seconds

    @property
    def cost_seconds(self) -> float:
        """Time of the steps that recomputed above that of OFF steps."""
        return sum(step.seconds - self.near_off_seconds for step in self.catching_up)

    @property
    def catch_up_seconds(self) -> float:
        """From the first step that recomputed to the last."""
        return sum(step.seconds for step in self.catching_up)

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        return {
            "how": self.how,
            "batch": self.batch,
            "off_steps": self.off_steps,
            "lag_tokens": self.lag_tokens,
            "chunk_tokens": self.chunk_tokens,
            "off_seconds": round(self.off_seconds, 6),
            "near_off_seconds": round(self.near_off_seconds, 6),
            "recomputed": [step.recomputed_tokens for step in self.catching_up],
            "catching_up_seconds": [round(step.seconds, 6) for step in self.catching_up],
            "first_drafting_seconds": round(self.drafting[0].seconds, 6),
            "cost_seconds": round(self.cost_seconds, 6),
            "core_share": round(self.core_share, 4),
        }
