"""One planner a file. A planner turns what is known of a group into a plan; the guard disposes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nightjar.policy.planners import fixed, nightjar, off, schedule
from nightjar.policy.planners.base import Planner
from nightjar.policy.planners.local import LocalPlannerFactory
from nightjar.policy.wire.operator import PlannerName

PLANNERS: Final[Mapping[PlannerName, Planner]] = {
    "off": off.plan,
    "fixed": fixed.plan,
    "schedule": schedule.plan,
    "nightjar": nightjar.plan,
}
"""Planners that need no outlook. `fleet` does: policy/planners/thinking.py calls it."""

LOCAL_PLANNERS: Final[Mapping[str, LocalPlannerFactory]] = {"nightjar": nightjar.build}
"""Planners that an engine runs itself, by the name in a `settings.Local` plan."""
