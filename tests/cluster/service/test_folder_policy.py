"""A policy and its folder, with replicas that reach it over HTTP: killed, replaced, and on a full disk (INV-5, INV-6, INV-7)."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest

from nightjar.cluster.service import folder_policy
from nightjar.cluster.service.folder_policy import Successor, begun_policy
from nightjar.cluster.service.other_versions import LOOK_PERIOD_S, LOOK_TIMEOUT_S, OtherVersions, no_other_actors
from nightjar.cluster.service.policy_service import IDLE_EXIT_S, PolicyService
from nightjar.cluster.storage.checkpoint import StoreError
from nightjar.cluster.storage.journal import FILE_NAME
from nightjar.cluster.storage.recorder import Recorder
from nightjar.cluster.storage.replay import Skipped, replay
from nightjar.cluster.storage.rotated_lines import RotatedLines
from nightjar.cluster.storage.state_folder import StateFolder
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import SettingsVersion
from tests.cluster.over_http import over_http
from tests.cluster.protocol import MemoryJournal, MemoryStore, Replica, loop_clock, running_service, settled, without_threads
from tests.cluster.recorded_fleet import MemoryRecording
from tests.cluster.service.reloading_node import LEASE_S, watched
from tests.cluster.telemetry.exported import MemoryBackend
from tests.policy.engines import Replica as Engine

pytestmark = pytest.mark.looptime

LOOK_S = LOOK_PERIOD_S + LOOK_TIMEOUT_S
ROUNDED_S = 0.01


@pytest.fixture(autouse=True)
def _on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time waits for no thread: a journal writes at once."""
    without_threads(monkeypatch)
    monkeypatch.setattr(folder_policy, "epoch_clock", loop_clock)

    def at_once(self: RotatedLines, work: Callable[[], None]) -> bool:
        work()
        return True

    monkeypatch.setattr(RotatedLines, "take", at_once)


@pytest.fixture
def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fill() -> None:
        monkeypatch.setattr(os, "fsync", _full)
        monkeypatch.setattr(os, "pwrite", _full)
        monkeypatch.setattr(RotatedLines, "_is_full", _full)

    return fill


@asynccontextmanager
async def policy_in(folder: Path) -> AsyncIterator[PolicyService]:
    """As `nightjar policy` has one, for replicas that know its address. Its end is as by kill -9: nothing is said or stored."""
    store = StateFolder.take(folder)
    service = await begun_policy(store, {"mode": "pin=3"}, MemoryBackend())
    try:
        yield over_http(service)
    finally:
        await service.stop()
        store.close()


@pytest.mark.heavy
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("lived_s", [8.3, 10.2])
async def test_inv_6_a_policy_that_is_killed_and_starts_again_grants_nothing_for_one_longest_lease(lived_s: float) -> None:
    store, others = MemoryStore(), OtherVersions(no_other_actors)
    async with watched() as cluster:
        async with cluster.policy(1, others, store=store):
            await asyncio.sleep(lived_s)
            assert cluster.granted[1], "alone it grants"
        killed_s = asyncio.get_running_loop().time()
        async with cluster.policy(2, others, store=store):
            await asyncio.sleep(40.0)
            assert min(cluster.granted[2]) > killed_s + LEASE_S - ROUNDED_S
    assert cluster.most_at_once == 1


@pytest.mark.heavy
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("alone_s", [10.7, 13.0])
async def test_inv_6_of_two_policies_of_one_folder_the_older_one_grants_nothing_and_stores_nothing(
    tmp_path: Path, alone_s: float
) -> None:
    journal, older = MemoryJournal(), StateFolder.take(tmp_path)
    told: list[str] = []
    async with watched() as cluster, cluster.policy(1, Successor(older.why_lost, told.append), journal=journal, store=older):
        await asyncio.sleep(alone_s)
        assert cluster.granted[1], "alone it grants"
        (tmp_path / "lock").unlink()
        newer, came_s = StateFolder.take(tmp_path), asyncio.get_running_loop().time()
        async with cluster.policy(2, Successor(newer.why_lost), store=newer):
            await asyncio.sleep(40.0)
            assert [at_s for at_s in cluster.granted[1] if at_s > came_s + LOOK_S] == []
            assert min(cluster.granted[2]) > came_s + LEASE_S + LOOK_S - ROUNDED_S
            assert newer.why_lost() == ""
    assert cluster.most_at_once == 1
    words = f"state folder {tmp_path}: another policy holds it now"
    assert told == [words]
    assert f"{words}: this one grants no restarts" in journal.causes
    with pytest.raises(StoreError, match="another policy holds it now"):
        await older.put("policy-v3:learned", b"older")


async def test_inv_5_on_a_full_disk_a_policy_that_is_killed_comes_back_above_what_its_replicas_run(
    tmp_path: Path, fill_the_disk: Callable[[], None]
) -> None:
    fill_the_disk()
    replica, ran = Replica(), list[SettingsVersion | None]()
    for mode in ("off", "pin=2", "off"):
        async with policy_in(tmp_path) as service:
            await service.set_mode({"mode": mode})
            await settled(service, replica, rounds=6)
            assert replica.mode == Mode.parse(mode)
            ran.append(replica.version)
    assert [later is not None and later.is_newer_than(sooner) for sooner, later in itertools.pairwise(ran)] == [True, True]


async def test_what_was_set_on_a_full_disk_is_in_force_and_kept_once_there_is_room(
    tmp_path: Path, fill_the_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with policy_in(tmp_path) as service:
        replica = Replica()
        await settled(service, replica)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            await service.set_mode({"mode": "off"})
            await settled(service, replica)
            assert replica.mode == Mode(kind="off")
        await asyncio.sleep(30.0)
    async with policy_in(tmp_path) as service:
        await settled(service, replica, rounds=6)
        assert replica.mode == Mode(kind="off")


async def test_no_policy_of_a_folder_retires_for_want_of_reports(tmp_path: Path) -> None:
    async with policy_in(tmp_path) as service:
        await asyncio.sleep(1.1 * IDLE_EXIT_S)
        replica = Replica()
        await settled(service, replica)
        assert str(replica.mode) == "pin=3"
    assert (tmp_path / "journal" / FILE_NAME).exists()


@pytest.mark.usefixtures("each_way")
async def test_inv_7_what_policies_decided_that_were_killed_replays_to_the_same_decisions() -> None:
    store, rng = MemoryStore(), Random(1)
    engines = [Engine(f"r{number}", batch=batch) for number, batch in enumerate((1, 4, 16))]
    for _ in range(3):
        kept = MemoryRecording()
        async with running_service(store, recorder=Recorder(kept)) as service:
            await service.configure({"mode": "auto", "allowed_num_speculative_tokens": [0, 1, 3, 5]})
            for _ in range(20):
                for engine in engines:
                    engine.run_until(asyncio.get_running_loop().time(), rng)
                reports = [engine.report().to_wire() for engine in engines]
                replies = await asyncio.gather(*(service.exchange(report) for report in reports))
                for engine, reply in zip(engines, replies, strict=True):
                    if reply.issued is not None:
                        engine.steering.adopt(reply.issued, engine.now_s)
        skipped = Skipped()
        ticks = list(replay(kept.frames, skipped))
        assert len(ticks) > 5
        assert [tick.differences for tick in ticks] == [()] * len(kept.ticks)
        assert skipped == Skipped()


def _full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")
