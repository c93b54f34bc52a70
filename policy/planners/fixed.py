"""The planner `fixed`: one K at every batch, as vLLM's own `num_speculative_tokens` (draft tokens a request and step)."""

from __future__ import annotations

from nightjar.policy.planners.base import GroupPlan, GroupView, nearest_runnable, one_length
from nightjar.policy.wire.cause import Code, because


def plan(view: GroupView) -> GroupPlan:
    """The settings' `num_speculative_tokens`, or the engine's maximum where none is set; never one that may not run."""
    maximum = view.key.max_num_speculative_tokens
    wanted = view.settings.num_speculative_tokens
    length = nearest_runnable(maximum if wanted is None else wanted, view.settings, view.key)
    why = because(Code.EVERYWHERE, num_speculative_tokens=length)
    if wanted is not None and length != wanted:
        allowed = ", ".join(map(str, view.arms))
        why = because(Code.EVERYWHERE, allowed, num_speculative_tokens=length, asked=wanted, maximum=maximum)
    return GroupPlan(one_length(length, view.key.max_num_seqs), (why,))
