"""When a group is planned again, and what it then expects, plans and wants to measure.

A plan costs half a millisecond and evidence comes in every second, so a group re-plans only where its evidence changed: a cell
that became much better known, acceptance that moved, other settings, or REFRESH_S since the last time. A replica is planned for by
itself where its prompts are easier or harder to draft for than its group's: it does not share another's traffic, and a liar harms
itself only. Replicas with a limit of a step that not all have run the group's K where it keeps the limit, and elsewhere what the
same rules choose among those that do: a limit for some costs the others nothing. Fails towards the last estimate: what does not
change the evidence does not change the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView, plan_of, present_indices, present_mixed_indices, rows_of
from nightjar.policy.planners.calibration import Measurement
from nightjar.policy.planners.fleet import all_reasons
from nightjar.policy.wire.operator import Objective, OperatorSettings
from nightjar.policy.wire.report import GroupKey

REFRESH_S: Final = 5.0
"""A group re-plans at least this often, for drift that is too slow to be noticed otherwise."""
REPLAN_GROWTH: Final = 1.2
"""A group re-plans where a cell has this many times the steps that it had at the last estimate."""
REPLAN_ACCEPTANCE: Final = 0.02
"""A group re-plans where any S_i moved by this much."""
OTHER_DEVIATIONS: Final = 4.5
STILL_OTHER_DEVIATIONS: Final = 1.5
"""Standard deviations by which a replica's acceptance must be off its group's to be planned for by itself, and to stay so. It is
looked at every second, over some 3,000 rows of a few requests: where half of these are 0.12 easier and half as much harder to draft
for than the mean, luck passes 2.5 deviations a dozen times an hour, four once in two to four hours, 4.5 once a day at most. A
replica that luck switched off makes no drafts that could show it is like the others. What is not seen any more becomes doubtful, so
that one that is off for its own traffic's sake tries again after minutes."""


class ToldGain(NamedTuple):
    """Log goodput above another K's, its standard deviation as people are told it, and whether that is anything to go by: not where
    two of them exceed the gain and either K was hardly measured in that batch bucket."""

    log_gain: float
    deviation: float
    is_known: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan and what it stands on."""

    at_s: float
    steps: Mapping[Cell, float]
    acceptance: tuple[float, ...]
    settings: OperatorSettings
    plan: GroupPlan
    goodput_model: GoodputModel
    wanted: Mapping[int, Sequence[Measurement]] = field(default_factory=dict)

    def told_gain(self, bucket: int, k: int, other: int) -> ToldGain | None:
        """What one K gives over another, as people are told it; None where either may not run, or is no number."""
        model = self.goodput_model
        if k not in model.ks or other not in model.ks or bucket >= len(model.rows):
            return None
        index, reference = model.ks.index(k), model.ks.index(other)
        log_gain = float(model.log_goodput[bucket, index] - model.log_goodput[bucket, reference])
        deviation = float(model.told_deviation[bucket, index, reference])
        if not math.isfinite(log_gain) or not math.isfinite(deviation):
            return None
        measured = bool(model.measured[bucket, index] and model.measured[bucket, reference])
        return ToldGain(min(log_gain, 100.0), deviation, measured or abs(log_gain) > DOUBT_DEVIATIONS * deviation)


def replan(view: GroupView) -> Estimate:
    """What `view` lets a group expect, run and want to know."""
    alone = replan_alone(view)
    planned = present_indices(view.with_plan(alone.plan))
    return replace(alone, wanted=LEARNING_PLANNERS[view.settings.planner].wanted(view, alone.goodput_model, planned))


def replan_alone(view: GroupView) -> Estimate:
    """What a replica expects and runs for itself; what it wants to know is its group's affair."""
    model = view.goodput_model()
    return Estimate(
        view.now_s,
        {cell: known.steps for cell, known in view.evidence.cells.items()},
        view.evidence.acceptance.acceptance(view.ks[-1]),
        view.settings,
        LEARNING_PLANNERS[view.settings.planner].plan(view, model),
        model,
    )


def cold_start(view: GroupView) -> Estimate:
    """The estimate of a group of which nothing is known: the same for all groups of one shape, and always due to be replaced."""
    return replace(_cold(view.key.max_num_seqs, view.ks, view.settings), at_s=float("-inf"))


@lru_cache(maxsize=64)
def _cold(max_num_seqs: int, ks: tuple[int, ...], settings: OperatorSettings) -> Estimate:
    key = GroupKey(target="unknown", max_num_seqs=max_num_seqs, max_num_speculative_tokens=ks[-1])
    return replan(GroupView(key, settings, Evidence()))


def needs_replan(last: Estimate | None, view: GroupView) -> bool:
    """Whether the evidence differs enough from what the last estimate stood on."""
    if last is None or view.now_s - last.at_s >= REFRESH_S or last.settings != view.settings:
        return True
    if any(known.steps > REPLAN_GROWTH * last.steps.get(cell, 0.0) for cell, known in view.evidence.cells.items()):
        return True
    acceptance = view.evidence.acceptance.acceptance(view.ks[-1])
    return any(abs(new - old) > REPLAN_ACCEPTANCE for new, old in zip(acceptance, last.acceptance, strict=True))


def own_evidence(view: GroupView, own: AcceptanceEvidence, *, has_own: bool) -> Evidence | None:
    """The evidence for one of the group's replicas by its own traffic, whose acceptance is `own`; None where that is what the
    group does."""
    known = view.evidence.acceptance
    enough = STILL_OTHER_DEVIATIONS if has_own else OTHER_DEVIATIONS
    if view.key.adaptive_verification:
        return None  # what was kept of the first draft says how full the replica is, too
    if view.replicas < 2 or own.deviations_from(known, view.now_s) <= enough:
        return None
    return replace(view.evidence, acceptance=own.shrunk_to(known))


def for_objective(view: GroupView, estimate: Estimate, objective: Objective, last: Estimate | None) -> Estimate:
    """The estimate with the plan for another objective, by the same model. `last` is what it was before, and stays where that was
    made of the very same estimate."""
    view = view.with_objective(objective)
    if last is not None and (last.at_s, last.settings) == (estimate.at_s, view.settings):
        return last
    running = view.with_plan(last.plan if last is not None else estimate.plan)
    plan = LEARNING_PLANNERS[view.settings.planner].plan(running, estimate.goodput_model)
    return replace(estimate, settings=view.settings, plan=plan, wanted={})


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
    planned, planned_mixed = present_indices(view.with_plan(estimate.plan)), present_mixed_indices(view.with_plan(estimate.plan))
    buckets = np.arange(len(planned))
    keeps = model.allowed[buckets, planned] & model.allowed[buckets, planned_mixed]
    present = np.where(keeps, planned, present_indices(view.with_plan(last)))
    runs = GroupPlan(rows_of([model.ks[index] for index in present], most))
    chosen = LEARNING_PLANNERS[view.settings.planner].plan(view.with_plan(runs), model)
    indices = np.where(keeps, planned, present_indices(view.with_plan(chosen)))
    mixed_indices = np.where(keeps, planned_mixed, present_mixed_indices(view.with_plan(chosen)))
    planned_reasons = all_reasons(estimate.plan) or (estimate.plan.summary,) * len(keeps)  # a plan held by a freeze has no others
    pairs = zip(keeps, planned_reasons, all_reasons(chosen), strict=True)
    reasons = tuple(own if is_kept else limited for is_kept, own, limited in pairs)
    return replace(estimate, plan=plan_of(view, indices, mixed_indices, reasons), goodput_model=model)
