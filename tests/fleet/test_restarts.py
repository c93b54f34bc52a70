"""A restart storm: 16 replicas whose drafters sleep, the load falls everywhere at once, all want them back.

It runs twice, with the operator's budget and with one that allows everything. The plan is a static table: nothing has to be
learned first, and restarts need not pay, they only wait for the budget. The engines are CPUs, where recomputing a token is dear,
eight times as fast as the measured one. Agents and policy service are the real ones, and all of it runs in virtual time, so it ends
the same way on any machine. One run of both serves all tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import pytest

from nightjar.cluster.storage.journal import JournalEntry
from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.engine.leases import most_at_once
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.restarts.budget import max_leases
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import DrafterState
from tests.fleet.courses import ReplicaCourse, between, most_leases_at_once
from tests.fleet.hosted_engine import Part
from tests.fleet.virtual_fleet import PATIENCE_S, virtual_fleet

PROFILE = read_profile("cpu-smollm2")
SPEED = 8.0
REPLICAS = 16
FULL_ROWS, ROWS_ON, LOW_ROWS = 16, 8, 6
"""Requests in an engine before the fall, up to which the table speculates, and after the fall."""
IDLE_S, FULL_S = 2.0, 10.0
TRAFFIC = Dataset("long prompts", Lognormal(250, 0.2), Lognormal(40, 0.3))
SETTINGS: dict[str, object] = {
    "mode": "auto",
    "planner": "schedule",
    "num_speculative_tokens_per_batch_size": [[1, ROWS_ON, 1], [ROWS_ON + 1, PROFILE.limits.max_num_seqs, 0]],
    "exchange_period_s": 0.5,
    "decision_period_s": 0.5,
    "max_lease_ttl_s": 10.0,
}
BUDGETS: Final[dict[str, dict[str, object]]] = {
    "coordinated": {"max_restart_share": 0.25, "max_restart_slowdown": 0.1},
    "uncoordinated": {"max_restart_share": 1.0, "max_restart_slowdown": 1.0},
}
MOST_RESTARTS_APART = 0.25
"""As a share: one for each replica, and another where a lease or a batch ends in the middle of a catch-up."""
MOST_RECOMPUTED_APART = 0.3
"""As a share. A lease that arrives later finds other requests, and the lag of what they began with."""
MOST_TOKENS_APART = 0.1
"""As a share, over the storm: K = 0 gives a quarter less than K = 1 while a replica waits for its turn, a fifth of the time."""
MOST_LEASES = max_leases(parse_operator_settings(SETTINGS | BUDGETS["coordinated"]), REPLICAS)


@dataclass(frozen=True, slots=True)
class Storm:
    """One storm, of agents and a policy that are real."""

    courses: tuple[ReplicaCourse, ...]
    entries: tuple[JournalEntry, ...]

    @property
    def seconds(self) -> int:
        """Whole virtual seconds that every course holds."""
        return min(len(course.totals) for course in self.courses)

    @property
    def most_leases(self) -> int:
        """The most leases that the policy had granted at once, by its journal."""
        return most_leases_at_once(self.entries, [course.replica_id for course in self.courses])

    @property
    def most_restarts(self) -> int:
        """The most engines that caught up under a lease at once, by what they did."""
        return most_at_once([restart for course in self.courses for restart in course.leased_restarts])


@pytest.fixture(scope="module")
def storms() -> Mapping[str, Storm]:
    """By budget."""
    return {name: _storm(name) for name in BUDGETS}


def _storm(budget: str) -> Storm:
    fallen = scenario(budget)

    def all_are_on_again(courses: Mapping[str, ReplicaCourse]) -> bool:
        return all(course.leased_restarts and course.state is DrafterState.ACTIVE for course in courses.values())

    with virtual_fleet() as fleet:
        fleet.start([Part(f"{budget}-{number}", fallen, number) for number in range(REPLICAS)], SETTINGS | BUDGETS[budget])
        fleet.begin()
        fleet.until(all_are_on_again, "a leased restart of every drafter")
        courses = fleet.end()
        return Storm(tuple(courses.values()), tuple(fleet.journal()))


def test_restarts_by_lease_never_exceed_the_budget_and_all_drafters_are_on_at_last(storms: Mapping[str, Storm]) -> None:
    """INV-6."""
    storm = storms["coordinated"]
    assert 0 < storm.most_leases <= MOST_LEASES
    assert 0 < storm.most_restarts <= MOST_LEASES
    assert {course.state for course in storm.courses} == {DrafterState.ACTIVE}


def test_without_a_budget_most_drafters_catch_up_at_once(storms: Mapping[str, Storm]) -> None:
    assert storms["uncoordinated"].most_restarts >= 2 * MOST_LEASES


@pytest.mark.parametrize("budget", BUDGETS)
def test_simulated_storm_is_alike_in_restarts_recomputed_tokens_and_tokens(storms: Mapping[str, Storm], budget: str) -> None:
    """Seen, real and simulated: 16 and 16 restarts, 4 and 4 at once with the budget, 15 and 16 without; tokens within 0.3 %; on the
    real cluster 7 to 9 % more recomputed.
    """
    storm = storms[budget]
    result = simulate(replace(scenario(budget), duration_s=float(storm.seconds)))
    real, simulated = between(storm.courses, 0, storm.seconds), result.totals
    assert real.restarts == pytest.approx(simulated.restarts, rel=MOST_RESTARTS_APART)
    assert real.catch_up_tokens == pytest.approx(simulated.catch_up_tokens, rel=MOST_RECOMPUTED_APART)
    assert real.tokens == pytest.approx(simulated.tokens, rel=MOST_TOKENS_APART)
    assert (storm.most_restarts > MOST_LEASES) == (result.max_leases_in_flight > MOST_LEASES)


def scenario(budget: str) -> Scenario:
    """A group of its own: no requests, then a full batch in every engine, then a low one."""
    group = PROFILE.group.model_copy(update={"engine_version": f"{PROFILE.group.engine_version} {budget}"})
    regime = Regime(
        (
            Phase("idle", IDLE_S, requests_per_s=0.0),
            Phase("full", FULL_S, users=FULL_ROWS * REPLICAS),
            Phase("fallen", 2 * PATIENCE_S, users=LOW_ROWS * REPLICAS),
        )
    )
    return Scenario(
        profile=PROFILE.model_copy(update={"group": group}),
        workload=Workload(regime, TRAFFIC, tuple(kind.share for kind in PROFILE.acceptance_classes)),
        planner=PlannerChoice("schedule", operator=parse_operator_settings(SETTINGS | BUDGETS[budget])),
        duration_s=regime.duration_s,
        replicas=REPLICAS,
        router="sticky",
        speeds=(SPEED,) * REPLICAS,
        series=True,
    )
