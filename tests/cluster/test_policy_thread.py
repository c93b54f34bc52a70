"""The policy in a thread of a server: the same service, with a folder for a memory, and never in the server's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.api.operations import MODE, STATUS, OperationError
from nightjar.cluster.policy_thread import PolicyThread
from nightjar.cluster.storage.state_folder import StateFolder
from nightjar.cluster.telemetry.metrics import Backend, Family, Labels
from tests.cluster.protocol import Replica

Start = Callable[..., PolicyThread]


class Unseen(Backend):
    """Metrics that nobody reads."""

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        pass

    def set(self, family: Family, labels: Labels, value: float) -> None:
        pass


def no_backend() -> Backend:
    raise RuntimeError("no page")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    begun: list[PolicyThread] = []

    def start_one(folder: Path = tmp_path / "state", backend: Callable[[], Backend] = Unseen, **settings: object) -> PolicyThread:
        begun.append(PolicyThread(folder, {"exchange_period_s": 0.1, "decision_period_s": 0.1, **settings}, backend))
        begun[-1].start()
        return begun[-1]

    yield start_one
    for policy in begun:
        policy.stop()


async def test_a_replica_gets_the_settings_that_the_server_was_started_with(start: Start) -> None:
    policy, replica = start(mode="pin=2"), Replica()
    assert await policy.starting_mode("r1", "chat", 30.0) == "pin=2"
    while replica.mode is None:
        replica.apply(await policy.exchange(replica.report(), 30.0))
    assert str(replica.mode) == "pin=2"
    assert [seen.replica_id for seen in (await policy.call(STATUS)).replicas] == ["r1"]


async def test_what_was_set_by_hand_is_there_after_a_new_start_and_says_where_it_is_kept(start: Start, tmp_path: Path) -> None:
    first = start(mode="auto")
    answer = await first.call(MODE, {"mode": "off", "reason": "a test"})
    assert answer["outlives"] == {"head": False, "upgrade": False, "folder": str(tmp_path / "state"), "process": True}
    before = (await first.call(STATUS)).policy.incarnation
    first.stop()
    with capture_logs() as logs:
        second = start(mode="auto")
        assert await second.starting_mode("r1", "chat", 30.0) == "off"
    assert [entry["holds"] for entry in logs if entry["event"] == "set_by_hand_before"] == [["fleet off (a test)"]]
    assert (await second.call(STATUS)).policy.incarnation > before


async def test_a_folder_that_another_server_holds_costs_the_memory_alone_and_nothing_stays(start: Start, tmp_path: Path) -> None:
    held = StateFolder.take(tmp_path / "held")
    policy = start(folder=held.path, mode="shadow")
    assert await policy.starting_mode("r1", "chat", 30.0) == "shadow"
    (journal,) = {Path((await policy.call(STATUS)).policy.journal_path)}
    assert not journal.is_relative_to(held.path)
    assert (await policy.call(MODE, {"mode": "off"}))["outlives"]["process"] is False
    policy.stop()
    assert not journal.parent.parent.exists()
    held.close()


async def test_a_policy_that_cannot_begin_answers_every_call_with_why(start: Start) -> None:
    policy = start(backend=no_backend)
    with pytest.raises(OperationError, match="the policy did not begin: RuntimeError: no page") as refused:
        await policy.call(STATUS)
    assert refused.value.code == 503
    with pytest.raises(OperationError):
        await policy.exchange(Replica().report(), 30.0)
