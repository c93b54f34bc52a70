"""What a simulated engine counts of its steps: the marks and counters of the step loop, and sums for results.

The fleet learns from these counters, so a step is called clean here exactly where the real step loop calls it so; what planners
must never see (regret, the truth behind it) is summed up beside them, in `EngineTotals`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nightjar.loadtests.simulation.engine.truth import Truth
from nightjar.policy.planners.local import StepOutcome
from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.step.steering import Steering

SETTLE_STEPS: Final = 2
"""Steps for which K must be held before a step's time belongs to it (the step loop, without async scheduling)."""


def _seconds() -> array[float]:
    return array("d")


def _rows() -> array[int]:
    return array("l")


@dataclass(slots=True)
class EngineTotals:
    """Sums over all steps; they only rise."""

    tokens: int = 0
    """Generated tokens, first tokens included."""
    busy_s: float = 0.0
    steps: int = 0
    decode_steps: int = 0
    """Steps with decode rows."""
    steps_off: int = 0
    """Those of them at K=0."""
    k_sum: int = 0
    """Sum of K over them."""
    restarts: int = 0
    catch_up_tokens: int = 0
    preemptions: int = 0
    offloads: int = 0
    reloads: int = 0
    expected_tokens: float = 0.0
    """What the pure decode steps' K yields on average in the time that they took; only where regret is tracked."""
    best_tokens: float = 0.0
    """What the best K would have yielded in that time. The difference is regret."""
    output_seconds: array[float] = field(default_factory=_seconds)
    """Of each step with decode rows, how long it took: what passed since each of these rows had its last output."""
    output_rows: array[int] = field(default_factory=_rows)
    """Decode rows of the same steps."""


class StepAccount:
    """Counts one engine's steps. `tracks_regret` compares each pure decode step with the best K."""

    def __init__(self, steering: Steering, totals: EngineTotals, truth: Truth, *, tracks_regret: bool) -> None:
        self.counters = StepCounters()
        self.step_microseconds = 0
        """Of the last step that began while the engine was busy."""
        self._steering = steering
        self._totals = totals
        self._truth = truth
        self._tracks_regret = tracks_regret
        self._held_steps = 0
        self._steps_since_prefill = 0
        self._was_idle = True

    def rest(self) -> None:
        """The engine is idle: the time until its next output is no step's."""
        self._was_idle = True

    def count(
        self,
        drafted: int,
        verified: int,
        decode_rows: int,
        context_tokens: int,
        prefill_tokens: int,
        catch_up_tokens: int,
        generated_tokens: int,
        first_tokens: int,
        reached: Sequence[int],
        accepted: Sequence[int],
        seconds: float,
        now_s: float,
        speed: float,
    ) -> None:
        """Count a step of `seconds` that ended at `now_s`, verified `verified` drafts per row and left `drafted` to the next."""
        totals, steering = self._totals, self._steering
        totals.tokens += generated_tokens
        totals.busy_s += seconds
        totals.steps += 1
        totals.catch_up_tokens += catch_up_tokens
        if decode_rows:
            totals.decode_steps += 1
            totals.k_sum += drafted
            totals.steps_off += not drafted
            totals.output_seconds.append(seconds)
            totals.output_rows.append(decode_rows)
        self._held_steps = self._held_steps + 1 if drafted == verified else 1
        self._steps_since_prefill = 0 if prefill_tokens else self._steps_since_prefill + 1
        settled = self._held_steps >= SETTLE_STEPS and self._steps_since_prefill >= SETTLE_STEPS - 1
        step_microseconds = 0 if self._was_idle else max(round(seconds * 1e6), 1)
        self._was_idle = False
        if step_microseconds:
            self.step_microseconds = step_microseconds
        is_pure = not prefill_tokens and not catch_up_tokens
        clean = is_pure and settled and drafted == verified and step_microseconds > 0
        self.counters.count(
            StepCount(
                drafted,
                decode_rows,
                context_tokens,
                prefill_tokens,
                generated_tokens,
                reached,
                accepted,
                step_microseconds,
                clean,
                not prefill_tokens and not settled,
                catch_up_tokens,
                first_tokens=first_tokens,
            )
        )
        if clean:
            steering.count_clean_step(decode_rows, drafted, generated_tokens, seconds, now_s)
        elif prefill_tokens and step_microseconds and not catch_up_tokens:
            steering.count_prefill_step(decode_rows, drafted)
        if is_pure and decode_rows:
            if step_microseconds and steering.plans_locally:
                steering.learn(
                    StepOutcome(drafted, decode_rows, context_tokens, generated_tokens, seconds, reached, accepted, settled)
                )
            if self._tracks_regret:
                rate, best_rate = self._truth.rates(decode_rows, context_tokens, drafted)
                totals.expected_tokens += rate * seconds * speed
                totals.best_tokens += best_rate * seconds * speed
        if prefill_tokens:
            self._truth.note_prefill(prefill_tokens, totals.tokens)
