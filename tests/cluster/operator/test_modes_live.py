"""Modes as operators meet them: for the fleet, an application, a replica; in shadow what would run stands beside what runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from nightjar.policy.wire.report import EngineLoad, LoadReport
from nightjar.policy.wire.settings import Table
from nightjar.policy.words import in_words
from tests.cluster.protocol import GROUP, MemoryJournal, MemoryStore, Replica, running_service, settled
from tests.cluster.seeds import some_file

pytestmark = pytest.mark.looptime


@dataclass
class ShadowedReplica(Replica):
    """Its engine runs K = 2 by its own settings, and tells beside it what the plan would run."""

    def report(self) -> LoadReport:
        report = super().report()
        plan = self.settings.plan if self.settings is not None else None
        planned = plan.rows[0].num_speculative_tokens if isinstance(plan, Table) else 0
        load = EngineLoad(decode_batch_size=1, num_speculative_tokens=2, planned_num_speculative_tokens=planned)
        return report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"load": load})})


async def test_shadow_plans_and_journals_beside_what_really_runs_and_deals_out_nothing() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await service.import_learned(some_file())
        replica = ShadowedReplica(group=GROUP)
        await settled(service, replica, rounds=6)
        (shown,) = service.status().replicas
        assert (str(shown.mode), shown.load.num_speculative_tokens, shown.load.planned_num_speculative_tokens) == ("shadow", 2, 5)
        assert shown.reason.startswith("shadow, nothing is touched: batch 1: K=5 gives ")
        decided = [entry.decided["r1"].settings for entry in journal.entries if "r1" in entry.decided][-1]
        assert str(decided.mode) == "shadow"
        assert isinstance(decided.plan, Table)
        assert [row.num_speculative_tokens for row in decided.plan.rows] == [5]
        assert decided.plan.segments == ()
        assert in_words(decided.causes).startswith("mode shadow set by the settings, nothing is touched; fleet: K=5 at batch 1-8")
        await service.configure({"mode": "off"})
        await settled(service, replica, rounds=2)
        loads = [known.load for entry in journal.entries for known in entry.replicas]
        assert (loads[-1].num_speculative_tokens, loads[-1].planned_num_speculative_tokens) == (2, 5)


@pytest.mark.parametrize(
    ("scope", "name", "modes"),
    [
        ("fleet", "", ["off", "off", "off"]),
        ("application", "chat", ["off", "off", "auto"]),
        ("replica", "r2", ["auto", "off", "auto"]),
    ],
)
async def test_a_mode_set_for_a_scope_holds_there_alone_shows_with_its_reason_and_ends_by_itself(
    scope: str, name: str, modes: list[str]
) -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await service.configure({"mode": "auto"})
        fleet = [Replica("r1"), Replica("r2"), Replica("r3", application="code")]
        await settled(service, *fleet)
        await service.set_mode({"mode": "off", "scope": scope, "name": name, "for_s": 90, "reason": "incident 7"})
        await settled(service, *fleet, rounds=2)
        assert [str(replica.mode) for replica in fleet] == modes
        (override,) = service.status().overrides
        assert (override.scope, override.name, str(override.mode), override.reason) == (scope, name, "off", "incident 7")
        assert override.seconds_left == pytest.approx(90.0, abs=2.0)
        off = next(replica for replica, mode in zip(fleet, modes, strict=True) if mode == "off")
        assert off.settings is not None
        assert "by hand (incident 7)" in in_words(off.settings.causes)
        for _ in range(180):
            await asyncio.gather(*(replica.exchange(service) for replica in fleet))
        assert {str(replica.mode) for replica in fleet} == {"auto"}
        assert service.status().overrides == ()
        target = f"{scope} {name}".strip()
        assert f"override expired: {target} off" in journal.causes


@pytest.mark.parametrize(("scope", "name"), [("fleet", ""), ("application", "chat"), ("replica", "r1")])
async def test_taking_a_mode_back_is_journaled_and_survives_a_restart(scope: str, name: str) -> None:
    store, journal = MemoryStore(), MemoryJournal()
    async with running_service(store, journal) as service:
        replica = Replica()
        await settled(service, replica)
        for mode in ("pin=3", "default"):
            answer = await service.set_mode({"mode": mode, "scope": scope, "name": name})
            await settled(service, replica, rounds=2)
        assert answer == {"override": None, "was_set": True}
        assert str(replica.mode) == "shadow"
        assert f"override: {scope} {name}".strip() + " default" in journal.causes
    async with running_service(store) as service:
        assert service.status().overrides == ()


async def test_taking_back_what_nobody_set_is_no_error() -> None:
    async with running_service() as service:
        assert (await service.set_mode({"mode": "default"})) == {"override": None, "was_set": False}
