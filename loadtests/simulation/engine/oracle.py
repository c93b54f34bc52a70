"""The planner that knows the truth: what any planner could reach at most, step by step.

In every pure decode step it takes the K with the highest true goodput (truth.py) for the rows, the context and the acceptance that
are there. It explores nothing and pays its restarts like everyone: where draft KV is missing it leaves off only if the gain over
`restart_horizon_s` (an option, default 20) is worth the catch-up. For comparison only.

A step with prefill keeps the K of the step before it, or the best one if that is lower; with the option `mixed_k` it drafts so
many. What is best there hangs on what the load brings later, which no step shows: experiments/prefill.py searches for it.
"""

from __future__ import annotations

from typing import Final

from nightjar.loadtests.simulation.engine.truth import Truth
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalPlanner,
    LocalPlannerFactory,
    StepOutcome,
    StepView,
    number_option,
    refuse_unknown,
)

DEFAULT_RESTART_HORIZON_S: Final = 20.0


class Oracle:
    """Argmax of true goodput, with restarts priced over a horizon."""

    def __init__(self, truth: Truth, allowed: tuple[int, ...], restart_horizon_s: float, mixed_k: int | None) -> None:
        self.plans_mixed_steps = mixed_k is not None
        self._mixed_k = mixed_k
        self._truth = truth
        self._arms = tuple(arm for arm in truth.arms if arm in allowed)
        self._restart_horizon_s = restart_horizon_s
        self._restarts = False

    def choose(self, view: StepView) -> int:
        """The best K now; off while a restart does not pay."""
        if self._mixed_k is not None and view.prefill_tokens:
            return self._mixed_k
        rows, context = view.decode_batch_size, view.context_tokens
        best = self._truth.best(rows, context, self._arms)
        if not best or not view.lag_tokens or self._restarts:
            self._restarts = best > 0
            return best
        off = self._truth.goodput(rows, context, 0)
        gain = (self._truth.goodput(rows, context, best) - off) * self._restart_horizon_s
        self._restarts = gain > off * self._truth.catch_up_seconds(view.lag_tokens)
        return best if self._restarts else 0

    def in_mixed_step(self, view: StepView) -> int:
        """The best K now, to which a step with prefill may fall (not asked with `mixed_k`)."""
        return self._truth.best(view.decode_batch_size, view.context_tokens, self._arms)

    def learn(self, outcome: StepOutcome) -> None:
        """There is nothing to learn."""


def oracle_factory(truth: Truth) -> LocalPlannerFactory:
    """The factory for one engine: it knows this engine's truth and no other's."""

    def build(options: LocalOptions, context: LocalContext) -> LocalPlanner:
        refuse_unknown(options, ("restart_horizon_s", "mixed_k"))
        horizon_s = number_option(options, "restart_horizon_s", DEFAULT_RESTART_HORIZON_S, 0.0, 3600.0)
        mixed_k = number_option(options, "mixed_k", -1, -1, context.max_num_speculative_tokens)
        return Oracle(truth, context.allowed, horizon_s, None if mixed_k < 0 else int(mixed_k))

    return build
