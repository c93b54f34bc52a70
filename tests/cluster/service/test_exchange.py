"""The exchange: one parked call that carries the report up and the settings down, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy import issuer
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import MAX_RECORD_BYTES
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import SettingsVersion
from tests.cluster.protocol import MemoryJournal, MemoryStore, Replica, running_service, settled

pytestmark = pytest.mark.looptime


@pytest.mark.usefixtures("each_way")
async def test_a_new_replica_gets_settings_at_the_next_decision() -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        assert str(replica.version) == "1.1"
        assert replica.mode == Mode(kind="shadow")


@pytest.mark.usefixtures("each_way")
async def test_a_call_without_news_is_answered_after_the_period_and_confirms() -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        before_s = asyncio.get_running_loop().time()
        reply = await replica.exchange(service)
        assert asyncio.get_running_loop().time() - before_s == pytest.approx(0.5)
        assert (reply.issued, reply.refused) == (None, "")


@pytest.mark.usefixtures("each_way")
async def test_a_parked_call_wakes_when_the_mode_changes() -> None:
    async with running_service() as service:
        await service.configure({"exchange_period_s": 10.0, "replica_timeout_s": 3600.0})
        replica = Replica()
        await settled(service, replica, rounds=2)
        parked = asyncio.create_task(replica.exchange(service))
        await asyncio.sleep(0.1)
        before_s = asyncio.get_running_loop().time()
        await service.set_mode({"mode": "off"})
        await parked
        assert replica.mode == Mode(kind="off")
        assert asyncio.get_running_loop().time() - before_s < 0.01


@pytest.mark.usefixtures("each_way")
async def test_only_the_replica_whose_settings_changed_is_woken() -> None:
    async with running_service() as service:
        await service.configure({"exchange_period_s": 10.0, "replica_timeout_s": 3600.0})
        calm, hit = Replica("calm"), Replica("hit")
        await settled(service, calm, hit, rounds=2)
        calls = [asyncio.create_task(replica.exchange(service)) for replica in (calm, hit)]
        await asyncio.sleep(0.1)
        await service.set_mode({"mode": "pin=2", "scope": "replica", "name": "hit"})
        await asyncio.sleep(5.0)
        assert [call.done() for call in calls] == [False, True]
        await asyncio.gather(*calls)


async def test_the_sequence_does_not_rise_without_a_change() -> None:
    async with running_service() as service:
        await service.configure({"mode": "pin=3"})
        replica = Replica()
        await settled(service, replica)
        version = replica.version
        for _ in range(20):
            assert (await replica.exchange(service)).issued is None
        await service.configure({"mode": "pin=3", "switch_margin": 0.1})
        assert (await replica.exchange(service)).issued is None
        assert replica.version == version


@pytest.mark.usefixtures("each_way")
async def test_a_newer_call_releases_the_older_one_of_the_same_replica() -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        first = asyncio.create_task(service.exchange(replica.report().to_wire()))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(service.exchange(replica.report().to_wire()))
        await asyncio.sleep(0.01)
        assert (first.done(), second.done()) == (True, False)
        await second


@pytest.mark.usefixtures("each_way")
async def test_a_call_that_took_the_place_of_an_older_one_is_woken_by_news() -> None:
    async with running_service() as service:
        await service.configure({"exchange_period_s": 10.0, "replica_timeout_s": 3600.0})
        replica = Replica()
        await settled(service, replica, rounds=2)
        calls = []
        for _ in range(2):
            calls.append(asyncio.create_task(service.exchange(replica.report().to_wire())))
            await asyncio.sleep(0.1)
        await service.set_mode({"mode": "off"})
        await asyncio.sleep(0.1)
        assert [call.done() for call in calls] == [True, True]
        issued = calls[1].result().issued
        assert issued is not None
        assert issued.settings.mode == Mode(kind="off")


@pytest.mark.usefixtures("each_way")
async def test_a_lost_reply_is_sent_again_once_a_period() -> None:
    async with running_service() as service:
        replica = Replica()
        while (lost := await service.exchange(replica.report().to_wire())).issued is None:
            pass
        before_s = asyncio.get_running_loop().time()
        assert (await service.exchange(replica.report().to_wire())).issued == lost.issued
        assert asyncio.get_running_loop().time() - before_s == pytest.approx(0.5)


@pytest.mark.usefixtures("each_way")
async def test_lost_doubled_and_reordered_calls_lose_no_counts() -> None:
    shuffle = random.Random(7)
    async with running_service() as faulty, running_service() as clean:
        for service in (faulty, clean):
            await service.configure({"evidence_half_life_steps": 1e7})
        replica = Replica()
        held: list[bytes] = []
        for _ in range(40):
            replica.run(20)
            payload = replica.report().to_wire()
            held += [payload] * shuffle.choice((0, 1, 1, 2))
            shuffle.shuffle(held)
            calls = [clean.exchange(payload), *(faulty.exchange(held.pop()) for _ in range(min(len(held), 2)))]
            await asyncio.gather(*calls)
        await faulty.exchange(replica.report().to_wire())
        await asyncio.sleep(2.0)
        counted = [_learned_steps(service) for service in (faulty, clean)]
        assert counted[0] == pytest.approx(counted[1], rel=0.05)


def _learned_steps(service: PolicyService) -> float:
    groups = service.status().groups
    assert len(groups) == 1
    return sum(cell.clean_steps for cell in groups[0].cells)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (b"", "bytes"),
        (b"\xff" * 40, "LoadReport"),
        (b"\x91" * 5000, "LoadReport"),
        (b"x" * (MAX_RECORD_BYTES + 1), "allowed are at most"),
        (b"\x80", "replica_id"),
        (Replica().report().model_copy(update={"report_number": -1}).to_wire(), "report_number"),
        (Replica().report().to_wire()[:-3], "LoadReport"),
    ],
)
async def test_a_malformed_or_oversized_report_is_refused_and_changes_nothing(payload: bytes, named: str) -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        before = service.status()
        reply = await service.exchange(payload)
        assert named in reply.refused
        after = service.status()
        assert after.replicas == before.replicas
        assert after.policy.refused_reports == before.policy.refused_reports + 1
        assert after.policy.last_refusal == reply.refused


async def test_what_is_no_bytes_at_all_is_answered_too() -> None:
    async with running_service() as service:
        reply = await service.exchange(None)  # type: ignore[arg-type]
        assert reply.refused


@pytest.mark.usefixtures("each_way")
async def test_absurd_counts_are_left_out_and_named_and_the_replica_keeps_its_settings() -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        replica.run(20)
        assert (await replica.exchange(service)).refused == ""
        replica.run(10**9)
        reply = await replica.exchange(service)
        assert "r1" in reply.refused
        assert service.status().policy.last_refusal == reply.refused
        assert await service.set_mode({"mode": "off"})
        await settled(service, replica, rounds=2)
        assert replica.mode == Mode(kind="off")


@pytest.mark.usefixtures("each_way")
async def test_an_implausible_settings_version_is_refused_and_raises_no_incarnation() -> None:
    async with running_service() as service:
        liar = Replica()
        await settled(service, liar)
        for version in ((1 << 52, 1), (1, 1 << 52)):
            reply = await service.exchange(_naming(liar, *version))
            assert "implausible" in reply.refused
        await asyncio.sleep(3.0)
        assert service.incarnation == 1


@pytest.mark.usefixtures("each_way")
async def test_one_replica_raises_the_incarnation_once_and_not_with_every_report() -> None:
    async with running_service() as service:
        liar, honest = Replica("liar"), Replica("honest")
        await settled(service, liar, honest)
        for incarnation in range(10, 100, 10):
            await service.exchange(_naming(liar, incarnation, 1))
            await asyncio.sleep(2.0)
            await honest.exchange(service)
        assert service.incarnation == 11
        assert "never issued" in service.status().policy.last_refusal


async def test_a_full_fleet_refuses_newcomers_and_serves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "MAX_REPLICAS", 3)
    async with running_service() as service:
        members = [Replica(f"r{number}") for number in range(3)]
        await settled(service, *members)
        reply = await Replica("r9").exchange(service)
        assert "at most 3" in reply.refused
        assert (await members[0].exchange(service)).refused == ""


@pytest.mark.usefixtures("each_way")
async def test_memory_is_bounded_by_live_replicas() -> None:
    async with running_service() as service:
        for number in range(40):
            await asyncio.gather(*(Replica(f"r{number}-{one}").exchange(service) for one in range(5)))
        await asyncio.sleep(40.0)
        assert service.status().replicas == ()
        assert service._mailbox.slots == {}


@pytest.mark.usefixtures("each_way")
async def test_an_exchange_never_raises_even_where_the_fleet_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        monkeypatch.setattr("nightjar.policy.controller.observe", broken)
        reply = await replica.exchange(service)
        assert "ZeroDivisionError" in reply.refused


@pytest.mark.usefixtures("each_way")
async def test_a_tick_that_fails_is_journaled_and_leaves_the_settings_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await settled(service, replica)
        with monkeypatch.context() as patch:
            patch.setattr("nightjar.policy.controller.decide", broken)
            assert (await replica.exchange(service)).refused == ""
            await asyncio.sleep(3.0)
        assert "ZeroDivisionError: by zero" in {entry.error for entry in journal.entries}
        await service.set_mode({"mode": "off"})
        await settled(service, replica, rounds=2)
        assert replica.mode == Mode(kind="off")


@pytest.mark.parametrize(
    "broken",
    ["policy.controller.learned", "cluster.service.policy_service.entry_of", "cluster.service.policy_service.random.Random"],
)
async def test_no_defect_in_a_tick_ends_the_deciding(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        with monkeypatch.context() as patch:
            patch.setattr(f"nightjar.{broken}", fail)
            await service.set_mode({"mode": "pin=1"})
            await asyncio.sleep(3.0)
        await service.set_mode({"mode": "off"})
        await settled(service, replica, rounds=2)
        assert replica.mode == Mode(kind="off")


@pytest.mark.usefixtures("each_way")
async def test_a_store_that_hangs_delays_no_exchange_and_no_decision() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        replica = Replica()
        await settled(service, replica)
        store.delay_s, store.is_reachable = 1e6, False
        configuring = asyncio.create_task(service.configure({"mode": "off"}))
        await settled(service, replica, rounds=2)
        assert replica.mode == Mode(kind="off")
        configuring.cancel()


async def test_without_a_report_for_ten_minutes_the_actor_retires_once() -> None:
    retired: list[float] = []
    async with running_service(retire=lambda: retired.append(asyncio.get_running_loop().time())) as service:
        await Replica().exchange(service)
        await asyncio.sleep(3600.0)
        assert retired == [pytest.approx(600.0, abs=2.0)]


def _naming(replica: Replica, incarnation: int, sequence: int) -> bytes:
    report: LoadReport = replica.report()
    version = SettingsVersion(incarnation=incarnation, sequence=sequence)
    return report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"settings_version": version})}).to_wire()
