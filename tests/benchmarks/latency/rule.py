"""The fleet with the rule of what users wait for (waits.py) in place of its own choice of K, while a run lasts.

The rule is tried out: production code has no switch for it, as for the parts that the ablation leaves out. Who waits is
told by the load in each report, once a tick; nothing that decides is changed where the rule does not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final
from unittest.mock import patch

from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Job, Outcome
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.policy.decision import learning
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.evidence.step_time import predict_step_times
from nightjar.policy.planners import LEARNING_PLANNERS, LearningPlanner
from nightjar.policy.planners.base import GroupPlan, GroupView, plan_of, present_arms, present_mixed_arms
from nightjar.policy.planners.calibration import measurements
from nightjar.policy.planners.fleet import fleet_plan
from nightjar.policy.state import GroupState, ReplicaState
from nightjar.policy.wire.operator import OperatorSettings
from tests.benchmarks.latency.bars import LATENCY, RULE
from tests.benchmarks.latency.bursts import runs, scenes
from tests.benchmarks.latency.waits import NO_WAITS, Waits, choose_for_waits


@dataclass(slots=True)
class Watched:
    """Who waited in each group, by its key, and when that was looked at."""

    by_group: dict[str, tuple[Waits, float]] = field(default_factory=dict)

    def look(self, group: GroupState, members: Mapping[str, ReplicaState], now_s: float) -> None:
        """One look at all replicas of a group."""
        waits, before_s = self.by_group.get(group.key.group_id, (NO_WAITS, -math.inf))
        loads = [replica.report.snapshot.load for replica in members.values()]
        self.by_group[group.key.group_id] = waits.after(loads, group.key.max_num_seqs, now_s - before_s), now_s

    def plan(self, view: GroupView, model: GoodputModel) -> GroupPlan:
        """The fleet's plan, with the arms that save most request-seconds once off and prefill were measured."""
        plan, evidence = fleet_plan(view, model), view.evidence
        if all(cell.num_speculative_tokens for cell in (*evidence.cells, *evidence.mixed_cells)):
            return plan
        waits, _ = self.by_group.get(view.key.group_id, (NO_WAITS, 0.0))
        times = predict_step_times(evidence.cells, view.arms, view.buckets, view.key.max_num_seqs, view.now_s)
        present = present_arms(view), present_mixed_arms(view)
        chosen = choose_for_waits(evidence, times, view.arms, waits, present, drafter_sleeps=view.drafter_sleeps)
        return plan if chosen is None else plan_of(view, *chosen, plan.reasons)


@dataclass(frozen=True, slots=True)
class ByWaits:
    """A cell's job with the rule in place while it runs."""

    job: Job

    def __call__(self) -> Outcome:
        """Simulate and measure."""
        watched, looked = Watched(), learning._looked

        def looking(
            group: GroupState, members: Mapping[str, ReplicaState], settings: OperatorSettings, now_s: float
        ) -> tuple[GroupState, GroupView, dict[str, ReplicaState]]:
            watched.look(group, members, now_s)
            return looked(group, members, settings, now_s)

        with ExitStack() as stack:
            stack.enter_context(patch.object(learning, "_looked", looking))
            stack.enter_context(patch.dict(LEARNING_PLANNERS, {"fleet": LearningPlanner(watched.plan, measurements)}))
            return self.job()


def _ruled(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The fleet with the rule, on the bars' seeds."""
    return [
        replace(run, variant=RULE, job=ByWaits(run.job))
        for waits in scenes(choice)
        for run in runs(LATENCY, choice, waits, (FLEET,), choice.effort.bars)
    ]


TRIED: Final = Experiment("rule", "the fleet with the rule of what users wait for, which no planner runs", (_ruled,))
