"""Restarts as replicas and policy play them together: the budget holds on any way (INV-4, INV-5, INV-6), and all get their turn."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.report import Counters, DrafterState, LoadReport
from nightjar.policy.wire.settings import IssuedSettings
from tests.policy.restarting import ORDERED, Policy, RestartingReplica

REPLICAS = 10
BUDGET = 2


def exchange(policy: Policy, replicas: list[RestartingReplica], now_s: float) -> None:
    """A perfect second: everybody works, reports and adopts."""
    for replica in replicas:
        replica.run_until(now_s)
        policy.take(replica.report(), now_s)
    told = policy.decide(now_s)
    for replica in replicas:
        replica.adopt(told[replica.replica_id])


def test_all_replicas_restart_two_at_a_time_and_then_run() -> None:
    policy, replicas = Policy(), [RestartingReplica(f"r{number}") for number in range(REPLICAS)]
    most = 0
    for second in range(1, 60):
        exchange(policy, replicas, float(second))
        most = max(most, sum(replica.catches_up for replica in replicas))
    assert most == BUDGET
    assert {replica.life.state for replica in replicas} == {DrafterState.ACTIVE}
    assert {replica.life.restarts for replica in replicas} == {1}
    assert next(iter(policy.state.groups.values())).restarts.open_leases == ()


def test_inv_6_replicas_that_serve_plainly_add_nothing_to_the_budget_of_the_others() -> None:
    policy, steered = Policy(), [RestartingReplica("a"), RestartingReplica("b")]
    for number in range(REPLICAS - len(steered)):
        plain = RestartingReplica(f"plain-{number}").report()
        policy.take(plain.model_copy(update={"serving_plainly": "engine_kwargs set scheduler_cls themselves"}), 1.0)
    exchange(policy, steered, 1.0)
    assert sum(len(group.restarts.open_leases) for group in policy.state.groups.values()) == 1


def test_inv_6_an_engine_that_failed_open_is_granted_no_lease_and_holds_up_no_other() -> None:
    policy, failed, other = Policy(), RestartingReplica("a"), RestartingReplica("b")
    failed.run_until(1.0)
    report = failed.report()
    policy.take(report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"fault": "KeyError"})}), 1.0)
    exchange(policy, [other], 1.0)
    (group,) = policy.state.groups.values()
    assert [held.replica_id for held in group.restarts.open_leases] == ["b"]


def test_status_says_who_holds_a_lease_and_who_waits_for_one() -> None:
    policy, replicas = Policy(), [RestartingReplica(f"r{number}") for number in range(3)]
    exchange(policy, replicas, 1.0)
    for replica in replicas:
        policy.take(replica.report(), 1.1)
    policy.decide(1.1)
    (group,), _ = fleet_status(policy.state, {}, 1.1)
    assert group.reason.endswith("; restarts: 1 of 3 granted")


def test_inv_6_a_new_incarnation_grants_nothing_for_one_maximum_time_to_live() -> None:
    policy, replicas = Policy(), [RestartingReplica("a")]
    policy.die_and_come_back(100.0)
    for second in range(100, 113):
        exchange(policy, replicas, float(second))
        assert replicas[0].life.state is DrafterState.DORMANT or second >= 112
    exchange(policy, replicas, 113.0)
    assert replicas[0].catches_up


def test_inv_6_the_lease_of_a_replica_that_fell_silent_stays_in_flight_until_its_end() -> None:
    policy, silent, other = Policy(), RestartingReplica("a"), RestartingReplica("b")
    exchange(policy, [silent], 1.0)
    for second in (2, 3, 4, 5, 6):
        exchange(policy, [other], float(second))
        assert not other.catches_up
    for second in range(7, 16):
        exchange(policy, [other], float(second))
    assert other.life.restarts == 1


def test_a_dead_replicas_wish_is_granted_once_and_holds_nobody_up_again() -> None:
    policy, dead, others = Policy(), RestartingReplica("a"), [RestartingReplica("b"), RestartingReplica("c")]
    exchange(policy, [dead], 1.0)
    granted = set()
    for second in range(2, 30):
        exchange(policy, others, float(second))
        (group,) = policy.state.groups.values()
        granted |= {held for held in group.restarts.open_leases if held.replica_id == "a"}
    assert len(granted) == 1
    assert [other.life.restarts for other in others] == [1, 1]


def test_a_replica_whose_engine_was_replaced_gets_no_second_lease_beside_the_first() -> None:
    policy, old = Policy(), RestartingReplica("a")
    exchange(policy, [old], 1.0)
    new = RestartingReplica("a", engine_id="engine-2", now_s=1.0)
    exchange(policy, [new], 2.0)
    assert not new.catches_up
    for second in range(3, 16):
        exchange(policy, [new], float(second))
    assert new.life.restarts == 1


def test_two_failed_probes_freeze_the_groups_restarts() -> None:
    policy, replicas = Policy(), [RestartingReplica(f"r{number}") for number in range(REPLICAS)]
    for number in (0, 1):
        policy.take(replicas[number].report(), 0.4)
        report = replicas[number].report()
        counters = Counters(engine_id="engine-1", step_count=1, restarts=1, failed_probes=1)
        policy.take(report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"counters": counters})}), 0.5)
    exchange(policy, replicas[2:], 1.0)
    exchange(policy, replicas[2:], 2.0)
    assert not any(replica.catches_up for replica in replicas)
    issued = policy.decide(2.0)
    assert issued["r5"].settings.restarts.micro_restart_tokens == 0
    for second in range(3, 305):
        exchange(policy, replicas[2:], float(second))
    assert any(replica.life.restarts for replica in replicas)


class LossyFleet(RuleBasedStateMachine):
    """Reports and settings are lost, doubled and reordered, replicas fall silent, the policy dies; any order of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.policy = Policy()
        self.replicas = [RestartingReplica(f"r{number}", node_id=f"n{number % 3}") for number in range(REPLICAS)]
        self.reports: list[LoadReport] = []
        self.settings: list[tuple[str, IssuedSettings]] = []

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 9.0]))
    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 0.5
            for replica in self.replicas:
                replica.run_until(self.now_s)
            self.the_budget_is_kept()

    @rule()
    def everybody_reports(self) -> None:
        self.reports += [replica.report() for replica in self.replicas]
        del self.reports[:-60]

    @precondition(lambda self: self.reports)
    @rule(picks=st.lists(st.integers(0, 59), min_size=1, max_size=30))
    def some_reports_arrive(self, picks: list[int]) -> None:
        for pick in picks:
            self.policy.take(self.reports[pick % len(self.reports)], self.now_s)

    @rule()
    def the_policy_decides(self) -> None:
        told = self.policy.decide(self.now_s)
        self.settings += list(told.items())
        del self.settings[:-60]

    @precondition(lambda self: self.settings)
    @rule(picks=st.lists(st.integers(0, 59), min_size=1, max_size=30))
    def some_settings_arrive(self, picks: list[int]) -> None:
        by_id = {replica.replica_id: replica for replica in self.replicas}
        for pick in picks:
            replica_id, told = self.settings[pick % len(self.settings)]
            before = by_id[replica_id].steering.settings_version
            by_id[replica_id].adopt(told)
            after = by_id[replica_id].steering.settings_version
            assert after is not None
            assert before is None or before == after or after.is_newer_than(before), "INV-5"

    @rule()
    def a_perfect_second(self) -> None:
        self.now_s += 1.0
        exchange(self.policy, self.replicas, self.now_s)

    @rule()
    def the_policy_dies(self) -> None:
        self.policy.die_and_come_back(self.now_s)

    @rule(index=st.integers(0, REPLICAS - 1))
    def load_was_high_for_a_while(self, index: int) -> None:
        self.replicas[index].fall_behind()

    @rule(index=st.integers(0, REPLICAS - 1))
    def all_requests_are_new(self, index: int) -> None:
        """Those of which the drafter missed something have ended."""
        self.replicas[index].lag = 0

    @rule(index=st.integers(0, REPLICAS - 1), wanted=st.sampled_from([0, 3]))
    def the_plan_changes(self, index: int, wanted: int) -> None:
        self.replicas[index].wanted = wanted

    @invariant()
    def the_budget_is_kept(self) -> None:
        """INV-6: leased restarts in flight never exceed the budget."""
        assert sum(replica.catches_up for replica in self.replicas) <= BUDGET

    @invariant()
    def a_drafter_that_missed_nothing_drafts_at_once(self) -> None:
        """INV-4: such a step waits for nobody's permission."""
        assert not any(replica.held_back for replica in self.replicas)


LossyFleet.TestCase.settings = hypothesis_settings(max_examples=50, stateful_step_count=40, deadline=None)
TestLossyFleet = LossyFleet.TestCase


@pytest.mark.parametrize("offload", ["never", "under_memory_pressure"])
def test_what_is_offloaded_and_when_reaches_the_replica_only_where_allowed(offload: str) -> None:
    policy = Policy(ORDERED.model_copy(update={"draft_offload": offload}))
    policy.take(RestartingReplica("a").report(), 0.0)
    assert (policy.decide(0.0)["a"].settings.offload is not None) is (offload == "under_memory_pressure")
