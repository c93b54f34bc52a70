"""The planner `schedule`: a table K by batch size that the operator wrote, in the form of vLLM's
`num_speculative_tokens_per_batch_size` (vLLM pull request 32374), keyed on the decode batch size.

Unlike vLLM, which counts all requests of a step, prefill does not count: it says nothing about how many rows verify.
"""

from __future__ import annotations

from nightjar.policy.planners.base import GroupPlan, GroupView, nearest_runnable
from nightjar.policy.wire.settings import TableRow


def plan(view: GroupView) -> GroupPlan:
    """The settings' table, each K (draft tokens a request and step) lowered to one that may run in this group's engines."""
    rows = tuple(
        TableRow(
            first_batch_size=row.first_batch_size,
            last_batch_size=row.last_batch_size,
            num_speculative_tokens=nearest_runnable(row.num_speculative_tokens, view.settings, view.key),
        )
        for row in view.settings.schedule_table().rows
    )
    return GroupPlan(rows)
