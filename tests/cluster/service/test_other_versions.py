"""Releases beside each other, in virtual time: replicas and actors of two protocol versions, and two releases of one protocol.

INV-6 over releases: however an older and a newer policy come and go, a node bears one reload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgpack
import pytest

from nightjar.cluster.service.other_versions import LOOK_PERIOD_S, LOOK_TIMEOUT_S
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.protocol import MemoryJournal, Replica, running_service, settled
from tests.cluster.service.reloading_node import LEASE_S, watched

pytestmark = pytest.mark.looptime

OLD, NEW = PROTOCOL_VERSION - 1, PROTOCOL_VERSION
LOOK_S = LOOK_PERIOD_S + LOOK_TIMEOUT_S


@pytest.mark.heavy
@pytest.mark.parametrize("alone_s", [8.3, 9.1, 10.2, 11.7, 13.0])
async def test_an_old_policy_grants_nothing_beside_a_newer_one_so_that_the_node_never_bears_two_reloads(alone_s: float) -> None:
    journal = MemoryJournal()
    async with watched() as cluster, cluster.actor(OLD, journal):
        await asyncio.sleep(alone_s)
        assert cluster.granted[OLD], "alone it grants"
        came_s = asyncio.get_running_loop().time()
        async with cluster.actor(NEW):
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
    async with watched() as cluster, cluster.actor(NEW):
        await asyncio.sleep(15.0)
        before = len(cluster.granted[NEW])
        assert before
        async with cluster.actor(OLD):
            await asyncio.sleep(40.0)
            assert cluster.granted[OLD] == []
            assert len(cluster.granted[NEW]) > before
            assert cluster.most_at_once == 1


async def test_a_control_store_that_cannot_be_asked_leaves_what_was_seen_and_who_starts_then_waits_as_beside_an_older() -> None:
    async with watched() as cluster:
        cluster.names |= {"nightjar-policy-vX", f"somebody-v{NEW}", f"nightjar-policy-v{OLD}"}
        async with cluster.actor(OLD):
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
