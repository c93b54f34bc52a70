"""The policy actor under a real Ray: one however many create it, back after a kill with what it knew (INV-4, INV-5)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from nightjar.cluster.api.operations import CONFIGURE, IMPORT, LEARNED, MODE, STATUS, OperationError
from nightjar.cluster.service.garbage import YOUNG_OBJECTS
from nightjar.cluster.service.other_versions import ACTOR_NAME_PREFIX
from nightjar.cluster.storage.journal import read_journal
from nightjar.cluster.storage.learned_file import parse_learned_file, to_text
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import PROTOCOL_VERSION
from tests.cluster.protocol import Replica, refusal
from tests.cluster.seeds import some_file, some_group

ray = pytest.importorskip("ray")
from nightjar.cluster.client import PolicyClient, get_or_create_policy_actor  # noqa: E402 - needs Ray
from nightjar.cluster.policy_actor import NAMESPACE  # noqa: E402 - needs Ray

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

T = TypeVar("T")


@pytest.fixture(scope="module")
def journal_folder() -> Iterator[Path]:
    """A cluster of this module's own, with the policy's journal in this folder."""
    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    journal = folder / "journal"
    (folder / "token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        environment.setenv("RAY_enable_metrics_collection", "0")
        environment.setenv("NIGHTJAR_JOURNAL_DIR", str(journal))
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
            _temp_dir=str(folder),
        )
        try:
            yield journal
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _fresh_policy(journal_folder: Path) -> Iterator[None]:
    yield
    remove_the_actor()


def remove_the_actor() -> None:
    """End it for good. It answers until the kill has reached it."""
    actor = get_or_create_policy_actor()
    ray.kill(actor, no_restart=True)
    with contextlib.suppress(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.status.remote(), timeout=30)


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """What an agent does: call again after each failure; the client paces it."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except OperationError:
                continue


async def exchange(client: PolicyClient, replica: Replica) -> None:
    replica.apply(await client.exchange(replica.report(), timeout_s=5.0))


async def until_running(client: PolicyClient, replica: Replica, mode: str) -> None:
    async with asyncio.timeout(30):
        while replica.mode != Mode.parse(mode):
            await until_answered(lambda: exchange(client, replica))


async def test_two_clients_that_create_the_actor_at_once_get_the_same_one() -> None:
    clients = [PolicyClient(timeout_s=60), PolicyClient(timeout_s=60)]
    await asyncio.gather(*(client.call(STATUS) for client in clients))
    pids = {(await client.call(STATUS)).policy.pid for client in clients}
    assert len(pids) == 1


async def test_a_killed_actor_comes_back_with_settings_overrides_and_a_higher_incarnation(journal_folder: Path) -> None:
    client, replica = PolicyClient(timeout_s=60), Replica()
    await client.call(CONFIGURE, {"mode": "auto", "dwell_steps": 9})
    await until_running(client, replica, "auto")
    await client.call(MODE, {"mode": "pin=2", "for_s": 3600})
    await until_running(client, replica, "pin=2")
    before, version = await client.call(STATUS), replica.version

    os.kill(before.policy.pid, signal.SIGKILL)
    await until_answered(lambda: exchange(client, replica))
    after = await until_answered(lambda: client.call(STATUS))
    assert after.policy.pid != before.policy.pid
    assert after.policy.incarnation > before.policy.incarnation
    assert str(after.policy.mode) == "auto"
    assert [str(override.mode) for override in after.overrides] == ["pin=2"]
    assert 3000 < (after.overrides[0].seconds_left or 0) <= 3600

    async with asyncio.timeout(30):
        while replica.version is None or not replica.version.is_newer_than(version):
            await until_answered(lambda: exchange(client, replica))
    assert (str(replica.mode), replica.settings and replica.settings.dwell_steps) == ("pin=2", 9)
    incarnations = [entry.incarnation for entry in read_journal(Path(after.policy.journal_path))]
    assert Path(after.policy.journal_path).parent == journal_folder
    assert incarnations == sorted(incarnations)
    assert len(set(incarnations)) >= 2


async def test_a_client_finds_the_actor_that_replaced_a_removed_one() -> None:
    client = PolicyClient(timeout_s=60)
    first = (await client.call(STATUS)).policy.incarnation
    await asyncio.to_thread(remove_the_actor)
    assert (await until_answered(lambda: client.call(STATUS))).policy.incarnation > first


async def test_wrong_values_are_answered_in_words_and_change_nothing() -> None:
    client = PolicyClient(timeout_s=60)
    before = (await client.call(STATUS)).policy.mode
    assert "did you mean dwell_steps" in await refusal(client.call(CONFIGURE, {"dwel_steps": 3}))
    assert "pin=K" in await refusal(client.call(MODE, {"mode": "fast"}))
    after = (await client.call(STATUS)).policy
    assert after.mode == before
    assert "dwel_steps" in after.settings_error


async def test_a_file_goes_out_of_the_actor_and_back_in_and_seed_from_is_read_where_the_actor_runs(tmp_path: Path) -> None:
    client = PolicyClient(timeout_s=60)
    content = to_text(some_file())
    answer = await client.call(IMPORT, content, [])
    assert [group["cells"] for group in answer["groups"]] == [30]
    assert "not JSON" in await refusal(client.call(IMPORT, content[:-30], []))
    assert parse_learned_file(await client.call(LEARNED)).groups == ()
    (tmp_path / "learned.json").write_bytes(content[:-30])
    await client.call(CONFIGURE, {"seed_from": str(tmp_path / "learned.json")})
    async with asyncio.timeout(30):
        while "not JSON" not in (await client.call(STATUS)).policy.seed_problem:
            pass
    await client.call(CONFIGURE, {})
    assert (await client.call(STATUS)).policy.waiting_groups == (some_group().key.group_id,)


class OfTomorrow:
    """What a release of the next protocol might bring."""


async def test_an_actor_finds_one_of_a_newer_protocol_by_its_name_and_stops_granting_while_it_lives() -> None:
    client, replica = PolicyClient(), Replica()
    await until_answered(lambda: exchange(client, replica))
    journal = Path((await client.call(STATUS)).policy.journal_path)

    def has_said(words: str) -> bool:
        """The journal is written beside the actor's work, so at first there may be none."""
        return journal.exists() and any(words in cause for entry in read_journal(journal) for cause in entry.causes)

    async def until_it_says(words: str) -> None:
        async with asyncio.timeout(120):
            while not has_said(words):
                await exchange(client, replica)

    next_version = PROTOCOL_VERSION + 1
    name = f"{ACTOR_NAME_PREFIX}{next_version}"
    newer = ray.remote(OfTomorrow).options(name=name, namespace=NAMESPACE, num_cpus=0).remote()
    mine = f"this one, of protocol {PROTOCOL_VERSION}, grants no restarts"
    await until_it_says(f"the policy of protocol {next_version} is here: {mine}")
    ray.kill(newer, no_restart=True)
    await until_it_says(f"the policy of protocol {next_version} is gone")


def test_the_actors_process_looks_for_cycles_seldom() -> None:
    actor = get_or_create_policy_actor()
    threshold = ray.get(actor.__ray_call__.remote(lambda _: gc.get_threshold()), timeout=60)
    assert threshold[0] == YOUNG_OBJECTS
