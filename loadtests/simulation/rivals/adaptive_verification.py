"""vLLM's adaptive verification: the drafter always runs its full length, and how much of it is verified follows the load.

Source: vLLM 0.32, `enable_adaptive_verification`, `vllm/v1/worker/gpu/spec_decode/adaptive_verification.py` (pull requests
47808, 52228). Every step ranks the draft slots (request, position) of the batch by survival probability and verifies the best
n of them, with

    n = argmax over 0..rows * K_max of  (rows + sum of the n best survivals) / (draft_cost(rows) + verify_cost(rows + n))

where both costs were profiled at start-up, and a profile in which more tokens take less time is levelled.

Assumed: survival is the batch's, the same for all rows, so n comes in multiples of the rows and is a K of the batch. vLLM's
confidence head (or on-line model) sees every drafted position and need not verify one to know of it; here each position's
acceptance begins at the profile's nominal one, follows an exponential mean of the steps that verify it, and drifts back to
nominal, a hundredth a step, while it is not verified. The engine charges a step the verification of K tokens and the drafting
of K_max (registry.DRAFTS_MORE), and the profile given here holds exactly those times.

Not modelled here: trimming by request, which is where a batch of easy and hard requests gains most (engine/draft_budget.py has it,
beside a planner); padding to captured graph sizes; its limits (no LoRA, no pipeline parallelism, model runner V2 only). It verifies
nothing at K = 0 but drafts on: nothing becomes dormant, and no restart is priced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Final

from nightjar.loadtests.simulation.rivals.prior import StepTimes, StepTimesLookup
from nightjar.loadtests.simulation.rivals.turbo_spec import step_times_option
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalOptionsError,
    StepOutcome,
    StepView,
    refuse_unknown,
    text_option,
)

MEAN_WEIGHT: Final = 0.05
DRIFT_WEIGHT: Final = 0.01


def build(options: LocalOptions, context: LocalContext) -> AdaptiveVerification:
    """Options, both required: `step_times`, the profile with the drafter at K_max in every time (StepTimes as text), and
    `survival`, the nominal probabilities that more than 0, 1, ... draft tokens are accepted, as in "0.7,0.5".
    """
    refuse_unknown(options, ("step_times", "survival"))
    text = text_option(options, "survival", "")
    try:
        survival = [float(share) for share in text.split(",")]
    except ValueError:
        survival = []
    if len(survival) != context.allowed[-1] or not all(later <= earlier for earlier, later in pairwise([1.0, *survival, 0.0])):
        raise LocalOptionsError(f"option survival is {text[:60]!r}; allowed are {context.allowed[-1]} falling probabilities")
    return AdaptiveVerification(context.allowed, step_times_option(options, context), survival)


class AdaptiveVerification:
    """The verified length of the best predicted goodput."""

    plans_mixed_steps = False

    def __init__(self, ks: tuple[int, ...], times: StepTimes, survival: Sequence[float]) -> None:
        self._ks = ks
        self._times = StepTimesLookup(_never_cheaper(times))
        self._nominal = [later / earlier if earlier else 0.0 for earlier, later in pairwise([1.0, *survival])]
        self._acceptance = list(self._nominal)
        self._tokens_per_row = self._expected()

    def choose(self, view: StepView) -> int:
        """How many draft tokens a row verifies."""
        seconds, tokens = self._times.at(view.decode_batch_size, view.context_tokens), self._tokens_per_row
        return max(self._ks, key=lambda k: (tokens[k] / seconds[k], -k))

    def in_mixed_step(self, view: StepView) -> int:
        """The same rule: vLLM trims steps with prefill, too."""
        return self.choose(view)

    def learn(self, outcome: StepOutcome) -> None:
        """Move each position's acceptance, given that the one before it was accepted."""
        before: int = outcome.decode_rows
        for position, known in enumerate(self._acceptance):
            tried = min(before, outcome.reached[position]) if position < len(outcome.reached) else 0
            if tried:
                before = outcome.accepted[position]
                self._acceptance[position] = known + MEAN_WEIGHT * (before / tried - known)
            else:
                before = 0
                self._acceptance[position] = known + DRIFT_WEIGHT * (self._nominal[position] - known)
        self._tokens_per_row = self._expected()

    def _expected(self) -> list[float]:
        tokens, survival = [1.0], 1.0
        for acceptance in self._acceptance:
            survival *= acceptance
            tokens.append(tokens[-1] + survival)
        return tokens


def _never_cheaper(times: StepTimes) -> StepTimes:
    """The profile as vLLM builds its cost table: verifying more never takes less time."""
    levelled = tuple(tuple(tuple(accumulate(by_k, max)) for by_k in by_context) for by_context in times.seconds)
    return replace(times, seconds=levelled)
