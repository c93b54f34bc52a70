"""A freeze: for as long as it lasts no plan changes, nothing is measured and no lease is granted.

An operator freezes a fleet to look at it, or to keep it as it is over a release or a busy day. The plans in force are part of
the freeze, so that a policy that starts anew goes on with them although it has planned nothing itself. Settings are renewed all
the while, so that no replica falls back to off. A person's word acts as ever (modes, limits, kill switch), and so do guard and
drafter in every engine; leases in flight run out. Fails towards off: a group that had no plan when the freeze began runs off.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field

from nightjar.policy.planners.base import GroupPlan, one_k
from nightjar.policy.wire.cause import MAX_CAUSES, Code, SomeCauses, because
from nightjar.policy.wire.operator import OperatorSettings, PlannerName
from nightjar.policy.wire.record import Reason, Record
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import Local, Plan, Table
from nightjar.policy.wire.status import FreezeStatus


class HeldPlan(Record):
    """The plan of one group as it was when the freeze began, and the planner that it is of.

    `why` is empty where the plan's rows say it. `summary` is what releases before protocol 3 stored in its place, in words.
    """

    planner: PlannerName
    plan: Plan
    summary: Reason = ""
    why: SomeCauses = ()

    @classmethod
    def of(cls, plan: GroupPlan, planner: str) -> Self:
        """The storable form of a plan. Its reasons by batch are left out: they tell of numbers that age."""
        table = plan.local or Table(rows=plan.rows, mixed_rows=plan.mixed_rows)
        return cls.model_validate({"planner": planner, "plan": table, "why": plan.why[:MAX_CAUSES]})

    def group_plan(self) -> GroupPlan:
        """The plan as the group runs it."""
        why = self.why or ((because(Code.OTHER, self.summary),) if self.summary else ())
        if isinstance(self.plan, Local):
            return GroupPlan((), why, local=self.plan)
        return GroupPlan(self.plan.rows, why, mixed_rows=self.plan.mixed_rows)


class Freeze(Record):
    """A freeze in force: since when and until when, on the clock of the policy (None: until somebody ends it), and the plans held.

    `plans` are those of the groups that had one, by their id. `carried_from` is the address of the policy of the cluster before,
    where it was set there.
    """

    since_s: float
    expires_at_s: float | None = None
    reason: Reason = ""
    carried_from: Reason = ""
    plans: dict[str, HeldPlan] = Field(default_factory=dict, max_length=10_000)

    def is_live(self, now_s: float) -> bool:
        """Whether it still holds at `now_s`."""
        return self.expires_at_s is None or now_s < self.expires_at_s

    def status(self, now_s: float) -> FreezeStatus:
        """How status and explain show it."""
        left_s = None if self.expires_at_s is None else max(self.expires_at_s - now_s, 0.0)
        return FreezeStatus.model_validate(dict(self) | {"seconds_left": left_s})

    def plan_of(self, group_id: str, key: GroupKey, present: GroupPlan | None) -> GroupPlan:
        """The plan that a group runs while it lasts: `present`, with all its reasons, where that is the held one."""
        held = self.plans.get(group_id)
        wanted = held.group_plan() if held is not None else GroupPlan(one_k(0, key.max_num_seqs), (because(Code.UNPLANNED),))
        if present is not None and (present.rows, present.mixed_rows, present.local) == (
            wanted.rows,
            wanted.mixed_rows,
            wanted.local,
        ):
            return present
        return wanted

    def settings_of(self, group_id: str, settings: OperatorSettings) -> OperatorSettings:
        """The operator's settings for one group: another planner than the held plan's waits until the freeze ends."""
        held = self.plans.get(group_id)
        if held is None or held.planner == settings.planner:
            return settings
        return settings.model_copy(update={"planner": held.planner})
