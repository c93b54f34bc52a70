"""TurboSpec, formerly SmartSpec: the K with the best goodput that an off-line profile and recent acceptance predict.

Source: arXiv 2406.14066 (v3; SmartSpec is its first version). Before every decode step, for the whole batch,

    K = argmax over 0..K_max of  rows * (1 - a^(K+1)) / (1 - a) / step_time(rows, context, K)

with the token acceptance rate a from a moving window and step_time from a profile taken off line.

Assumed: the profile is a table interpolated in batch and context (the paper fits a linear model over the same two); the
window is 10 speculating steps and a is 0.7 before the first, as in the rebuild that the Nightjar authors compare with; a is
accepted tokens over tokens tried, where a token behind a rejected one was not tried. Ties take the smaller K.
Not modelled: the paper also skips the draft's prefill above the batch size at which it last switched off. It does not price a
restart, so with our dormancy it comes back whenever the next step alone looks better.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from nightjar.loadtests.simulation.rivals.prior import StepTimes, StepTimesLookup
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalOptionsError,
    StepOutcome,
    StepView,
    number_option,
    refuse_unknown,
    text_option,
)

WINDOW_STEPS: Final = 10
FIRST_ACCEPTANCE: Final = 0.7


def build(options: LocalOptions, context: LocalContext) -> TurboSpec:
    """Options: `step_times` (StepTimes as text, required), `window_steps`, `first_acceptance`."""
    refuse_unknown(options, ("step_times", "window_steps", "first_acceptance"))
    return TurboSpec(
        context.allowed,
        step_times_option(options, context),
        window_steps=int(number_option(options, "window_steps", WINDOW_STEPS, 1, 10_000)),
        first_acceptance=float(number_option(options, "first_acceptance", FIRST_ACCEPTANCE, 0, 1)),
    )


def step_times_option(options: LocalOptions, context: LocalContext) -> StepTimes:
    """The profile in the option `step_times`. Raises LocalOptionsError if it is none, or covers fewer K than the engine has."""
    try:
        times = StepTimes.from_text(text_option(options, "step_times", ""))
    except ValueError as error:
        raise LocalOptionsError(f"option step_times: {error}") from error
    if times.max_num_speculative_tokens < context.allowed[-1]:
        raise LocalOptionsError(f"option step_times ends at K={times.max_num_speculative_tokens}, K={context.allowed[-1]} may run")
    return times


class TurboSpec:
    """Goodput of every K at every step; nothing is explored."""

    plans_mixed_steps = False

    def __init__(self, ks: tuple[int, ...], times: StepTimes, *, window_steps: int, first_acceptance: float) -> None:
        self._ks = ks
        self._times = StepTimesLookup(times)
        self._window: deque[tuple[int, int]] = deque(maxlen=window_steps)
        self._acceptance = -1.0
        self._tokens_per_row: list[float] = []
        self._set_acceptance(first_acceptance)

    @property
    def acceptance(self) -> float:
        """The token acceptance rate that the next step is planned with."""
        return self._acceptance

    def choose(self, view: StepView) -> int:
        """The K of the best predicted goodput; the number of rows is the same for all and drops out."""
        seconds, tokens = self._times.at(view.decode_batch_size, view.context_tokens), self._tokens_per_row
        return max(self._ks, key=lambda k: (tokens[k] / seconds[k], -k))

    def in_mixed_step(self, view: StepView) -> int:
        """The same rule: it draws nothing."""
        return self.choose(view)

    def learn(self, outcome: StepOutcome) -> None:
        """Move the window by a step that speculated."""
        tried = sum(map(min, outcome.reached, (outcome.decode_rows, *outcome.accepted)))
        if tried:
            self._window.append((sum(outcome.accepted), tried))
            self._set_acceptance(sum(step[0] for step in self._window) / sum(step[1] for step in self._window))

    def _set_acceptance(self, acceptance: float) -> None:
        if acceptance != self._acceptance:
            self._acceptance = acceptance
            tokens, survival = [1.0], 1.0
            for _ in range(self._ks[-1]):
                survival *= acceptance
                tokens.append(tokens[-1] + survival)
            self._tokens_per_row = tokens
