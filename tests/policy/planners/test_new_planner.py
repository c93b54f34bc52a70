"""A planner that learns is a function: steering, measurements, reasons and the simulator follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, workload
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners import LEARNING_PLANNERS, LearningPlanner
from nightjar.policy.planners.base import GroupPlan, GroupView, rows_of
from nightjar.policy.planners.calibration import measurements
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.words import in_words
from tests.policy.engines import Fleet, Replica, best_k

SETTINGS = parse_operator_settings({"mode": "auto", "allowed_num_speculative_tokens": (0, 1, 3, 5), "dwell_steps": 3})
"""Unlike those of other tests: what one plans of a group of whom nothing is known is remembered by its settings."""


def boldest(view: GroupView, model: GoodputModel) -> GroupPlan:
    """The K that is expected to give most, whatever the doubt."""
    rows = rows_of([model.ks[k] for k in np.argmax(model.log_goodput, axis=1)], view.key.max_num_seqs)
    return GroupPlan(rows, reasons=tuple((because(Code.OTHER, "boldly"),) for _ in view.buckets))


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNING_PLANNERS, "fleet", LearningPlanner(boldest, measurements))


def test_it_steers_engines_and_is_given_what_it_wants_measured() -> None:
    fleet = Fleet([Replica(f"r{number}", 16) for number in range(3)], SETTINGS)
    fleet.run(20.0)
    assert fleet.planned(16) == best_k(16)
    assert all(replica.k == best_k(16) for replica in fleet.replicas)
    assert fleet.dealt, "what it asked to measure was dealt out"
    (group,) = fleet.state.groups.values()
    assert group.plan is not None
    assert in_words(group.plan.causes(16)) == "boldly"


def test_it_runs_in_the_simulator() -> None:
    nominal = nominal_of(read_profile("qwen-7b-0.5b-rtx4090"))
    result = simulate(
        Scenario(
            profile=nominal.profile,
            workload=workload(nominal, Regime((Phase("held", 30.0, users=4),))),
            planner=PlannerChoice("fleet", operator=SETTINGS),
            duration_s=30.0,
            warm_up_s=15.0,
            replicas=1,
            seed=1,
        )
    )
    assert result.totals.mean_num_speculative_tokens > 1.0
