"""Never worse than off: trips a batch bucket whose speculation measures below what OFF would give, in the engine's step loop.

The policy sends how long an OFF step should take at a batch; the engine knows what its own steps take and yield. Time lost against
OFF is summed up as a likelihood ratio (CUSUM, Page 1954), which is quick where steps are alike and patient where they scatter.
A suspicion is checked before it counts: some OFF steps at once, on the same card, contexts and neighbours, because an
expectation that is wrong here looks just like a loss. One check may fall on the end of a neighbour's burst, so that it takes two
to trip. Fails towards off: a trip holds the bucket off for a while, twice as long each time; a wrong suspicion costs a dozen OFF
steps and corrects the expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from nightjar.policy.step.drafter import FIRST_HOLD_S
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.settings import OffStep

LOSS: Final = 0.1
"""The loss that the test is sharpest for, in OFF steps lost per step; half of it counts as none."""
SUSPICION: Final = 16.0
"""Log likelihood ratio at which a check begins. Parity with OFF reaches it about once in ten million steps (docs/restarts.md)."""
LEAST_EXCURSION_S: Final = 5.0
"""A loss must last so long: a neighbour's burst is over sooner, and looks the same while it lasts."""
MEMORY: Final = 1.0 / 64.0
"""Weight of the newest step in the running mean and variance of the loss."""
LEAST_VARIANCE: Final = 1e-3
CHECK_STEPS: Final = 12
"""OFF steps that confirm or clear a suspicion; at 3 % noise they tell 2 %."""
CHECK_MARGIN: Final = 0.03
"""By so much OFF must be cheaper in the check."""
FIRST_TRUST_S: Final = 60.0
LONG_TRUST_S: Final = 900.0
TRUST_SHARE: Final = 0.05
"""What a check measured of this engine's OFF steps takes the place of the expectation for a minute, because a check may have
been disturbed; for a quarter of an hour where the check before it found the same within 5 %."""
SECOND_LOOK_S: Final = 120.0
"""A trip takes two checks that find OFF cheaper, no further apart."""
LONGEST_HOLD_S: Final = 3840.0
"""A tripped bucket is off for FIRST_HOLD_S, doubled with each trip in a row until this. A check may take FIRST_HOLD_S as well."""
FORGIVEN_S: Final = 1800.0
"""Without a trip for so long since the last hold, the next one is a first one again."""


@dataclass(slots=True)
class _Watch:
    """One batch bucket: the test, the check and the hold."""

    bucket: int
    mean: float = field(init=False)
    variance: float = field(init=False)
    score: float = field(init=False)
    on_seconds: float = field(init=False)
    on_tokens: float = field(init=False)
    began_s: float = field(init=False)
    off_scale: float = 1.0
    last_scale: float = 1.0
    scale_ends_s: float = float("inf")
    is_checking: bool = False
    check_steps: int = 0
    check_seconds: float = 0.0
    held_until_s: float | None = None
    trips_in_a_row: int = 0
    released_s: float = float("-inf")
    doubted_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Test anew, knowing nothing of the losses."""
        self.mean, self.variance = 0.0, 1.0
        self.calm()

    def calm(self) -> None:
        self.score = self.on_seconds = self.on_tokens = self.began_s = 0.0


class OffGuard:
    """Watches one engine's steps. Clock and seconds are the engine's; batches above `max_num_seqs` count as that."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._watches = [_Watch(bucket) for bucket in range(batch_bucket(max_num_seqs) + 1)]
        self._watch_by_batch = [self._watches[batch_bucket(batch)] for batch in range(max_num_seqs + 1)]
        self._k_by_batch: Sequence[int] = [0] * (max_num_seqs + 1)
        self.adopt(self._k_by_batch, ())
        self.trips = 0
        self.holding = 0
        """Buckets that are held off now; ask `holds` only while there are any."""

    def adopt(self, k_by_batch: Sequence[int], off_steps: Sequence[OffStep]) -> None:
        """Take the K that the plan runs at each batch from 0 to `max_num_seqs`, and what OFF should take.

        Without that nothing is watched. Expectations hold within the buckets that name one; between two of them they are
        interpolated.
        """
        for batch in range(1, self._max_num_seqs + 1):
            if k_by_batch[batch] != self._k_by_batch[batch]:
                self._watch_by_batch[batch].begin()
        self._k_by_batch = k_by_batch
        self._off_seconds: list[float] = [0.0] * (self._max_num_seqs + 1)
        if not off_steps:
            return
        named = {batch_bucket(round(step.decode_rows)) for step in off_steps}
        seconds = np.interp(
            np.arange(self._max_num_seqs + 1),
            [step.decode_rows for step in off_steps],
            [step.step_seconds for step in off_steps],
        )
        for batch in range(1, self._max_num_seqs + 1):
            if batch_bucket(batch) in named:
                self._off_seconds[batch] = float(seconds[batch])

    def holds(self, decode_batch_size: int, now_s: float) -> bool:
        """Whether speculation at this batch is held off now."""
        watch = self._watch_by_batch[min(decode_batch_size, self._max_num_seqs)]
        if watch.held_until_s is None:
            return False
        if now_s < watch.held_until_s:
            return True
        self._release(watch, now_s)
        return False

    def checks(self, decode_batch_size: int) -> bool:
        """Whether this batch is off for a check, and not for a trip. Asked where `holds` said yes."""
        return self._watch_by_batch[min(decode_batch_size, self._max_num_seqs)].is_checking

    def held_buckets(self, now_s: float) -> tuple[int, ...]:
        """Batch buckets held off by a confirmed trip."""
        return tuple(
            watch.bucket
            for watch in self._watches
            if watch.held_until_s is not None and now_s < watch.held_until_s and not watch.is_checking
        )

    def count(
        self, decode_rows: int, num_speculative_tokens: int, generated_tokens: int, step_seconds: float, now_s: float
    ) -> None:
        """Take one clean step in. Steps at another K than the plan's (measurements) say nothing about the plan."""
        off_seconds = self._off_seconds[decode_rows] if decode_rows <= self._max_num_seqs else 0.0
        if not off_seconds:
            return
        watch = self._watch_by_batch[decode_rows]
        cost = step_seconds / off_seconds
        if not num_speculative_tokens:
            self._count_off(watch, cost, now_s)
            return
        if num_speculative_tokens != self._k_by_batch[decode_rows]:
            return
        gain = generated_tokens / decode_rows
        if now_s > watch.scale_ends_s:
            watch.off_scale, watch.scale_ends_s = 1.0, float("inf")
        lost = cost / watch.off_scale - gain
        surprise = lost - watch.mean
        watch.mean += MEMORY * surprise
        variance = watch.variance = watch.variance + MEMORY * (surprise * surprise - watch.variance)
        evidence = LOSS * (lost - LOSS / 2.0) / (max(LEAST_VARIANCE, variance))
        score = watch.score + (1.0 if evidence > 1.0 else max(evidence, -1.0))
        if score > 0.0:
            if not watch.score:
                watch.began_s = now_s
            watch.on_seconds += cost
            watch.on_tokens += gain
            watch.score = min(SUSPICION, score)
            if score >= SUSPICION and now_s - watch.began_s >= LEAST_EXCURSION_S and watch.held_until_s is None:
                self._begin_check(watch, now_s)
        elif watch.score:
            watch.calm()

    def _begin_check(self, watch: _Watch, now_s: float) -> None:
        watch.is_checking, watch.check_steps, watch.check_seconds = True, 0, 0.0
        watch.held_until_s = now_s + FIRST_HOLD_S
        self.holding += 1

    def _count_off(self, watch: _Watch, cost: float, now_s: float) -> None:
        """Of an OFF step, `cost` times as long as expected."""
        if not watch.is_checking:
            return
        watch.check_steps += 1
        watch.check_seconds += cost
        if watch.check_steps < CHECK_STEPS:
            return
        scale = watch.check_seconds / watch.check_steps
        trust_s = LONG_TRUST_S if abs(scale / watch.last_scale - 1.0) < TRUST_SHARE else FIRST_TRUST_S
        watch.off_scale = watch.last_scale = scale
        watch.scale_ends_s = now_s + trust_s
        is_worse = watch.off_scale * (1.0 + CHECK_MARGIN) < watch.on_seconds / max(watch.on_tokens, 1e-9)
        if not is_worse or now_s - watch.doubted_s > SECOND_LOOK_S:
            watch.doubted_s = now_s if is_worse else float("-inf")
            self._release(watch, now_s)
            return
        if now_s - watch.released_s > FORGIVEN_S:
            watch.trips_in_a_row = 0
        watch.is_checking = False
        watch.held_until_s = now_s + min(FIRST_HOLD_S * 2.0 ** min(watch.trips_in_a_row, 16), LONGEST_HOLD_S)
        watch.trips_in_a_row += 1
        self.trips += 1

    def _release(self, watch: _Watch, now_s: float) -> None:
        if not watch.is_checking:
            watch.released_s = now_s
        watch.is_checking, watch.held_until_s = False, None
        self.holding -= 1
        watch.begin()
