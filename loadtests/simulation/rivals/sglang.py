"""SGLang's adaptive speculation: tiers of K, moved by an EMA of the accepted length with hysteresis.

Source: SGLang pull requests 21599 (the rule) and 24055 (batch ranges), `adaptive_spec_params.py`; later revisions of that
file add K = 0 as a tier. Each batch range has a slot of its own. After each verified batch the slot of its range updates

    ema = 0.8 * ema + 0.2 * (accepted draft tokens a row)

and after 10 batches of warm-up, on every 5th, walks down while ema <= tier below - 0.5 + down_hysteresis, or else up while
ema > present tier - 0.5 + up_hysteresis. So it aims one step beyond what is accepted. There is no cost model.

Assumed: the defaults of those files, ranges from batch 1 / 8 / 32 with the tiers [1, 3, 7] / [1, 3] / [1] and down_hysteresis
-0.25 in the first; with `zero_tier`, [1, 3, 5, 7] / [0, 1, 3] / [0, 1] / [0] with a range from 64, where K = 0 probes its
smallest K again after 5 batches. A tier that the engine cannot run becomes the next lower K that it can. A slot starts at
K_max if that is a tier, else in its middle, with ema = tier - 1. A batch size belongs to the last range that begins at or
below it (SGLang pads to a captured graph's size first).
Not modelled: SGLang's draft-extend after plain steps is the drafter tax of stock mechanics; CUDA graphs by tier.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, NamedTuple

from nightjar.policy.planners.local import LocalContext, LocalOptions, StepOutcome, StepView, flag_option, refuse_unknown
from nightjar.policy.step.steering import bound

EMA_WEIGHT: Final = 0.2
UPDATE_INTERVAL: Final = 5
WARM_UP_BATCHES: Final = 10


class BatchRange(NamedTuple):
    """Defaults of one batch range."""

    first_batch_size: int
    tiers: tuple[int, ...]
    down_hysteresis: float
    up_hysteresis: float = 0.0


DEFAULT_RANGES: Final = (BatchRange(1, (1, 3, 7), -0.25), BatchRange(8, (1, 3), 0.0), BatchRange(32, (1,), 0.0))
ZERO_TIER_RANGES: Final = (
    BatchRange(1, (1, 3, 5, 7), -0.25),
    BatchRange(8, (0, 1, 3), 0.0),
    BatchRange(32, (0, 1), 0.0),
    BatchRange(64, (0,), 0.0),
)


def build(options: LocalOptions, context: LocalContext) -> SGLang:
    """Option: `zero_tier` (the later defaults, with K = 0)."""
    refuse_unknown(options, ("zero_tier",))
    ranges = ZERO_TIER_RANGES if flag_option(options, "zero_tier", False) else DEFAULT_RANGES
    return SGLang(ranges, context.allowed)


@dataclass(slots=True)
class _Slot:
    tiers: tuple[int, ...]
    down_hysteresis: float
    up_hysteresis: float
    at: int
    ema: float
    batches: int = 0

    def update(self, accepted_per_row: float) -> None:
        if self.tiers[self.at] > 0:
            self.ema += EMA_WEIGHT * (accepted_per_row - self.ema)
        self.batches += 1
        if self.batches > WARM_UP_BATCHES and (self.batches - WARM_UP_BATCHES) % UPDATE_INTERVAL == 0:
            self._walk()

    def _walk(self) -> None:
        last = len(self.tiers) - 1
        if self.tiers[self.at] == 0:
            self.at = min(self.at + 1, last)
            if self.ema < 0:
                self.ema = float(self.tiers[self.at] - 1)
            return
        start = self.at  # a tier below of 0 counts as one of 1: half an accepted token a row is the edge of both
        while self.at > 0 and self.ema <= max(self.tiers[self.at - 1], 1) - 0.5 + self.down_hysteresis:
            self.at -= 1
        if self.at == start:
            while self.at < last and self.ema > self.tiers[self.at] - 0.5 + self.up_hysteresis:
                self.at += 1


class SGLang:
    """One slot for each batch range."""

    plans_mixed_steps = False

    def __init__(self, ranges: tuple[BatchRange, ...], allowed: tuple[int, ...]) -> None:
        self._firsts = [batch_range.first_batch_size for batch_range in ranges]
        self._slots = [_slot(batch_range, allowed) for batch_range in ranges]

    def choose(self, view: StepView) -> int:
        """The tier of the batch's range."""
        slot = self._slot(view.decode_batch_size)
        return slot.tiers[slot.at]

    def in_mixed_step(self, view: StepView) -> int:
        """The tier of the batch's range."""
        return self.choose(view)

    def learn(self, outcome: StepOutcome) -> None:
        """One verified batch for the EMA of its range."""
        if outcome.decode_rows:
            self._slot(outcome.decode_rows).update(sum(outcome.accepted) / outcome.decode_rows)

    def _slot(self, decode_rows: int) -> _Slot:
        return self._slots[max(bisect_right(self._firsts, decode_rows) - 1, 0)]


def _slot(batch_range: BatchRange, allowed: tuple[int, ...]) -> _Slot:
    tiers = tuple(sorted({bound(tier, allowed) for tier in batch_range.tiers}))
    at = tiers.index(allowed[-1]) if allowed[-1] in tiers else len(tiers) // 2
    return _Slot(tiers, batch_range.down_hysteresis, batch_range.up_hysteresis, at, float(tiers[at] - 1))
