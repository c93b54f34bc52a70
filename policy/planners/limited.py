"""A plan within a limit of a step that concerns some replicas of a group alone: those of one application, or one by hand.

The group learns and plans for all. Where its K keeps the limit it runs here, too; elsewhere the same rules choose among those K
that do, by the same evidence. So a limit for some costs the others nothing. Fails towards off, as the group's own plan.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView, plan_of, present_arms, present_mixed_arms, rows_of
from nightjar.policy.planners.estimates import Estimate


def refreshed(view: GroupView, estimate: Estimate, max_step_ms: float, last: Estimate | None) -> Estimate:
    """The estimate within a limit: `last`, what it was before, where that was made of the very same estimate."""
    is_same = last is not None and last.at_s == estimate.at_s and last.settings == estimate.settings
    if (
        last is not None
        and is_same
        and last.goodput_model.limit is not None
        and last.goodput_model.limit.max_step_s == max_step_ms / 1e3
    ):
        return last
    return within(view, estimate, max_step_ms, last.plan if last is not None else None)


def within(view: GroupView, estimate: Estimate, max_step_ms: float, last: GroupPlan | None) -> Estimate:
    """The estimate with a plan within the limit, by what `view` knows. `last` is the plan that a limit gave before: where the
    estimate's own K exceeds the limit, `last`'s gives way only to one that is better beyond doubt, so that replicas do not flap.

    >>> from nightjar.policy.evidence.cells import Evidence
    >>> from nightjar.policy.planners.estimates import cold_start
    >>> from nightjar.policy.wire.operator import OperatorSettings
    >>> from nightjar.policy.wire.report import GroupKey
    >>> key = GroupKey(target="llama-8b", max_num_speculative_tokens=5, max_num_seqs=8)
    >>> view = GroupView(key, OperatorSettings(), Evidence())
    >>> cold = cold_start(view)
    >>> [one.num_speculative_tokens(8) for one in (cold.plan, within(view, cold, 1.0, None).plan)]
    [3, 0]
    """
    view = replace(view, settings=view.settings.model_copy(update={"max_step_ms": max_step_ms}))
    model, most = view.goodput_model(), view.key.max_num_seqs
    planned, planned_mixed = present_arms(view.with_plan(estimate.plan)), present_mixed_arms(view.with_plan(estimate.plan))
    buckets = np.arange(len(planned))
    keeps = model.allowed[buckets, planned] & model.allowed[buckets, planned_mixed]
    present = np.where(keeps, planned, present_arms(view.with_plan(last)))
    runs = GroupPlan(rows_of([model.arms[arm] for arm in present], most))
    chosen = LEARNING_PLANNERS[view.settings.planner].plan(view.with_plan(runs), model)
    arms = np.where(keeps, planned, present_arms(view.with_plan(chosen)))
    mixed_arms = np.where(keeps, planned_mixed, present_mixed_arms(view.with_plan(chosen)))
    planned_reasons = estimate.plan.reasons or (estimate.plan.summary,) * len(keeps)  # a plan held by a freeze has no others
    pairs = zip(keeps, planned_reasons, chosen.reasons, strict=True)
    reasons = tuple(own if is_kept else limited for is_kept, own, limited in pairs)
    return replace(estimate, plan=plan_of(view, arms, mixed_arms, reasons), goodput_model=model)
