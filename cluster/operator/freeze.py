"""What an operator asks for through `freeze`, checked before it touches anything.

Fails closed: a wrong field raises `OperationError` with the field, the value and what is allowed; a freeze in force stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nightjar.cluster.api.operations import checked, refused
from nightjar.policy.freeze import Freeze, HeldPlan
from nightjar.policy.state import FleetState
from nightjar.policy.wire.record import Reason
from nightjar.policy.wire.status import NO_NEW


class FreezeRequest(BaseModel):
    """One call of `freeze`: begin (or prolong) a freeze, or end the one in force. `for_s` None holds until somebody ends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    frozen: bool
    for_s: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    reason: Reason = ""


def parse_freeze_request(values: Mapping[str, object]) -> FreezeRequest:
    """The request that `values` spell. Raises OperationError."""
    request = checked(FreezeRequest, values)
    if not request.frozen and request.for_s is not None:
        raise refused(f"for_s: {request.for_s:g} with frozen false, which ends a freeze at once; leave it out")
    return request


def begun(request: FreezeRequest, before: Freeze | None, fleet: FleetState, now_s: float) -> Freeze:
    """The freeze that a request begins; one in force goes on with its plans, until the new end and for the new reason."""
    ends_s = None if request.for_s is None else now_s + request.for_s
    if before is not None and before.is_live(now_s):
        return before.model_copy(update={"expires_at_s": ends_s, "reason": request.reason})
    plans = {
        group_id: HeldPlan.of(group.plan, group.planner)
        for group_id, group in fleet.groups.items()
        if group.plan is not None and group.planner
    }
    return Freeze(since_s=now_s, expires_at_s=ends_s, reason=request.reason, plans=plans)


def in_words(freeze: Freeze, now_s: float) -> str:
    """`frozen for 1800 s (release): no new plan, measurement or lease`, for the journal."""
    lasting = "" if freeze.expires_at_s is None else f" for {freeze.expires_at_s - now_s:g} s"
    return f"frozen by hand{lasting}{f' ({freeze.reason})' if freeze.reason else ''}: {NO_NEW}"
