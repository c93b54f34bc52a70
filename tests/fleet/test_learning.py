"""A fleet that learns together: 16 replicas of one group, beside eight that are alone in groups of their own.

Real agents, records and the real policy service; only the engines are simulated, and they are the simulator's own. So the same
scenario, simulated, differs in nothing but when reports and settings arrive, and in the policy's random numbers. All of it runs in
virtual time, so it ends the same way on any machine. One run serves all tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from nightjar.loadtests.simulation.campaign.measures import WITHIN
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import Table
from nightjar.policy.wire.status import FleetStatus
from tests.fleet.courses import ReplicaCourse, between, share_of_best
from tests.fleet.groups import NOMINAL, PROFILE, ROWS, idle, steady_group
from tests.fleet.hosted_engine import Part
from tests.fleet.virtual_fleet import VirtualFleet, virtual_fleet

pytestmark = pytest.mark.heavy

POOLED, ALONE = 16, 8
QUIET_S = 5.0
"""The least. For so long a new policy grants no lease (INV-6); the simulator's first one does from the start."""
SETTINGS: dict[str, object] = {
    "mode": "auto",
    "planner": "fleet",
    "allowed_num_speculative_tokens": list(PROFILE.drafter.arms),
    "max_lease_ttl_s": QUIET_S,
}
IDLE_S = QUIET_S
LEAST_S, WINDOW_S = 30, 10
"""Virtual seconds that the fleet gets at least, and over which its share of the oracle's goodput is looked at."""
NEWCOMER, NEWCOMER_STEPS = "newcomer", 300
MOST_GOODPUT_APART = 1 - WITHIN
"""Of the two plans' K, in shares of the oracle's goodput. Both may be so far from the oracle and count as learned."""
MOST_TOKENS_APART = 0.02
"""As a share. The engines' draws are the same on both sides, so that only different K make a difference."""
MOST_LOSS_APART = 0.01
"""In shares of what the oracle gives, beyond what the simulator's runs are apart: agents report at moments of their own."""
TICK_PHASES_S = (0.0, 0.25, 0.5, 0.75, 0.96)
"""Of the simulator's runs: when load begins between two ticks decides how much is known at the first of them."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is looked at. `known` are the pooled group's cells, batch bucket and K, before the newcomer came."""

    pooled: tuple[ReplicaCourse, ...]
    alone: tuple[ReplicaCourse, ...]
    newcomer: ReplicaCourse
    known: frozenset[tuple[int, int]]

    @property
    def seconds(self) -> int:
        """Whole virtual seconds that every course holds."""
        return min(len(course.totals) for course in (*self.pooled, *self.alone))


@pytest.fixture(scope="module")
def run() -> Run:
    with virtual_fleet() as fleet:
        return _run(fleet)


def _run(fleet: VirtualFleet) -> Run:
    pooled = [Part(f"pooled-{number}", scenario("pooled", POOLED, seed=0), number) for number in range(POOLED)]
    alone = [Part(f"alone-{seed}", scenario(f"alone-{seed}", 1, seed), 0) for seed in range(1, ALONE + 1)]
    names = [part.replica_id for part in pooled]
    fleet.start([*pooled, *alone], SETTINGS)
    fleet.begin()

    def have_learned(courses: Mapping[str, ReplicaCourse]) -> bool:
        now_s = min(len(course.totals) for course in courses.values())
        if now_s < LEAST_S:
            return False
        return share_of_best(between([courses[name] for name in names], now_s - WINDOW_S, now_s)) >= WITHIN

    def newcomer_has_worked(courses: Mapping[str, ReplicaCourse]) -> bool:
        return sum(courses[NEWCOMER].steps_by_k.values()) >= NEWCOMER_STEPS

    fleet.until(have_learned, f"{WITHIN:.0%} of the oracle's goodput")
    known = known_cells(fleet.status(), pooled[0].scenario.profile.group)
    fleet.join(Part(NEWCOMER, idle(pooled[0].scenario), 0))
    fleet.set_users(NEWCOMER, ROWS)
    fleet.until(newcomer_has_worked, f"{NEWCOMER_STEPS} steps of the newcomer")
    courses = fleet.end()
    return Run(
        pooled=tuple(courses[name] for name in names),
        alone=tuple(courses[part.replica_id] for part in alone),
        newcomer=courses[NEWCOMER],
        known=known,
    )


def test_sixteen_replicas_together_find_the_best_k_and_measure_less_each_than_one_alone(run: Run) -> None:
    """What they lose each is chance in one run: `pooled16_loss_ratio` of `make bench-policy` is of ten (docs/results)."""
    assert true_share(run.pooled[0].plan) >= WITHIN
    assert 0 < measured_each(run.pooled) < measured_each(run.alone) / 2


def test_newcomer_has_the_groups_plan_before_its_first_request_and_measures_nothing_that_is_known(run: Run) -> None:
    newcomer = run.newcomer
    assert newcomer.adopted_before_first_request
    first = newcomer.adopted[0].settings.plan
    assert isinstance(first, Table)
    assert true_share(first) >= WITHIN
    measured = {(batch_bucket(segment.first_batch_size), segment.num_speculative_tokens) for segment in newcomer.segments}
    assert run.known
    assert not measured & run.known
    assert share_of_best(newcomer.totals[-1]) >= WITHIN


def test_simulator_learns_a_plan_as_good_and_loses_as_much_on_the_way(run: Run) -> None:
    """A cold group loses 0.1 to 3 % in so short a time, by when the load begins and what it happens to measure first."""
    runs = [
        simulate(replace(scenario("pooled", POOLED, 0, IDLE_S + phase_s), duration_s=float(run.seconds)))
        for phase_s in TICK_PHASES_S
    ]
    plan = runs[0].replicas[0].plan
    assert plan is not None
    assert true_share(run.pooled[0].plan) == pytest.approx(true_share_of(plan[batch_bucket(ROWS)]), abs=MOST_GOODPUT_APART)
    real = between(run.pooled, 0, run.seconds)
    tokens = [each.totals.tokens for each in runs]
    assert min(tokens) * (1.0 - MOST_TOKENS_APART) <= real.tokens <= max(tokens) * (1.0 + MOST_TOKENS_APART)
    shares = [share_of_best(each.totals) for each in runs]
    assert min(shares) - MOST_LOSS_APART <= share_of_best(real) <= max(shares) + MOST_LOSS_APART


def scenario(tag: str, replicas: int, seed: int, idle_s: float = IDLE_S) -> Scenario:
    return steady_group(tag, replicas, SETTINGS, idle_s=idle_s, seed=seed, track_regret=True)


def known_cells(status: FleetStatus, key: GroupKey) -> frozenset[tuple[int, int]]:
    """Batch bucket and K of everything that the group has measured."""
    (group,) = (group for group in status.groups if group.group_id == key.group_id)
    return frozenset((batch_bucket(cell.first_batch_size), cell.num_speculative_tokens) for cell in group.cells)


def true_share(plan: Table) -> float:
    """What the plan's K truly gives at the batch in use, over what the best K does."""
    return true_share_of(ks_by_batch(plan, PROFILE.limits.max_num_seqs)[ROWS])


def true_share_of(length: int) -> float:
    """The same of K = `length`."""
    return NOMINAL.goodput(ROWS, length) / NOMINAL.goodput(ROWS, NOMINAL.best_k(ROWS))


def measured_each(courses: Sequence[ReplicaCourse]) -> float:
    """Measurements that a replica was asked for."""
    return sum(len(course.segments) for course in courses) / len(courses)
