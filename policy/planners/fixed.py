"""The planner `fixed`: one K at every batch, as vLLM's own `num_speculative_tokens` (draft tokens a request and step)."""

from __future__ import annotations

from nightjar.policy.planners.base import GroupPlan, GroupView, nearest_runnable, one_length, speculation


def plan(view: GroupView) -> GroupPlan:
    """The settings' `num_speculative_tokens`, or the engine's maximum where none is set; never one that may not run."""
    maximum = view.key.max_num_speculative_tokens
    wanted = view.settings.num_speculative_tokens
    length = nearest_runnable(maximum if wanted is None else wanted, view.settings, view.key)
    summary = f"{speculation(length)} at every batch"
    if wanted is not None and length != wanted:
        summary += f": the settings' K={wanted} may not run here (maximum {maximum}, allowed {', '.join(map(str, view.arms))})"
    return GroupPlan(one_length(length, view.key.max_num_seqs), summary)
