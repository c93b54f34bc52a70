"""How an operator freezes a fleet, and what a restarted policy still knows of it, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from nightjar.policy.wire.record import to_plain
from tests.cluster.protocol import EPOCH_S, MemoryJournal, MemoryStore, Replica, refusal, running_service, settled

pytestmark = pytest.mark.looptime


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "frozen: Field required"),
        ({"frozen": "yes"}, "frozen"),
        ({"frozen": True, "for_s": 0}, "for_s"),
        ({"frozen": True, "for_s": "soon"}, "for_s"),
        ({"frozen": True, "for_s": float("nan")}, "for_s"),
        ({"frozen": False, "for_s": 10.0}, "for_s: 10 with frozen false"),
        ({"frozen": True, "reason": "x" * 5000}, "reason"),
        ({"frozen": True, "mode": "off"}, "mode"),
        ("on", "record"),
    ],
)
async def test_a_wrong_request_is_answered_in_words_and_freezes_nothing(values: object, named: str) -> None:
    async with running_service() as service:
        assert named in await refusal(service.freeze(values))  # type: ignore[arg-type]
        assert service.status().policy.freeze is None


async def test_a_freeze_shows_in_status_and_journal_until_it_is_ended() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await settled(service, Replica())
        answer = await service.freeze({"frozen": True, "reason": "release"})
        frozen = service.status().policy.freeze
        assert frozen is not None
        assert answer["freeze"] == to_plain(frozen)
        assert frozen.since_s == pytest.approx(EPOCH_S + asyncio.get_running_loop().time())
        assert (frozen.reason, frozen.seconds_left) == ("release", None)
        await asyncio.sleep(2.0)
        await service.freeze({"frozen": False, "reason": "done"})
        assert service.status().policy.freeze is None
        await asyncio.sleep(2.0)
        assert "frozen by hand (release): no new plan, measurement or lease" in journal.causes
        assert "freeze ended by hand (done)" in journal.causes
        assert await service.freeze({"frozen": False}) == {"freeze": None}, "to end none is no error"


async def test_a_freeze_ends_at_its_time_and_to_freeze_again_prolongs_it() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await service.freeze({"frozen": True, "for_s": 60.0})
        await asyncio.sleep(50.0)
        await service.freeze({"frozen": True, "for_s": 60.0})
        await asyncio.sleep(50.0)
        frozen = service.status().policy.freeze
        assert frozen is not None
        assert frozen.since_s == pytest.approx(EPOCH_S)
        assert frozen.seconds_left == pytest.approx(10.0)
        await asyncio.sleep(12.0)
        assert service.status().policy.freeze is None
        assert journal.causes[-1] == "freeze expired"


async def test_a_restarted_policy_is_still_frozen_runs_the_held_plan_and_expires_in_time() -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.configure({"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3})
        await settled(service, Replica())
        await service.freeze({"frozen": True, "for_s": 100.0})
        await service.configure({"mode": "auto", "planner": "off"})
        before = Replica()
        await settled(service, before)
    await asyncio.sleep(30.0)
    async with running_service(store) as service:
        after = Replica()
        await settled(service, after)
        assert before.settings is not None
        assert after.settings is not None
        assert after.settings.plan == before.settings.plan
        assert after.settings.plan.rows[0].num_speculative_tokens == 3  # type: ignore[union-attr]
        await asyncio.sleep(70.0)
        assert service.status().policy.freeze is None
        await settled(service, after)
        assert after.settings.plan.rows[0].num_speculative_tokens == 0  # type: ignore[union-attr]


async def test_settings_of_a_frozen_fleet_are_renewed() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3})
        replica = Replica()
        await settled(service, replica)
        await service.freeze({"frozen": True})
        await service.configure({"mode": "off"})
        await settled(service, replica)
        assert str(replica.mode) == "off", "a person's mode reaches it"
        (shown,) = service.status().replicas
        assert shown.settings_confirmed


@pytest.mark.parametrize("said_since", [None, False])
async def test_a_freeze_that_a_store_gives_late_counts_where_nobody_said_otherwise_since(said_since: bool | None) -> None:
    store = MemoryStore()
    async with running_service(store) as service:
        await service.freeze({"frozen": True, "reason": "release"})
    store.is_reachable = False
    async with running_service(store) as service:
        assert service.status().policy.freeze is None
        if said_since is not None:
            await service.freeze({"frozen": said_since})
        store.is_reachable = True
        await asyncio.sleep(24.0)
        assert (service.status().policy.freeze is not None) == (said_since is None)
    async with running_service(store) as service:
        assert (service.status().policy.freeze is not None) == (said_since is None)
