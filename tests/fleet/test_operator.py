"""What an operator does to a fleet under load on a real Ray cluster: a canary that loses, one that wins, and a freeze.

The frozen fleet is one that learns; its load moves and a replica joins. The canaries stand against off.

Real agents, clients and records, the real policy actor and its journal; only the engines are simulated. Compared are plans, leases
and counts of the engines, never the machine's time. One cluster serves all tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

pytest.importorskip("ray")
from nightjar.cluster.api.operations import CANARY, FREEZE, Body
from nightjar.cluster.storage.journal import JournalEntry
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.policy.wire.cause import Code, codes
from nightjar.policy.wire.settings import IssuedSettings, Table
from nightjar.policy.wire.status import CanaryStatus, FleetStatus
from tests.deployments import serving
from tests.fleet.courses import ReplicaCourse
from tests.fleet.fleet_cluster import PATIENCE_S, FleetCluster, fleet_cluster
from tests.fleet.groups import NOMINAL, PROFILE, ROWS, idle, steady_group
from tests.fleet.hosted_engine import Part

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

MORE_ROWS = NOMINAL.crossover_rows // 8
"""Requests in every engine after the load moves from ROWS: another batch bucket, of which nothing has been measured."""
FULL_ROWS = min(2 * NOMINAL.crossover_rows, PROFILE.limits.max_num_seqs)
"""Requests at which drafts cost more than they give."""
LONGEST = f"pin={PROFILE.drafter.arms[-1]}"
REPLICAS = 4
BLOCK_S = 1.0
SHORT_PERIODS: dict[str, object] = {"exchange_period_s": 0.25, "decision_period_s": 0.5, "max_lease_ttl_s": 5.0}
"""A canary settles for three exchanges and a decision; a new policy grants restarts, which a pinned K needs, after one lease."""
SETTINGS: dict[str, object] = {"mode": "auto", "planner": "fleet", "allowed_num_speculative_tokens": list(PROFILE.drafter.arms)}
MOST_STRIDE_S = 1.0
IDLE_S = 1.0
LEARNED_STEPS, FROZEN_STEPS = 120, 150
"""Steps of every engine before the freeze, and while it lasts after the load moved."""
NEWCOMER = "newcomer"


@dataclass(frozen=True, slots=True)
class Frozen:
    """What is looked at. `adopted` are each engine's settings when all ran the frozen ones, by replica."""

    adopted: Mapping[str, int]
    courses: Mapping[str, ReplicaCourse]
    """At the end of the freeze."""
    entries: tuple[JournalEntry, ...]
    measured_after: bool

    def while_frozen(self, replica_id: str) -> tuple[IssuedSettings, ...]:
        """Settings that came into force while it lasted; of a newcomer all."""
        return self.courses[replica_id].adopted[self.adopted.get(replica_id, 0) :]


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a canary, and the mode that every engine ran then, by replica."""

    members: tuple[str, ...]
    """While it was tried."""
    end: CanaryStatus
    last_modes: Mapping[str, str]
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """All that happened on the cluster, one after the other. `began` is the fleet when the first scenario had all its replicas."""

    began: FleetStatus
    head_node_id: str
    worker_node_ids: tuple[str, ...]
    worse: Tried
    better: Tried
    frozen: Frozen


@pytest.fixture(scope="module")
def runs() -> Runs:
    """The cluster is gone before the first test looks at what happened on it."""
    with fleet_cluster() as cluster:
        began, better, worse = _canaries_under_load(cluster)
        frozen = _freeze_under_load(cluster)
        return Runs(began, cluster.head_node_id, cluster.worker_node_ids, worse, better, frozen)


@pytest.fixture
def frozen(runs: Runs) -> Frozen:
    return runs.frozen


def _canaries_under_load(cluster: FleetCluster) -> tuple[FleetStatus, Tried, Tried]:
    """The fleet at first, and two canaries of one in four, where drafts cost more than they give.

    Off against the longest K, and that against off.
    """
    parts = [Part(f"tried-{number}", scenario("tried", FULL_ROWS), number, MOST_STRIDE_S) for number in range(REPLICAS)]
    names = [part.replica_id for part in parts]
    cluster.start(parts, SETTINGS | SHORT_PERIODS | {"mode": LONGEST}, mode=LONGEST)
    began = serving.fleet_status()
    cluster.begin()
    cluster.until(lambda courses: all(course.steps_by_k for course in courses.values()), "steps")
    better = _try(cluster, names, tried="off", over=LONGEST, phase="better")
    serving.configure(SETTINGS | SHORT_PERIODS | {"mode": "off"})
    cluster.wait_for_settings(names, "off")
    worse = _try(cluster, names, tried=LONGEST, over="off", phase="rolled back")
    cluster.end()
    return began, better, worse


def _try(cluster: FleetCluster, names: Sequence[str], tried: str, over: str, phase: str) -> Tried:
    """A canary until it has come to that phase, and everybody runs what follows from it."""
    asked: Body = {"mode": tried, "share": 1 / REPLICAS, "block_s": BLOCK_S}
    serving.ask_policy(CANARY, asked)
    members = serving.until(_members_that_try, within_s=PATIENCE_S, what="a canary past its baseline")
    serving.until(lambda: _canary().phase == phase, within_s=PATIENCE_S, what=f"a canary that is {phase}")
    end = _canary()
    wanted = {name: tried if name in end.members else over for name in names}
    serving.until(lambda: _modes(names) == wanted, within_s=PATIENCE_S, what=f"{wanted}")
    causes = tuple(cause for entry in cluster.journal() for cause in entry.causes)
    serving.ask_policy(CANARY, {"do": "end"})
    return Tried(members, end, wanted, causes)


def _modes(names: Sequence[str]) -> dict[str, str]:
    """That engines run, by replica."""
    replicas = serving.fleet_status().replicas
    return {
        replica.replica_id: str(replica.mode) for replica in replicas if replica.replica_id in names and replica.settings_confirmed
    }


def _canary() -> CanaryStatus:
    canary = serving.fleet_status().policy.canary
    assert canary is not None
    return canary


def _members_that_try() -> tuple[str, ...]:
    canary = _canary()
    assert canary.phase in {"baseline", "trial", "better", "rolled back"}, canary.words
    return canary.members if canary.phase == "trial" else ()


def _freeze_under_load(cluster: FleetCluster) -> Frozen:
    parts = [Part(f"frozen-{number}", scenario("frozen"), number, MOST_STRIDE_S) for number in range(REPLICAS)]
    names = [part.replica_id for part in parts]
    cluster.start(parts, SETTINGS)
    cluster.begin()

    def steps(courses: Mapping[str, ReplicaCourse], name: str) -> int:
        return sum(courses[name].steps_by_k.values())

    cluster.until(lambda courses: all(steps(courses, name) >= LEARNED_STEPS for name in names), "steps before the freeze")
    serving.ask_policy(FREEZE, {"frozen": True, "reason": "test"})
    serving.until(_runs_no_segment, within_s=PATIENCE_S, what="measurements taken back")
    cluster.wait_for_settings(names)
    before = cluster.courses()
    for name in names:
        cluster.set_users(name, MORE_ROWS * REPLICAS)
    cluster.join(Part(NEWCOMER, idle(parts[0].scenario), 0, MOST_STRIDE_S))
    cluster.set_users(NEWCOMER, MORE_ROWS)

    def have_worked_on(courses: Mapping[str, ReplicaCourse]) -> bool:
        return all(steps(courses, name) >= FROZEN_STEPS + (steps(before, name) if name in before else 0) for name in courses)

    cluster.until(have_worked_on, "steps while frozen")
    courses, entries = cluster.courses(), tuple(cluster.journal())
    serving.ask_policy(FREEZE, {"frozen": False})
    serving.until(lambda: not _runs_no_segment(), within_s=PATIENCE_S, what="a measurement after the freeze")
    cluster.end()
    return Frozen({name: len(before[name].adopted) for name in names}, courses, entries, measured_after=True)


def _runs_no_segment() -> bool:
    status = serving.fleet_status()
    return not any(Code.MEASURING in codes(replica.causes) for replica in status.replicas)


def test_one_policy_actor_on_the_head_serves_agents_of_every_node_that_all_wanted_to_create_it(runs: Runs) -> None:
    assert runs.began.policy.node_id == runs.head_node_id
    assert runs.began.policy.incarnation == 1
    assert len(runs.began.replicas) == REPLICAS
    assert {replica.node_id for replica in runs.began.replicas} == set(runs.worker_node_ids)


def test_a_canary_that_is_worse_goes_back_by_itself_under_load(runs: Runs) -> None:
    tried = runs.worse
    assert len(tried.members) == 1
    assert tried.end.members == ()
    assert tried.end.high is not None
    assert tried.end.high < 1.0
    assert set(tried.last_modes.values()) == {"off"}
    assert any("rolled back" in cause and "goodput" in cause for cause in tried.causes)


def test_a_canary_that_is_better_stays_under_load_and_waits_for_the_operator(runs: Runs) -> None:
    tried = runs.better
    assert tried.end.members == tried.members
    assert tried.end.low is not None
    assert tried.end.low > 1.0
    assert [name for name, mode in tried.last_modes.items() if mode == "off"] == list(tried.members)
    assert any("better, goodput" in cause for cause in tried.causes)


def test_no_plan_changes_and_nothing_is_measured_while_frozen_though_the_load_moves(frozen: Frozen) -> None:
    plans = {table.rows for course in frozen.courses.values() for table in tables(course.adopted[-1:])}
    assert len(plans) == 1
    for name in frozen.courses:
        for table in tables(frozen.while_frozen(name)):
            assert ({table.rows}, table.segments) == (plans, ())


def test_a_newcomer_has_the_frozen_plan_before_its_first_request(frozen: Frozen) -> None:
    newcomer = frozen.courses[NEWCOMER]
    assert newcomer.adopted_before_first_request
    (plan,) = {table.rows for table in tables(newcomer.adopted)}
    assert plan == tables(frozen.courses["frozen-0"].adopted[-1:])[0].rows


def test_no_lease_is_granted_while_frozen_and_the_journal_says_since_when(frozen: Frozen) -> None:
    causes = [cause for entry in frozen.entries for cause in entry.causes]
    assert "frozen by hand (test): no new plan, measurement or lease" in causes
    for name in frozen.courses:
        assert not any(issued.settings.restarts.leases for issued in frozen.while_frozen(name))


def test_the_fleet_measures_again_when_the_freeze_ends(frozen: Frozen) -> None:
    assert frozen.measured_after


def tables(adopted: tuple[IssuedSettings, ...]) -> list[Table]:
    return [issued.settings.plan for issued in adopted if isinstance(issued.settings.plan, Table)]


def scenario(tag: str, rows: int = ROWS) -> Scenario:
    return steady_group(tag, REPLICAS, SETTINGS, idle_s=IDLE_S, rows=rows)
