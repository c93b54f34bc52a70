"""What a simulated engine really yields at each K: true step times, and the true acceptance of the rows that are in the batch.

Steps with prefill count, too: they run at the K in force and are dearer at a longer one, because verification competes with the
prompt for compute and the drafter reads the prompt as well. How often they come is taken from the recent past. Regret is measured
against this truth, and the oracle plays it: what any planner could reach at most, for comparison only. Nothing of it ever reaches a
planner of policy/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.engine.decode_rows import DecodeRows
from nightjar.loadtests.simulation.profiles import Drafter
from nightjar.loadtests.simulation.step_cost import PreparedCost
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalPlanner,
    LocalPlannerFactory,
    StepOutcome,
    StepView,
    flag_option,
    number_option,
    refuse_unknown,
)

PREFILL_MEMORY: Final = 32.0
"""Steps with prefill whose mean tells how often the next ones come and how long their prompts are."""
FEWEST_PREFILLS: Final = 8
"""Before so many of them nothing is expected: a start fills the batch at once and says nothing about what comes."""


class Truth:
    """True goodput of one engine's batch, in generated tokens per second at speed 1."""

    def __init__(
        self, prepared: PreparedCost, classes: AcceptanceClasses, rows: DecodeRows, drafter: Drafter, *, prompts_apart: bool = False
    ) -> None:
        self.ks = drafter.arms
        self._prompts_apart = prompts_apart
        self._prepared = prepared
        self._classes = classes
        self._rows = rows
        self._drafter = drafter
        self._composition = -1
        self._tokens: list[float] = []
        self._prefills = 0.0
        self._prefill_tokens = 0.0
        self._tokens_between = 0.0
        self._tokens_at_prefill = 0
        self._prefill_asked = (0, 0.0)
        self._prefill_found: list[float] = []

    def renew(self) -> None:
        """Acceptance has changed."""
        self._composition = -1

    def note_prefill(self, prefill_tokens: int, generated_tokens: int) -> None:
        """A step computed prompt tokens, when the engine had generated so many tokens since it started."""
        if self._prompts_apart:
            return  # no drafts are verified in such a step
        between = generated_tokens - self._tokens_at_prefill
        self._tokens_at_prefill = generated_tokens
        self._prefills = min(self._prefills + 1.0, PREFILL_MEMORY)
        self._prefill_tokens += (prefill_tokens - self._prefill_tokens) / self._prefills
        self._tokens_between += (between - self._tokens_between) / self._prefills

    def goodput(self, decode_rows: int, context_tokens: int, num_speculative_tokens: int) -> float:
        """Tokens per second of the present rows at a K that is held."""
        return self._goodputs(decode_rows, context_tokens, (num_speculative_tokens,))[0]

    def best(self, decode_rows: int, context_tokens: int, ks: Sequence[int]) -> int:
        """The one of `ks` with the highest goodput."""
        goodputs = self._goodputs(decode_rows, context_tokens, ks)
        return ks[goodputs.index(max(goodputs))]

    def rates(self, decode_rows: int, context_tokens: int, num_speculative_tokens: int) -> tuple[float, float]:
        """Goodput at this K and at the best of the drafter's."""
        own, *goodputs = self._goodputs(decode_rows, context_tokens, (num_speculative_tokens, *self.ks))
        return own, max(goodputs)

    def catch_up_seconds(self, lag_tokens: int) -> float:
        """Draft time that a restart with this lag costs."""
        return self._drafter.catch_up_seconds + self._drafter.catch_up_seconds_per_token * lag_tokens

    def _goodputs(self, decode_rows: int, context_tokens: int, ks: Sequence[int]) -> list[float]:
        """Tokens per second of the present rows at each of `ks`; asked for at every step, hence one loop."""
        prepared, tokens_by_k = self._prepared, self._tokens_by_k()
        meets_prefills, tokens_between = self._prefills >= FEWEST_PREFILLS, max(self._tokens_between, 1.0)
        prefill_seconds = self._prefill_seconds(decode_rows) if meets_prefills else ()
        goodputs = []
        for k in ks:
            tokens = tokens_by_k[k]
            seconds = prepared.decode_seconds(decode_rows, context_tokens, k, k)
            if meets_prefills:  # a step that yields more makes room for more prompts
                seconds += tokens / tokens_between * prefill_seconds[k]
            goodputs.append(tokens / seconds)
        return goodputs

    def _prefill_seconds(self, decode_rows: int) -> Sequence[float]:
        """Seconds that the usual prompt adds to a step, for each K."""
        asked = decode_rows, self._prefill_tokens
        if asked != self._prefill_asked:
            self._prefill_asked = asked
            self._prefill_found = [
                self._prepared.prefill_seconds(decode_rows, k, self._prefill_tokens) for k in range(self.ks[-1] + 1)
            ]
        return self._prefill_found

    def _tokens_by_k(self) -> list[float]:
        """Tokens that a step of the present rows yields on average, for each K."""
        rows = self._rows
        if rows.composition != self._composition:
            self._composition = rows.composition
            self._tokens = [
                rows.count + sum(count * hits for count, hits in zip(rows.class_counts, column, strict=True))
                for column in zip(*self._classes.expected_hits, strict=True)
            ]
        return self._tokens


DEFAULT_RESTART_HORIZON_S: Final = 20.0


class Oracle:
    """In every pure decode step the K with the highest true goodput for the rows, the context and the acceptance that are there.

    It explores nothing and pays its restarts like everyone: where draft KV is missing it leaves off only if the gain over
    `restart_horizon_s` (an option, default 20) is worth the catch-up. A step with prefill keeps the K of the step before it, or the
    best one if that is lower; with the option `mixed_k` it drafts so many. What is best there hangs on what the load brings later,
    which no step shows: experiments/prefill.py searches for it. Without `sees_context` (an option, default 1) it takes the context
    that rows held on average in steps of the same batch so far, as a plan by batch alone does.
    """

    def __init__(
        self, truth: Truth, allowed: tuple[int, ...], restart_horizon_s: float, mixed_k: int | None, *, sees_context: bool
    ) -> None:
        self.plans_mixed_steps = mixed_k is not None
        self._mixed_k = mixed_k
        self._truth = truth
        self._ks = tuple(k for k in truth.ks if k in allowed)
        self._restart_horizon_s = restart_horizon_s
        self._restarts = False
        self._sees_context = sees_context
        self._contexts: dict[int, tuple[int, float]] = {}

    def choose(self, view: StepView) -> int:
        """The best K now; off while a restart does not pay."""
        if self._mixed_k is not None and view.prefill_tokens:
            return self._mixed_k
        rows, context = view.decode_batch_size, self._context_tokens(view)
        best = self._truth.best(rows, context, self._ks)
        if not best or not view.lag_tokens or self._restarts:
            self._restarts = best > 0
            return best
        off = self._truth.goodput(rows, context, 0)
        gain = (self._truth.goodput(rows, context, best) - off) * self._restart_horizon_s
        self._restarts = gain > off * self._truth.catch_up_seconds(view.lag_tokens)
        return best if self._restarts else 0

    def in_mixed_step(self, view: StepView) -> int:
        """The best K now, to which a step with prefill may fall (not asked with `mixed_k`)."""
        return self._truth.best(view.decode_batch_size, self._context_tokens(view), self._ks)

    def _context_tokens(self, view: StepView) -> int:
        if self._sees_context:
            return view.context_tokens
        steps, mean = self._contexts.get(view.decode_batch_size, (0, 0.0))
        mean += (view.context_tokens - mean) / (steps + 1)
        self._contexts[view.decode_batch_size] = steps + 1, mean
        return round(mean)

    def learn(self, outcome: StepOutcome) -> None:
        """There is nothing to learn."""


def oracle_factory(truth: Truth) -> LocalPlannerFactory:
    """The factory for one engine: it knows this engine's truth and no other's."""

    def build(options: LocalOptions, context: LocalContext) -> LocalPlanner:
        refuse_unknown(options, ("restart_horizon_s", "mixed_k", "sees_context"))
        horizon_s = number_option(options, "restart_horizon_s", DEFAULT_RESTART_HORIZON_S, 0.0, 3600.0)
        mixed_k = number_option(options, "mixed_k", -1, -1, context.max_num_speculative_tokens)
        sees_context = flag_option(options, "sees_context", True)
        return Oracle(truth, context.allowed, horizon_s, None if mixed_k < 0 else int(mixed_k), sees_context=sees_context)

    return build
