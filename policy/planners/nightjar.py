"""The planner `nightjar`: the paper's bandit, ADA-BINGREEDY over K with the cost of a restart (arXiv 2512.22420).

A `Local` plan: each engine learns alone, without dwell. It is here to be compared with, and for operators who want the
published controller; the planner `fleet` is what Nightjar recommends. Fails as the paper's does: it explores any K at any
batch size, and forgets nothing when acceptance drifts.

The rule. Each decode batch size B has a timeline of its own, which only moves on steps of that B. Its block j = 1, 2, ... lasts
H = 2^(j-1) steps and is cut into bins of floor(sqrt(H)) steps, the last one shorter. When bin b of a block begins, a coin says
explore with probability 1/b: then K is uniform over those that may run. Otherwise K minimises

    1 / mean_goodput[B, K]  +  (C_switch(L_max, B) / K  if the step before ran K = 0 and K > 0, else 0)     in seconds per token.

The K is held until the bin ends. After each step the running mean of (B, K) takes in the step's goodput.

What the paper leaves open, and what was decided:

- Goodput is a row's tokens per second, generated tokens / B / step time, as in the authors' code. Then 1 / goodput is the
  latency of a token and comparable with C_switch / K; with the batch's goodput the penalty would dwarf it at any large B, and
  speculation would never come back.
- A K never tried at this B does not take part in the minimum: ADA-BINGREEDY exploits what it estimated. The first bin of
  every block explores, so some K has been tried; if none was measured (no step came to an end yet), the bin explores.
- A locked K is not looked at again within its bin, for neither a new mean nor the penalty: the lock bounds switching.
- B is the decode batch size itself, as in the paper. `batch_buckets` shares a timeline within policy's batch buckets instead;
  it learns sooner, is ours, and is off unless asked for.
- Ties take the smaller K. A step counts against its bin when it is chosen, because several may be in flight.
- A step with prefill is no decision of the paper's, whose engine computes prompts in steps of their own. It moves no timeline
  and is not learned from; K may fall to what the bin holds or, between bins, to what the means say. Nor are steps learned
  from that catch up, whose cost is C_switch, or whose K was not held: an engine of today verifies in each step the drafts of
  the step before, so that the first step of a K has another's output.
- The K are those that the settings allow, 0 among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from random import Random

from nightjar.policy.planners.base import GroupPlan, GroupView
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptions,
    LocalOptionsError,
    StepOutcome,
    StepView,
    flag_option,
    refuse_unknown,
    text_option,
)
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.settings import Local
from nightjar.policy.wire.switch_cost import PAPER_SWITCH_COST, SwitchCost, as_good_as, format_rows, parse_rows


def plan(view: GroupView) -> GroupPlan:
    """Hand K to every engine's own bandit, with C_switch: the settings' table, or what restarts of the group cost. Before the first
    these are the paper's two points, of another engine than this one.
    """
    table = view.settings.switch_cost_table
    if table is not None:
        source, text = "C_switch from the settings", format_rows(table)
    elif view.switch_costs:
        source, text = "C_switch as its restarts cost", _text_of(view)
    else:
        source, text = "C_switch of the paper's RTX 4090 until a restart was measured", format_rows(PAPER_SWITCH_COST)
    return GroupPlan((), (because(Code.PAPER, source),), local=Local(planner="nightjar", options={"switch_cost": text}))


def _text_of(view: GroupView) -> str:
    """What restarts cost; the present table while it is as good."""
    local = view.present.local if view.present is not None else None
    present = str(local.options.get("switch_cost", "")) if local is not None else ""
    try:
        is_as_good = as_good_as(parse_rows(present), view.switch_costs)
    except ValueError:  # no engine took it
        is_as_good = False
    return present if is_as_good else format_rows(view.switch_costs)


def build(options: LocalOptions, context: LocalContext) -> AdaBinGreedy:
    """The bandit for one engine. Options: `switch_cost` (policy/wire/switch_cost.py's text; the paper's points by default) and
    `batch_buckets`. Where another C_switch is all that is new, the bandit before it goes on with that.
    """
    refuse_unknown(options, ("switch_cost", "batch_buckets"))
    try:
        rows = parse_rows(text_option(options, "switch_cost", format_rows(PAPER_SWITCH_COST)))
    except ValueError as error:
        raise LocalOptionsError(f"option switch_cost: {error}") from error
    buckets = flag_option(options, "batch_buckets", False)
    if isinstance(context.before, AdaBinGreedy) and context.before.batch_buckets == buckets:
        context.before.switch_cost = SwitchCost(rows)
        return context.before
    return AdaBinGreedy(context.allowed, SwitchCost(rows), Random(context.seed), batch_buckets=buckets)  # noqa: S311 - no secret


@dataclass(slots=True)
class Timeline:
    """Where one batch size stands: block `block` (from 1), bin `bin` (from 1), and what is left of both in steps."""

    block: int = 0
    bin: int = 0
    block_steps_left: int = 0
    bin_steps_left: int = 0
    explores: bool = False
    k: int = 0

    def advance(self) -> None:
        """Begin the next bin, and with it the next block where the block is used up."""
        if not self.block_steps_left:
            self.block, self.bin, self.block_steps_left = self.block + 1, 0, 2**self.block
        self.bin += 1
        self.bin_steps_left = min(isqrt(2 ** (self.block - 1)), self.block_steps_left)


class AdaBinGreedy:
    """The bandit: `choose` before a step, `learn` after it. `rng` is drawn from when a bin begins, once or twice."""

    plans_mixed_steps = False

    def __init__(self, ks: tuple[int, ...], switch_cost: SwitchCost, rng: Random, *, batch_buckets: bool = False) -> None:
        self.switch_cost = switch_cost
        self.batch_buckets = batch_buckets
        self._ks = ks
        self._rng = rng
        self._timelines: dict[int, Timeline] = {}
        self._means: dict[int, dict[int, tuple[int, float]]] = {}

    def choose(self, view: StepView) -> int:
        """The K locked for this batch size's bin; picked when the bin begins."""
        context = self._context(view.decode_batch_size)
        timeline = self._timelines.get(context)
        if timeline is None:
            timeline = self._timelines[context] = Timeline()
        if not timeline.bin_steps_left:
            timeline.advance()
            timeline.explores = self._rng.random() < 1.0 / timeline.bin
            best = None if timeline.explores else self._exploited(context, view)
            timeline.k = self._ks[self._rng.randrange(len(self._ks))] if best is None else best
        timeline.bin_steps_left -= 1
        timeline.block_steps_left -= 1
        return timeline.k

    def learn(self, outcome: StepOutcome) -> None:
        """Move the running mean of a row's tokens per second for the K and batch that ran."""
        if not outcome.settled or outcome.step_seconds <= 0.0 or outcome.decode_rows <= 0:
            return
        goodput = outcome.generated_tokens / outcome.decode_rows / outcome.step_seconds
        means = self._means.setdefault(self._context(outcome.decode_rows), {})
        steps, mean = means.get(outcome.num_speculative_tokens, (0, 0.0))
        means[outcome.num_speculative_tokens] = steps + 1, mean + (goodput - mean) / (steps + 1)

    def in_mixed_step(self, view: StepView) -> int:
        """The K of the bin under way; between two bins what a bin would exploit."""
        context = self._context(view.decode_batch_size)
        timeline = self._timelines.get(context)
        if timeline is not None and timeline.bin_steps_left:
            return timeline.k
        best = self._exploited(context, view)
        return view.previous_num_speculative_tokens if best is None else best

    def timeline(self, decode_batch_size: int) -> Timeline | None:
        """Where a batch size stands; None before its first step."""
        return self._timelines.get(self._context(decode_batch_size))

    def _context(self, decode_batch_size: int) -> int:
        return batch_bucket(decode_batch_size) if self.batch_buckets else decode_batch_size

    def _exploited(self, context: int, view: StepView) -> int | None:
        means = self._means.get(context, {})
        tried = [k for k in self._ks if means.get(k, (0, 0.0))[1] > 0.0]
        if not tried:
            return None
        penalty_s = 0.0
        if view.previous_num_speculative_tokens == 0:
            penalty_s = self.switch_cost.seconds(view.longest_lag_tokens, view.decode_batch_size)
        return min(tried, key=lambda k: 1.0 / means[k][1] + (penalty_s / k if k else 0.0))
