"""The planners that answer from the operator's settings alone: `off`, `fixed` and `schedule`. None looks at what was measured.

K is draft tokens a request and step. A K that may not run in a group's engines is lowered to the nearest one that may.
"""

from __future__ import annotations

from nightjar.policy.planners.base import GroupPlan, GroupView, nearest_runnable, one_k
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.settings import TableRow


def off(view: GroupView) -> GroupPlan:
    """K = 0 at every decode batch size: what every other planner has to beat."""
    return GroupPlan(one_k(0, view.key.max_num_seqs), (because(Code.EVERYWHERE, num_speculative_tokens=0),))


def fixed(view: GroupView) -> GroupPlan:
    """One K at every batch, as vLLM's own `num_speculative_tokens`: the settings', or the engine's maximum where none is set."""
    maximum = view.key.max_num_speculative_tokens
    wanted = view.settings.num_speculative_tokens
    k = nearest_runnable(maximum if wanted is None else wanted, view.settings, view.key)
    why = because(Code.EVERYWHERE, num_speculative_tokens=k)
    if wanted is not None and k != wanted:
        allowed = ", ".join(map(str, view.ks))
        why = because(Code.EVERYWHERE, allowed, num_speculative_tokens=k, asked=wanted, maximum=maximum)
    return GroupPlan(one_k(k, view.key.max_num_seqs), (why,))


def schedule(view: GroupView) -> GroupPlan:
    """The table K by batch size that the operator wrote, in the form of vLLM's `num_speculative_tokens_per_batch_size` (vLLM pull
    request 32374), keyed on the decode batch size.

    Unlike vLLM, which counts all requests of a step, prefill does not count: it says nothing about how many rows verify.
    """
    rows = tuple(
        TableRow(
            first_batch_size=row.first_batch_size,
            last_batch_size=row.last_batch_size,
            num_speculative_tokens=nearest_runnable(row.num_speculative_tokens, view.settings, view.key),
        )
        for row in view.settings.schedule_table().rows
    )
    return GroupPlan(rows)
