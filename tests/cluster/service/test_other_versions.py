"""Releases beside each other, in virtual time: replicas and actors of two protocol versions, and two releases of one protocol.

INV-6 over releases: however an older and a newer policy come and go, a node bears one reload.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgpack
import pytest

from nightjar.cluster.service.other_versions import ACTOR_NAME_PREFIX, LOOK_PERIOD_S, LOOK_TIMEOUT_S, OtherVersions
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.protocol import EPOCH_S, MemoryJournal, Replica, running_service, settled
from tests.policy.restarting import RestartingReplica

pytestmark = pytest.mark.looptime

OLD, NEW = PROTOCOL_VERSION - 1, PROTOCOL_VERSION
LEASE_S = 6.0
LOOK_S = LOOK_PERIOD_S + LOOK_TIMEOUT_S
SETTINGS = {
    "mode": "auto",
    "planner": "fixed",
    "num_speculative_tokens": 3,
    "max_lease_ttl_s": LEASE_S,
    "max_restart_slowdown": 1.0,
    "exchange_period_s": 0.25,
    "decision_period_s": 0.25,
}


@dataclass
class Cluster:
    """The names of living actors, as Ray's control store tells them, and the leases that were in force together."""

    names: set[str] = field(default_factory=set)
    is_reachable: bool = True
    services: dict[int, PolicyService] = field(default_factory=dict)
    granted: dict[int, list[float]] = field(default_factory=lambda: {OLD: [], NEW: []})
    most_at_once: int = 0

    async def living(self) -> Sequence[str]:
        if not self.is_reachable:
            raise ConnectionError("no control store")
        await asyncio.sleep(0.1)
        return sorted(self.names)

    def lease_ends(self, version: int, now_s: float) -> list[float]:
        service = self.services.get(version)
        groups = service._controller.state.groups.values() if service is not None else ()
        return [lease.ends_at_s for group in groups for lease in group.restarts.open_leases if now_s < lease.ends_at_s]

    async def watch(self) -> None:
        """Every lease that any policy granted counts until its end, also that of a policy which is gone."""
        open_until: dict[int, float] = {}
        while True:
            now_s = EPOCH_S + asyncio.get_running_loop().time()
            for version in (OLD, NEW):
                ends = self.lease_ends(version, now_s)
                if ends and version not in open_until:
                    self.granted[version].append(now_s - EPOCH_S)
                if ends:
                    open_until[version] = max(ends)
                elif version in self.services or now_s >= open_until.get(version, 0.0):
                    open_until.pop(version, None)
            self.most_at_once = max(self.most_at_once, len(open_until))
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def policy(self, version: int, journal: MemoryJournal | None = None) -> AsyncIterator[PolicyService]:
        """An actor of this version and one replica of its own on the node, which wants to reload all the time."""
        name = f"{ACTOR_NAME_PREFIX}{version}"
        self.names.add(name)
        async with running_service(journal=journal, other_versions=OtherVersions(self.living, version)) as service:
            await service.configure(SETTINGS)
            self.services[version] = service
            reloading = asyncio.create_task(reload_for_ever(service, f"replica-{version}"))
            try:
                yield service
            finally:
                reloading.cancel()
                with suppress(asyncio.CancelledError):
                    await reloading
                del self.services[version]
                self.names.discard(name)


async def reload_for_ever(service: PolicyService, replica_id: str) -> None:
    replica = RestartingReplica(replica_id, node_id="the-node", now_s=asyncio.get_running_loop().time())
    while True:
        replica.run_until(asyncio.get_running_loop().time())
        if not replica.lag:
            replica.fall_behind()
        report = replica.report()
        wish = report.snapshot.restart_wish
        if wish is not None:
            reloading = report.snapshot.model_copy(update={"restart_wish": wish.model_copy(update={"reload": True})})
            report = report.model_copy(update={"snapshot": reloading})
        reply = await service.exchange(report.to_wire())
        if reply.issued is not None:
            replica.adopt(reply.issued)


@asynccontextmanager
async def watched() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    watching = asyncio.create_task(cluster.watch())
    yield cluster
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


@pytest.mark.heavy
@pytest.mark.parametrize("alone_s", [8.3, 9.1, 10.2, 11.7, 13.0])
async def test_an_old_policy_grants_nothing_beside_a_newer_one_so_that_the_node_never_bears_two_reloads(alone_s: float) -> None:
    journal = MemoryJournal()
    async with watched() as cluster, cluster.policy(OLD, journal):
        await asyncio.sleep(alone_s)
        assert cluster.granted[OLD], "alone it grants"
        came_s = asyncio.get_running_loop().time()
        async with cluster.policy(NEW):
            await asyncio.sleep(40.0)
            assert [at_s for at_s in cluster.granted[OLD] if at_s > came_s + LOOK_S] == []
            assert min(cluster.granted[NEW]) >= came_s + LEASE_S + LOOK_S
        gone_s = asyncio.get_running_loop().time()
        await asyncio.sleep(40.0)
        assert min(at_s for at_s in cluster.granted[OLD] if at_s > came_s + LOOK_S) >= gone_s + LEASE_S - LOOK_PERIOD_S
        assert cluster.most_at_once == 1
    assert f"the policy of protocol {NEW} is here: this one, of protocol {OLD}, grants no restarts" in journal.causes
    assert (
        f"the policy of protocol {NEW} is gone: this one, of protocol {OLD}, grants no restarts for one lease more"
        in journal.causes
    )


async def test_an_old_policy_that_starts_beside_a_newer_one_grants_nothing_and_the_newer_one_goes_on() -> None:
    async with watched() as cluster, cluster.policy(NEW):
        await asyncio.sleep(15.0)
        before = len(cluster.granted[NEW])
        assert before
        async with cluster.policy(OLD):
            await asyncio.sleep(40.0)
            assert cluster.granted[OLD] == []
            assert len(cluster.granted[NEW]) > before
            assert cluster.most_at_once == 1


async def test_a_control_store_that_cannot_be_asked_leaves_what_was_seen_and_who_starts_then_waits_as_beside_an_older() -> None:
    async with watched() as cluster:
        cluster.names |= {"nightjar-policy-vX", f"somebody-v{NEW}", f"nightjar-policy-v{OLD}"}
        async with cluster.policy(OLD):
            await asyncio.sleep(LEASE_S + 3.0)
            assert cluster.granted[OLD]


def report_of_protocol(version: int) -> bytes:
    return Replica().report().model_copy(update={"protocol_version": version}).to_wire()


@pytest.mark.parametrize("version", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 7])
async def test_a_report_of_another_protocol_is_refused_in_words_counts_nothing_and_shows_in_status(version: int) -> None:
    async with running_service() as service:
        await settled(service, Replica("mine"))
        reply = await service.exchange(report_of_protocol(version))
        assert reply.issued is None
        assert f"protocol_version: {version} of replica r1, this policy speaks {PROTOCOL_VERSION}" in reply.refused
        status = service.status()
        assert [replica.replica_id for replica in status.replicas] == ["mine"]
        assert status.policy.refused_reports == 1
        assert "protocol_version" in status.policy.last_refusal


def of_the_neighbouring_release(payload: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    """A record as a release of the same protocol would write it."""
    plain = msgpack.unpackb(payload)
    change(plain)
    packed: bytes = msgpack.packb(plain)
    return packed


def with_fields_of_tomorrow(plain: dict[str, object]) -> None:
    for value in plain.values():
        if isinstance(value, dict):
            with_fields_of_tomorrow(value)
    plain["invented_later"] = {"a": [1, 2]}


def with_what_is_needed_alone(plain: dict[str, object]) -> None:
    needed = {name for name, described in LoadReport.model_fields.items() if described.is_required()}
    for name in plain.keys() - needed - {"application"}:
        del plain[name]


@pytest.mark.parametrize("change", [with_fields_of_tomorrow, with_what_is_needed_alone])
async def test_releases_of_one_protocol_understand_each_other_in_both_directions(
    change: Callable[[dict[str, object]], None],
) -> None:
    async with running_service() as service:
        await service.configure({"mode": "pin=2"})
        replica = Replica()
        for _ in range(4):
            payload = of_the_neighbouring_release(replica.report().to_wire(), change)
            answer = await service.exchange(payload)
            assert answer.refused == ""
            replica.apply(ExchangeReply.from_wire(of_the_neighbouring_release(answer.to_wire(), with_fields_of_tomorrow)))
        assert str(replica.mode) == "pin=2"
        (shown,) = service.status().replicas
        assert shown.settings_confirmed
