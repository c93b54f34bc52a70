"""The static planner of steps with prefill: one K for pure decode steps, another for those that also compute prompt tokens.

Nobody ships it. It shows what planning the two kinds of steps apart is worth without knowing more than which kind a step is.
"""

from __future__ import annotations

from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    StepOutcome,
    StepView,
    number_option,
    refuse_unknown,
)


class Pair:
    """Two K, one for each kind of step."""

    plans_mixed_steps = True

    def __init__(self, pure_k: int, mixed_k: int) -> None:
        self._pure_k, self._mixed_k = pure_k, mixed_k

    def choose(self, view: StepView) -> int:
        """The K of this kind of step."""
        return self._mixed_k if view.prefill_tokens else self._pure_k

    def in_mixed_step(self, view: StepView) -> int:  # noqa: ARG002 - not asked
        """The K of a step with prefill."""
        return self._mixed_k

    def learn(self, outcome: StepOutcome) -> None:
        """Nothing to learn."""


def build(options: LocalOptions, context: LocalContext) -> Pair:
    """Options: `pure_k` and `mixed_k`."""
    refuse_unknown(options, ("pure_k", "mixed_k"))
    pure_k, mixed_k = (
        int(number_option(options, name, 0, 0, context.max_num_speculative_tokens)) for name in ("pure_k", "mixed_k")
    )
    return Pair(pure_k, mixed_k)
