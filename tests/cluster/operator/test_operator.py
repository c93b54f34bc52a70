"""What an operator does to the policy, and what a restarted policy still knows of it, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.operator import overrides
from nightjar.cluster.storage.checkpoint import unseal
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Local
from tests.cluster.protocol import EPOCH_S, MemoryJournal, MemoryStore, Replica, refusal, running_service, settled
from tests.cluster.seeds import some_file

pytestmark = pytest.mark.looptime


def plan_kind(replica: Replica) -> str:
    assert replica.settings is not None
    return replica.settings.plan.kind


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dwel_steps": 4}, "dwel_steps: no such setting (value 4); did you mean dwell_steps?"),
        ({"dwell_steps": -1}, "dwell_steps"),
        ({"mode": "fast"}, "mode"),
        ({"planner": "schedule"}, "num_speculative_tokens_per_batch_size"),
        ({"exchange_period_s": float("nan")}, "exchange_period_s"),
        ({1: 2}, "1"),
        ("auto", "no mapping"),
        (None, "no mapping"),
    ],
)
async def test_wrong_settings_keep_the_old_ones_and_name_the_field(values: object, named: str) -> None:
    async with running_service() as service:
        await service.configure({"mode": "pin=2"})
        error = await refusal(service.configure(values))  # type: ignore[arg-type]
        assert named in error
        assert service.status().policy.settings_error == error
        assert str(service.status().policy.mode) == "pin=2"
        await service.configure({"mode": "auto"})
        assert service.status().policy.settings_error == ""


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({}, "mode: missing"),
        ({"mode": "fast"}, "mode 'fast' is none of auto, shadow, off, pin=K"),
        ({"mode": 3}, "mode '3' is none of"),
        ({"mode": "pin=9"}, "at most pin=5"),
        ({"mode": "off", "scope": "planet"}, "scope"),
        ({"mode": "off", "scope": "replica"}, "name"),
        ({"mode": "off", "name": "r1"}, "name"),
        ({"mode": "off", "scope": "replica", "name": "r2"}, "no replica 'r2' reports now; known are r1"),
        ({"mode": "off", "scope": "application", "name": "chta"}, "known are chat"),
        ({"mode": "off", "for_s": 0}, "for_s"),
        ({"mode": "off", "for_s": "soon"}, "for_s"),
        ({"mode": "off", "for": 10}, "for"),
        ({"mode": "off", "reason": "x" * 5000}, "reason"),
        ({"mode": "auto", "max_step_ms": 0}, "max_step_ms"),
        ({"mode": "pin=2", "max_step_ms": 40}, "max_step_ms: 40 with mode pin=2, which plans nothing; allowed are auto and shadow"),
        ({"mode": "default", "max_step_ms": 40}, "max_step_ms: 40 with mode default"),
        ({"mode": "default", "for_s": 1800}, "for_s: 1800 with mode default, which takes an override back for good; leave it out"),
        ({"mode": "off", "objective": "throughput"}, "objective: throughput with mode off, which plans nothing"),
        ({"mode": "auto", "objective": "speed"}, "objective: Input should be 'latency' or 'throughput'"),
        (
            {"mode": "off", "planner": "nightjar"},
            "planner: nightjar with mode off, which plans nothing; allowed are auto and shadow",
        ),
        ({"mode": "auto", "planner": "nightjar", "scope": "replica", "name": "r1"}, "planner: nightjar for one replica"),
        ({"mode": "auto", "planner": "paper"}, "planner"),
        ({"mode": "auto", "planner": "schedule"}, "planner: schedule needs num_speculative_tokens_per_batch_size"),
        ({"mode": "auto", "learned": "burn"}, "learned"),
        ({"mode": "default", "learned": "reset"}, "learned: reset with fleet default"),
        ({"mode": "auto", "learned": "reset", "scope": "replica", "name": "r1"}, "learned: reset with replica r1 auto"),
        ("off", "off"),
    ],
)
async def test_a_wrong_mode_request_is_answered_in_words_and_changes_nothing(request_: object, named: str) -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(service, replica)
        assert named in await refusal(service.set_mode(request_))  # type: ignore[arg-type]
        assert service.status().overrides == ()
        assert (await replica.exchange(service)).issued is None


async def test_the_most_specific_override_wins_and_default_takes_one_back() -> None:
    async with running_service() as service:
        one, two, other = Replica("r1"), Replica("r2"), Replica("r3", application="code")
        fleet = (one, two, other)
        await settled(service, *fleet)
        for request in (
            {"mode": "off"},
            {"mode": "pin=2", "scope": "application", "name": "chat"},
            {"mode": "pin=3", "scope": "replica", "name": "r1", "reason": "trial"},
        ):
            answer = await service.set_mode(request)
        await settled(service, *fleet, rounds=2)
        assert [str(replica.mode) for replica in fleet] == ["pin=3", "pin=2", "off"]
        assert answer["override"] == to_plain(service.status().overrides[2])
        await service.set_mode({"mode": "default", "scope": "replica", "name": "r1"})
        await settled(service, *fleet, rounds=2)
        assert [str(replica.mode) for replica in fleet] == ["pin=2", "pin=2", "off"]


async def test_a_replica_is_overridden_and_released_by_the_name_that_status_shows() -> None:
    async with running_service() as service:
        await settled(service, Replica())
        await service.set_mode({"mode": "off", "scope": "replica", "name": "chat/r1"})
        assert [override.name for override in service.status().overrides] == ["r1"]
        await service.set_mode({"mode": "default", "scope": "replica", "name": "chat/r1"})
        assert service.status().overrides == ()


async def test_an_override_of_a_replica_that_is_gone_is_taken_back_by_the_name_that_status_showed() -> None:
    async with running_service() as service:
        await settled(service, Replica("chat#LLM#x1"))
        await service.set_mode({"mode": "off", "scope": "replica", "name": "chat/x1"})
        await asyncio.sleep(60.0)
        assert service.status().replicas == ()
        assert (await service.set_mode({"mode": "default", "scope": "replica", "name": "chat/x1"}))["was_set"]
        assert service.status().overrides == ()


async def test_an_override_expires_at_its_time_and_the_journal_says_so() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await settled(service, replica)
        await service.set_mode({"mode": "off", "for_s": 60, "reason": "incident"})
        for expected in ("off", "shadow"):
            await settled(service, replica, rounds=2)
            assert str(replica.mode) == expected
            for _ in range(120):
                await replica.exchange(service)
        assert service.status().overrides == ()
        assert "override: fleet off for 60 s (incident)" in journal.causes
        assert "override expired: fleet off" in journal.causes


async def test_a_planner_set_by_hand_runs_at_every_replica_is_journaled_and_ends_at_its_time() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await service.configure({"mode": "auto"})
        await settled(service, replica)
        answer = await service.set_mode({"mode": "auto", "planner": "nightjar", "for_s": 60, "reason": "trial"})
        assert answer["override"] == to_plain(service.status().overrides[0])
        await settled(service, replica, rounds=2)
        status = service.status()
        assert (status.policy.planner, status.groups[0].planner, status.overrides[0].planner) == ("nightjar",) * 3
        assert plan_kind(replica) == "local"
        for _ in range(120):
            await replica.exchange(service)
        await settled(service, replica, rounds=2)
        assert (service.status().policy.planner, service.status().groups[0].planner) == ("fleet", "fleet")
        assert plan_kind(replica) == "table"
        assert "override: fleet auto, planner nightjar for 60 s (trial)" in journal.causes
        assert "override expired: fleet auto, planner nightjar" in journal.causes


async def test_a_planner_set_by_hand_survives_a_restarted_policy_and_its_engines_go_on() -> None:
    store = MemoryStore()
    replica = Replica()
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
        await service.set_mode({"mode": "auto", "planner": "nightjar", "learned": "reset"})
        await settled(service, replica)
        assert replica.settings is not None
        before = replica.settings.plan
    async with running_service(store) as service:
        await settled(service, replica)
        assert isinstance(before, Local)
        assert replica.settings.plan == before
        assert service.status().policy.planner == "nightjar"


async def test_reset_forgets_what_was_learned_once_and_what_is_kept_stays() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replica = Replica()
        await settled(service, replica)
        await service.import_learned(some_file())
        await settled(service, replica, rounds=2)
        assert service.status().groups[0].cells
        await service.set_mode({"mode": "auto", "planner": "fleet"})
        await settled(service, replica, rounds=2)
        assert service.status().groups[0].cells
        await service.set_mode({"mode": "auto", "planner": "nightjar", "learned": "reset"})
        assert not service.status().groups[0].cells
        await settled(service, replica, rounds=2)
        assert replica.settings is not None
        plan = replica.settings.plan
        await service.set_mode({"mode": "off"})
        await settled(service, replica, rounds=2)
        await service.set_mode({"mode": "auto", "planner": "nightjar"})
        await settled(service, replica, rounds=2)
        assert replica.settings.plan == plan


async def test_the_number_of_overrides_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "MAX_NAMED", 2)
    async with running_service() as service:
        replicas = [Replica(f"r{number}") for number in range(3)]
        await settled(service, *replicas)
        for number in range(2):
            await service.set_mode({"mode": "off", "scope": "replica", "name": f"r{number}"})
        third = {"mode": "off", "scope": "replica", "name": "r2"}
        assert await refusal(service.set_mode(third)) == "name: 'r2' would be override 3, at most 2 hold at once"
        assert len(service.status().overrides) == 2


async def test_a_restarted_policy_keeps_settings_overrides_and_their_expiry() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.configure({"mode": "auto", "dwell_steps": 7})
        await service.set_mode({"mode": "pin=1", "for_s": 100})
    await asyncio.sleep(40)
    async with running_service(store) as service:
        status = service.status()
        assert (service.incarnation, str(status.policy.mode)) == (2, "auto")
        assert [override.seconds_left for override in status.overrides] == [pytest.approx(60)]
        replica = Replica()
        await settled(service, replica)
        assert (str(replica.mode), replica.settings and replica.settings.dwell_steps) == ("pin=1", 7)


async def test_a_restarted_policy_keeps_limits_of_a_step_those_by_hand_and_those_of_applications() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.configure({"mode": "auto", "max_step_ms_per_application": {"code": 50}})
        await settled(service, Replica("r1"), Replica("r2", application="code"))
        await service.set_mode({"mode": "auto", "scope": "application", "name": "chat", "max_step_ms": 40, "for_s": 100})
    await asyncio.sleep(40)
    async with running_service(store) as service:
        (override,) = service.status().overrides
        assert override.max_step_ms == 40.0
        assert override.seconds_left == pytest.approx(60)
        await settled(service, Replica("r1"), Replica("r2", application="code"))
        limits = {replica.replica_id: replica.max_step_ms for replica in service.status().replicas}
        assert limits == {"r1": 40.0, "r2": 50.0}
        await asyncio.sleep(60)
        await settled(service, Replica("r1"))
        assert next(replica for replica in service.status().replicas if replica.replica_id == "r1").max_step_ms is None


async def test_a_limit_of_an_application_of_which_no_replica_reports_is_told() -> None:
    async with running_service() as service:
        await service.configure({"max_step_ms_per_application": {"chat": 40, "chta": 40}})
        await settled(service, Replica())
        assert service.status().policy.unknown_applications == ("chta",)


async def test_a_restarted_policy_knows_what_the_fleet_had_learned() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        replica = Replica()
        for _ in range(30):
            replica.run(20)
            await replica.exchange(service)
        await asyncio.sleep(20)
        before = service.status().groups[0].cells
    async with running_service(store) as service:
        await Replica("newcomer").exchange(service)
        await asyncio.sleep(1.5)
        assert [cell.clean_steps for cell in service.status().groups[0].cells] == [cell.clean_steps for cell in before] != []


async def test_a_restarted_policy_is_of_the_same_fleet_and_one_without_a_store_of_another() -> None:
    store = MemoryStore()
    fleets = []
    for one in (store, store, MemoryStore()):
        async with running_service(one) as service:
            fleets.append(service.learned_file().about.fleet_id)
    assert fleets[0] == fleets[1] != fleets[2]
    assert fleets[0]


async def test_what_was_learned_is_stored_at_most_every_ten_seconds() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        replica = Replica()
        for _ in range(120):
            replica.run(20)
            await replica.exchange(service)
        assert 4 <= sum(key.endswith("learned") for key, _ in store.puts) <= 7


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x93\x01\x02\x03", b"x" * 100])
async def test_a_damaged_store_is_a_cold_start_that_the_journal_names(garbage: bytes) -> None:
    store, journal = MemoryStore(), MemoryJournal()
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
        replica = Replica()
        replica.run(20)
        await settled(service, replica)
        await asyncio.sleep(20)
    assert len(store.values) == 5
    for key in store.values:
        store.values[key] = garbage
    async with running_service(store, journal) as service:
        await settled(service, replica)
        assert service.incarnation == 2, "risen above what the replica named"
        assert str(replica.mode) == "shadow"
        assert [cause for cause in journal.causes if cause.startswith("stored")] != []


async def test_one_flipped_bit_does_not_pass_the_checksum() -> None:
    store, journal = MemoryStore(), MemoryJournal()
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
    key = next(key for key in store.values if key.endswith("operator_settings"))
    store.values[key] = store.values[key][:-1] + bytes([store.values[key][-1] ^ 1])
    async with running_service(store, journal) as service:
        assert str(service.status().policy.mode) == "shadow"
        assert service.incarnation == 2, "the other values are read"
        await asyncio.sleep(1.5)
        assert any("checksum" in cause for cause in journal.causes)


async def test_an_unreachable_store_is_a_cold_start_and_is_never_set_back() -> None:
    store, journal = MemoryStore(), MemoryJournal()
    for _ in range(3):
        async with running_service(store):
            pass
    store.is_reachable = False
    async with running_service(store, journal) as service:
        assert service.incarnation == 1
        await asyncio.sleep(1.5)
        assert any("cannot be read" in cause for cause in journal.causes)
        store.is_reachable = True
        await asyncio.sleep(12)
        assert service.incarnation == 4, "risen above the stored one once it could be read"
    async with running_service(store) as service:
        assert service.incarnation == 5
    assert [unseal(value) for key, value in store.puts if key.endswith("incarnation")] == [1, 2, 3, 4, 5]


async def test_a_store_that_is_away_for_some_seconds_at_the_start_is_waited_for() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
        await service.set_mode({"mode": "off", "reason": "on call"})
    store.is_reachable = False
    asyncio.get_running_loop().call_later(8.0, setattr, store, "is_reachable", True)
    async with running_service(store) as service:
        status = service.status()
        assert (service.incarnation, str(status.policy.mode)) == (2, "auto")
        assert [str(override.mode) for override in status.overrides] == ["off"]


async def test_a_start_waits_for_a_store_for_less_than_fifteen_seconds_and_logs_that_it_began_cold() -> None:
    store = MemoryStore(is_reachable=False)
    with capture_logs() as logs:
        async with running_service(store):
            assert asyncio.get_running_loop().time() == pytest.approx(14.0, abs=0.01)
    cold = [entry["problem"] for entry in logs if entry["event"] == "policy_cold_start"]
    assert len(cold) == 1
    assert "the store cannot be read" in cold[0]


async def test_an_operators_word_is_saved_before_it_is_answered_and_does_not_wait_for_what_was_learned() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        replica = Replica()
        replica.run(20)
        await settled(service, replica)
        store.puts.clear()
        await service.set_mode({"mode": "off"})
        saved = {key.partition(":")[2] for key, _ in store.puts}
        assert "overrides" in saved
        assert not saved & {"learned", "waiting"}
        await asyncio.sleep(12.0)
        assert "learned" in {key.partition(":")[2] for key, _ in store.puts}


async def test_what_a_store_does_not_take_is_saved_once_it_does() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        store.is_reachable = False
        await service.configure({"mode": "auto"})
        await asyncio.sleep(30)
        store.is_reachable = True
        await asyncio.sleep(12)
    async with running_service(store) as service:
        assert str(service.status().policy.mode) == "auto"


async def test_what_the_operator_said_before_a_store_was_away_for_long_is_taken_up_where_nobody_said_otherwise_since() -> None:
    store = MemoryStore()
    replicas = {name: Replica(replica_id=name, application=name) for name in ("kept", "changed", "taken back")}
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
        for name, replica in replicas.items():
            await settled(service, replica)
            await service.set_mode({"mode": "off", "scope": "application", "name": name})
    store.is_reachable = False
    async with running_service(store) as service:
        assert str(service.status().policy.mode) == "shadow", "the default, for want of anything better"
        await settled(service, replicas["changed"])
        for mode, name in (("pin=2", "changed"), ("default", "taken back")):
            await service.set_mode({"mode": mode, "scope": "application", "name": name})
        store.is_reachable = True
        await asyncio.sleep(12)
        assert str(service.status().policy.mode) == "auto"
        modes = {override.name: str(override.mode) for override in service.status().overrides}
        assert modes == {"kept": "off", "changed": "pin=2"}
        await asyncio.sleep(12)
    async with running_service(store) as service:
        assert {override.name: str(override.mode) for override in service.status().overrides} == modes
        assert str(service.status().policy.mode) == "auto"


async def test_settings_that_equal_the_defaults_are_kept_too_where_nobody_could_read_what_was_stored() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
    store.is_reachable = False
    async with running_service(store) as service:
        await service.configure({"mode": "shadow"})
        store.is_reachable = True
        await asyncio.sleep(24)
        assert str(service.status().policy.mode) == "shadow"
    async with running_service(store) as service:
        assert str(service.status().policy.mode) == "shadow"


async def test_a_replica_that_starts_gets_the_most_specific_mode() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replica = Replica(replica_id="r1", application="chat")
        await settled(service, replica)
        assert str(service.starting_mode("r2", "chat")) == "auto"
        await service.set_mode({"mode": "off", "for_s": 5.0})
        await service.set_mode({"mode": "shadow", "scope": "application", "name": "chat"})
        assert (str(service.starting_mode("r2", "chat")), str(service.starting_mode("r2", "code"))) == ("shadow", "off")
        await asyncio.sleep(6.0)
        assert str(service.starting_mode("r2", "code")) == "auto", "the override has expired"


async def test_the_journal_holds_what_each_tick_saw_and_decided() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await service.configure({"mode": "pin=2"})
        replica.run(20)
        await settled(service, replica)
        entry = next(entry for entry in journal.entries if entry.decided)
        assert entry.decided["r1"] == replica.issued
        assert [known.replica_id for known in entry.replicas] == ["r1"]
        assert (entry.incarnation, entry.seed >> 32) == (1, 1)
        assert entry.operator_settings.mode == Mode.parse("pin=2")
        assert EPOCH_S < entry.time_s < EPOCH_S + 10
        assert journal.causes[0] == "policy started as incarnation 1"
        assert "operator's settings: mode shadow -> pin=2" in journal.causes


async def test_ticks_without_anything_new_are_not_journaled() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await settled(service, replica, rounds=10)
        count = len(journal.entries)
        await settled(service, replica, rounds=40)
        assert len(journal.entries) == count


async def test_the_journal_tells_every_change_of_a_drafters_state_though_nothing_is_decided() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        await settled(service, replica, rounds=10)
        count = len(journal.entries)
        for state in (DrafterState.DORMANT, DrafterState.CATCHING_UP, DrafterState.PROBING):
            replica.drafter_state = state
            await settled(service, replica, rounds=10)
        told = [known.drafter_state for entry in journal.entries[count:] for known in entry.replicas]
        assert told == [DrafterState.DORMANT, DrafterState.CATCHING_UP, DrafterState.PROBING]


async def test_status_shows_which_settings_a_replica_confirmed() -> None:
    async with running_service() as service:
        replica = Replica()
        while (await service.exchange(replica.report().to_wire())).issued is None:
            pass
        assert [shown.settings_confirmed for shown in service.status().replicas] == [False]
        await settled(service, replica, rounds=2)
        (shown,) = service.status().replicas
        assert (shown.settings_confirmed, shown.settings_version) == (True, replica.version)
