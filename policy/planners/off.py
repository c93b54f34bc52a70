"""The planner `off`: no speculation at any batch. What every other planner has to beat."""

from __future__ import annotations

from nightjar.policy.planners.base import GroupPlan, GroupView, one_length
from nightjar.policy.wire.cause import Code, because


def plan(view: GroupView) -> GroupPlan:
    """K = 0 (draft tokens a request and step) at every decode batch size."""
    return GroupPlan(one_length(0, view.key.max_num_seqs), (because(Code.EVERYWHERE, num_speculative_tokens=0),))
