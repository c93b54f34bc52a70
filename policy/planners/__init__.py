"""A planner turns what is known of a group into a plan; the guard disposes.

There are three kinds. One that needs no goodput model answers from settings alone. One that learns is handed the group's model as
well, and says what is worth measuring; measurements, prices of restarts, own plans of single replicas and `explain` follow from
it. One that every engine runs itself is a `Local` plan. A new one is a function in a file, a row here, and its name in
`PlannerName`, which settings and the wire know: help texts, contestants and docs follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners import calibration, fleet, nightjar, static
from nightjar.policy.planners.base import GroupPlan, GroupView, Planner
from nightjar.policy.planners.calibration import Measurement
from nightjar.policy.planners.local import LocalPlannerFactory
from nightjar.policy.wire.operator import PlannerName


class LearningPlanner(NamedTuple):
    """A planner that decides by the group's goodput model."""

    plan: Callable[[GroupView, GoodputModel], GroupPlan]
    """K by batch bucket, and a reason for each."""
    wanted: Callable[[GroupView, GoodputModel, npt.NDArray[np.int64]], Mapping[int, Sequence[Measurement]]]
    """By bucket what is worth measuring beside the K that the plan runs there (an index), most worth for its cost first."""


PLANNERS: Final[Mapping[PlannerName, Planner]] = {
    "off": static.off,
    "fixed": static.fixed,
    "schedule": static.schedule,
    "nightjar": nightjar.plan,
}
"""Planners that need no goodput model."""

LEARNING_PLANNERS: Final[Mapping[PlannerName, LearningPlanner]] = {
    "fleet": LearningPlanner(fleet.fleet_plan, calibration.measurements)
}
"""Planners that decide by one."""

LOCAL_PLANNERS: Final[Mapping[str, LocalPlannerFactory]] = {"nightjar": nightjar.build}
"""Planners that an engine runs itself, by the name in a `settings.Local` plan."""
