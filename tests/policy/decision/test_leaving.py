"""What a replica that leaves gives back: its lease, its place in the queue, its node's reload."""

from __future__ import annotations

from dataclasses import dataclass

from nightjar.policy.wire.report import DrafterState, LoadReport
from tests.policy.restarting import ORDERED, Policy, RestartingReplica


@dataclass
class OffloadedReplica(RestartingReplica):
    """Its draft's weights are in host memory: a restart moves them back first."""

    def report(self) -> LoadReport:
        report = super().report()
        wish = report.snapshot.restart_wish
        reload = wish.model_copy(update={"reload": True, "reload_seconds": 1.0}) if wish is not None else None
        changes = {"restart_wish": reload, "drafter_state": DrafterState.OFFLOADED}
        return report.model_copy(update={"snapshot": report.snapshot.model_copy(update=changes)})


def in_flight(policy: Policy) -> set[str]:
    return {held.replica_id for group in policy.state.groups.values() for held in group.restarts.open_leases}


def waiting(policy: Policy) -> set[str]:
    return {replica_id for group in policy.state.groups.values() for replica_id in group.restarts.waiting_since_s}


def test_a_leaver_gives_back_its_lease_at_the_leases_end_and_its_place_in_the_queue_when_it_counts_as_gone() -> None:
    policy = Policy()
    holder, waiter = RestartingReplica("a"), RestartingReplica("b")
    for replica in (holder, waiter):
        replica.run_until(1.0)
        policy.take(replica.report(), 1.0)
    policy.decide(1.0)
    policy.decide(2.0)
    assert (in_flight(policy), waiting(policy)) == ({"a"}, {"b"})
    policy.decide(1.0 + ORDERED.max_lease_ttl_s)
    assert "a" not in in_flight(policy)
    policy.decide(2.0 + ORDERED.replica_timeout_s)
    assert not waiting(policy)
    assert not policy.state.replicas
    policy.decide(60.0 + ORDERED.replica_timeout_s)
    assert not in_flight(policy)


def test_a_node_may_reload_again_after_the_lease_of_a_replica_that_left_it() -> None:
    policy, gone, other = Policy(), OffloadedReplica("a"), OffloadedReplica("b")
    gone.run_until(1.0)
    other.run_until(1.0)
    policy.take(gone.report(), 1.0)
    policy.decide(1.0)
    assert in_flight(policy) == {"a"}
    granted_s = 0.0
    for second in range(2, 40):
        policy.take(other.report(), float(second))
        policy.decide(float(second))
        granted_s = granted_s or ("b" in in_flight(policy)) * float(second)
    assert 2.0 < granted_s <= 1.0 + ORDERED.max_lease_ttl_s + 1.0
