"""What the policy exports, imports and starts with, as replicas and operators meet it, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.service.seed_from import FIRST_READING_S
from nightjar.cluster.storage.learned_file import LearnedFile, LearnedFileError, parse_learned_file, to_text
from nightjar.cluster.storage.plain_values import packed, restored, unpacked
from nightjar.policy.priors import MOST_SEED_STEPS
from nightjar.policy.state import FleetState
from nightjar.policy.wire.settings import Table
from tests.cluster.protocol import GROUP, MemoryJournal, MemoryStore, Replica, refusal, running_service, settled
from tests.cluster.seeds import LENGTHS, some_file, some_group

pytestmark = pytest.mark.looptime

OTHER = GROUP.model_copy(update={"engine_version": "9.9"})


@dataclass
class Files:
    """What lies at which place."""

    found: dict[str, LearnedFile] = field(default_factory=dict)

    async def read(self, place: str) -> LearnedFile:
        if place not in self.found:
            raise LearnedFileError("cannot be read (FileNotFoundError: no such file)")
        return self.found[place]


def table_of(replica: Replica) -> Table:
    assert replica.settings is not None
    assert isinstance(replica.settings.plan, Table)
    return replica.settings.plan


def steps_of(service: PolicyService) -> list[float]:
    """Clean steps of each cell of the only group."""
    (group,) = service.status().groups
    return [cell.clean_steps for cell in group.cells]


async def test_a_replica_that_joins_an_imported_group_gets_its_plan_before_its_first_request_and_no_measurement() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        answer = await service.import_learned(some_file())
        assert answer == {"groups": [{"group_id": GROUP.group_id, "cells": 30, "replicas": 0}]}
        replica = Replica()
        await settled(service, replica)
        assert replica.steps == 0
        assert [row.num_speculative_tokens for row in table_of(replica).rows] == [5]
        assert table_of(replica).segments == ()


async def test_a_replica_that_was_there_gets_what_is_imported_at_the_next_decision() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replica = Replica()
        replica.run(20)
        await settled(service, replica)
        cold = service.status().groups[0]
        answer = await service.import_learned(some_file())
        assert [group["replicas"] for group in answer["groups"]] == [1]
        await settled(service, replica, rounds=2)
        (group,) = service.status().groups
        assert len(group.cells) == 6 * len(LENGTHS)
        assert group.cells[0] == cold.cells[0].model_copy(update={"goodput_tokens_per_s": group.cells[0].goodput_tokens_per_s})
        assert "29 of 30 cells imported, not measured here" in group.reason


async def test_only_the_groups_that_were_named_are_taken() -> None:
    async with running_service() as service:
        answer = await service.import_learned(some_file(some_group(), some_group(OTHER)), [OTHER.group_id])
        assert [group["group_id"] for group in answer["groups"]] == [OTHER.group_id]
        assert service.status().policy.waiting_groups == (OTHER.group_id,)
        with pytest.raises(LearnedFileError) as wrong:
            await service.import_learned(some_file(), ["smollm2"])
        assert f"group: 'smollm2' is not in the file, which holds {GROUP.group_id}" in str(wrong.value)


async def test_a_group_of_another_key_waits_over_a_restart_until_a_replica_of_it_appears() -> None:
    store, journal = MemoryStore(), MemoryJournal()
    async with running_service(store, journal) as service:
        await service.import_learned(some_file(some_group(OTHER)))
        await settled(service, Replica())
        await asyncio.sleep(20.0)
        assert "imported: 1 group with 30 cells, written 2026-05-01T12:00:00+00:00 by incarnation 3" in journal.causes
    async with running_service(store) as service:
        assert service.status().policy.waiting_groups == (OTHER.group_id,)
        await settled(service, Replica(group=OTHER))
        assert service.status().policy.waiting_groups == ()
        assert set(steps_of(service)) == {MOST_SEED_STEPS}
        await asyncio.sleep(20.0)
    async with running_service(store) as service:
        assert service.status().policy.waiting_groups == ()
        assert set(steps_of(service)) == {MOST_SEED_STEPS}


async def test_what_is_exported_is_what_was_learned_and_can_be_imported_elsewhere() -> None:
    async with running_service() as service, running_service() as other:
        replica = Replica()
        for _ in range(10):
            replica.run(20)
            await replica.exchange(service)
        await asyncio.sleep(1.5)
        file = parse_learned_file(to_text(service.learned_file()))
        (group,) = file.groups
        assert (file.about.incarnation, group.key, len(group.cells)) == (1, GROUP, 1)
        assert group.cells[0].step_seconds == pytest.approx(0.01)
        await other.import_learned(file)
        await settled(other, Replica("elsewhere"))
        assert steps_of(other) == [MOST_SEED_STEPS]


async def test_what_is_exported_says_what_vllms_own_table_would_be_or_why_there_is_none() -> None:
    async with running_service() as service:
        replica = Replica()
        replica.run(20)
        await settled(service, replica)
        (table,) = service.learned_file().about.vllm_tables or ()
        assert (table.group_id, table.rows) == (GROUP.group_id, ())
        assert "ever ran, so nothing is known of other K" in table.why_none
        await service.import_learned(some_file())
        await settled(service, replica, rounds=2)
        file = parse_learned_file(to_text(service.learned_file()))
        (table,) = file.about.vllm_tables or ()
        assert table.vllm_rows == [[1, 8, 5]]
        assert table.lost is not None
        assert table.lost.low <= table.lost.share <= table.lost.high


async def test_a_policy_starts_warm_with_seed_from_and_tells_where_it_has_it_from() -> None:
    store, journal, files = MemoryStore(), MemoryJournal(), Files({"/data/learned.json": some_file()})
    async with running_service(store) as service:
        await service.configure({"mode": "auto", "seed_from": "/data/learned.json"})
        assert service.status().policy.seed_problem.startswith("")
    async with running_service(store, journal, read_seed=files.read) as service:
        replica = Replica()
        await settled(service, replica)
        assert [row.num_speculative_tokens for row in table_of(replica).rows] == [5]
        assert service.status().policy.seed_problem == ""
        assert any(cause.startswith("seeded from /data/learned.json: 1 group with 30 cells") for cause in journal.causes)


async def test_seed_from_is_live_and_a_file_that_is_of_no_use_is_a_problem_in_status_while_serving_goes_on() -> None:
    files = Files()
    async with running_service(read_seed=files.read) as service:
        replica = Replica()
        await service.configure({"mode": "auto", "seed_from": "/data/learned.json"})
        await settled(service, replica)
        assert replica.settings is not None
        problem = service.status().policy.seed_problem
        assert problem.startswith("seed_from: /data/learned.json: cannot be read (FileNotFoundError: no such file)")
        files.found["/other.json"] = some_file()
        await service.configure({"mode": "auto", "seed_from": "/other.json"})
        await settled(service, replica, rounds=2)
        assert service.status().policy.seed_problem == ""
        assert [row.num_speculative_tokens for row in table_of(replica).rows] == [5]
        await service.configure({"mode": "auto"})
        await settled(service, replica, rounds=2)
        assert len(steps_of(service)) == 30, "what was taken stays"


SERVICE = "http://llm-serve-svc:8000/nightjar/learned"


async def test_a_service_that_points_at_itself_gives_nothing_whatever_incarnation_answers_and_is_no_problem() -> None:
    store, journal, files = MemoryStore(), MemoryJournal(), Files()
    async with running_service(store, journal, read_seed=files.read) as service:
        replica = Replica()
        for _ in range(10):
            replica.run(20)
            await replica.exchange(service)
        files.found[SERVICE] = service.learned_file()
        before = service.status().groups
        await service.configure({"seed_from": SERVICE})
        await settled(service, replica)
        assert service.status().policy.seed_problem == ""
        assert service.status().policy.seed_notice == ""
        assert service.status().groups[0].cells == before[0].cells
    async with running_service(store, journal, read_seed=files.read) as service:
        await settled(service, replica)
        assert (service.incarnation, service.status().policy.waiting_groups) == (2, ())
    assert not [cause for cause in journal.causes if cause.startswith("seeded")]


async def test_a_fleet_that_cannot_read_its_store_at_first_is_itself_again_once_it_can() -> None:
    store, files = MemoryStore(), Files()
    async with running_service(store) as service:
        await settled(service, Replica())
        files.found[SERVICE] = service.learned_file()
    store.is_reachable = False
    async with running_service(store, read_seed=files.read) as service:
        store.is_reachable = True
        await asyncio.sleep(20.0)
        assert service.learned_file().about.fleet_id == files.found[SERVICE].about.fleet_id
    async with running_service(store) as service:
        assert service.learned_file().about.fleet_id == files.found[SERVICE].about.fleet_id


@dataclass
class SlowFile:
    """A service that answers after a while."""

    delay_s: float

    async def read(self, place: str) -> LearnedFile:
        await asyncio.sleep(self.delay_s)
        return some_file()


async def first_settings(service: PolicyService, mode: str) -> tuple[Replica, float]:
    """A new replica when it has got its first settings, and after how many seconds."""
    replica, began_s = Replica(), asyncio.get_running_loop().time()
    await service.configure({"mode": mode, "seed_from": SERVICE, "exchange_period_s": 0.25, "decision_period_s": 0.25})
    while replica.settings is None:
        await replica.exchange(service)
    return replica, asyncio.get_running_loop().time() - began_s


async def test_the_first_settings_of_a_fleet_that_knows_nothing_wait_for_the_seed_and_carry_its_plan() -> None:
    async with running_service(read_seed=SlowFile(3.0).read) as service:
        replica, seconds = await first_settings(service, "auto")
        assert [row.num_speculative_tokens for row in table_of(replica).rows] == [5]
        assert table_of(replica).segments == ()
        assert 3.0 <= seconds < 3.5


@pytest.mark.parametrize(("mode", "least_s", "most_s"), [("auto", FIRST_READING_S, FIRST_READING_S + 0.5), ("off", 0.0, 0.5)])
async def test_a_slow_service_delays_the_first_settings_by_a_bounded_time_and_off_not_at_all(
    mode: str, least_s: float, most_s: float
) -> None:
    async with running_service(read_seed=SlowFile(15.0).read) as service:
        replica, seconds = await first_settings(service, mode)
        assert least_s <= seconds <= most_s
        await asyncio.sleep(15.0)
        await service.configure({"mode": "auto", "seed_from": SERVICE})
        await settled(service, replica)
        assert [row.num_speculative_tokens for row in table_of(replica).rows] == [5], "what comes late is taken late"


async def test_a_fleet_that_has_learned_something_waits_for_no_seed() -> None:
    async with running_service(read_seed=SlowFile(15.0).read) as service:
        replica = Replica()
        for _ in range(5):
            replica.run(20)
            await replica.exchange(service)
        await asyncio.sleep(1.5)
        _, seconds = await first_settings(service, "auto")
        assert seconds < 0.5


@pytest.mark.parametrize(
    "place", ["learned.json", "ftp://host/x", "http://", "http://me:secret@host/x", "http://host:99999/x", "/a\nb"]
)
async def test_a_place_that_is_none_is_refused_with_what_is_allowed(place: str) -> None:
    async with running_service() as service:
        error = await refusal(service.configure({"seed_from": place}))
        assert error.startswith("seed_from: ")
        assert "allowed are an absolute path, an http or https address without user or password, or nothing" in error


async def test_the_state_with_what_waits_and_what_was_imported_can_be_recorded() -> None:
    async with running_service() as service:
        await service.import_learned(some_file(some_group(), some_group(OTHER)))
        await settled(service, Replica())
        fleet = service._controller.state
        assert fleet.waiting
        assert restored(FleetState, unpacked(packed(fleet))) == fleet
