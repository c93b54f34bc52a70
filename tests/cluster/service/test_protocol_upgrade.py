"""From protocol 2 to 3: what the last release of the old protocol left behind (tests/cluster/releases), read by this one."""

from __future__ import annotations

import pytest

from nightjar.cluster.storage.checkpoint import seal
from nightjar.cluster.storage.learned_file import parse_learned_file
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply, Table
from tests.cluster.protocol import MemoryJournal, MemoryStore, Replica, running_service, settled
from tests.cluster.record_release import RELEASES, read
from tests.policy.engines import KEY

pytestmark = pytest.mark.looptime

OLD = PROTOCOL_VERSION - 1
OLD_INCARNATION = 2


def old_store() -> MemoryStore:
    return MemoryStore(read(OLD, "checkpoint.json") | read(OLD, "checkpoint_learned.json"))


async def test_inv_5_a_policy_begins_above_the_incarnation_that_the_protocol_before_stored_and_leaves_that_where_it_is() -> None:
    store = old_store()
    before = dict(store.values)
    async with running_service(store) as service:
        assert service.incarnation == OLD_INCARNATION + 1
        replica = Replica(group=KEY)
        await settled(service, replica)
        assert str(replica.version) == "3.1"
    assert {key: value for key, value in store.values.items() if key in before} == before
    assert f"policy-v{PROTOCOL_VERSION}:incarnation" in store.values


@pytest.mark.parametrize(("own", "expected"), [(1, 3), (9, 10)])
async def test_inv_5_forth_and_back_and_forth_again_the_incarnation_is_above_both_protocols(own: int, expected: int) -> None:
    store = old_store()
    store.values[f"policy-v{PROTOCOL_VERSION}:incarnation"] = seal(own)
    async with running_service(store) as service:
        assert service.incarnation == expected


async def test_settings_overrides_and_what_was_learned_go_from_one_protocol_to_the_next() -> None:
    journal = MemoryJournal()
    async with running_service(old_store(), journal) as service:
        free, pinned = Replica("r1", group=KEY), Replica("r2", group=KEY)
        await settled(service, free, pinned)
        status = service.status()
        assert str(status.policy.mode) == "auto"
        assert [(override.name, str(override.mode), override.reason) for override in status.overrides] == [
            ("r2", "pin=1", "a slow card")
        ]
        assert free.settings is not None
        assert free.settings.dwell_steps == 7
        assert isinstance(free.settings.plan, Table)
        assert free.settings.plan.rows[0].num_speculative_tokens == 3, "before it ran a step"
        (group,) = status.groups
        assert {cell.num_speculative_tokens for cell in group.cells} == {0, 1, 3, 5}
        assert str(pinned.mode) == "pin=1"
        assert service.learned_file().about.fleet_id == parse_learned_file(old_learned()).about.fleet_id
    assert [cause for cause in journal.causes if cause.startswith("stored")] == []


async def test_an_override_that_was_taken_back_does_not_come_again_from_the_protocol_before() -> None:
    store = old_store()
    async with running_service(store) as service:
        await settled(service, Replica("r2", group=KEY))
        await service.set_mode({"mode": "default", "scope": "replica", "name": "r2"})
    async with running_service(store) as service:
        assert service.status().overrides == ()


async def test_a_file_that_the_release_before_exported_is_imported() -> None:
    async with running_service() as service:
        answer = await service.import_learned(parse_learned_file(old_learned()))
        assert [group["group_id"] for group in answer["groups"]] == [KEY.group_id]


async def test_old_and_new_replicas_of_one_cluster_keep_to_their_own_policies() -> None:
    wire = read(OLD, "wire.json")
    assert LoadReport.from_wire(wire["report"]).protocol_version == OLD
    async with running_service() as service:
        await settled(service, Replica("new"))
        reply = await service.exchange(wire["report"])
        assert reply.issued is None
        assert f"protocol_version: {OLD} of replica r1, this policy speaks {PROTOCOL_VERSION}" in reply.refused
        assert [replica.replica_id for replica in service.status().replicas] == ["new"]
    assert ExchangeReply.from_wire(wire["reply"]).protocol_version == OLD, "nothing else of it is looked at"


def old_learned() -> bytes:
    return (RELEASES / f"protocol_{OLD}" / "learned.json").read_bytes()
