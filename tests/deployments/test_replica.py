"""What a replica says to Serve's health check, and what it does with an engine that hangs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve")
from nightjar.deployments import replica_control
from nightjar.deployments.engine_watch import EngineHungError, EngineWatch, FrontEnd
from nightjar.deployments.replica_control import PlainEngine, ReplicaControl
from nightjar.policy.wire.settings import EngineCommand

pytestmark = pytest.mark.looptime

STATS = {"num_running_reqs": 3, "num_waiting_reqs": 1, "num_skipped_waiting_reqs": 2, "kv_cache_usage": 0.5}
"""As vLLM's SchedulerStats: requests that could not be scheduled are counted apart from those that wait."""


class FakeServer:
    """An engine with a request that it does not work on; `dead` is vLLM's own error, `paused` an operator's order."""

    def __init__(self) -> None:
        self.engine = self
        self.engine_core = self
        self.load = SimpleNamespace(latest=SimpleNamespace(**STATS))
        self.dead: Exception | None = None
        self.paused = False
        self.errored = False
        self.asked: list[str] = []
        self.answer: Exception | bool | None = False  # None: never
        self.kills: list[float] = []

    def front_end(self) -> FrontEnd:
        return FrontEnd(num_unfinished_reqs=1, num_steps=None)

    def shutdown(self, timeout_s: float) -> None:
        del timeout_s
        raise RuntimeError("nobody is there")

    def kill(self) -> list[int]:
        self.kills.append(asyncio.get_running_loop().time())
        return [7]

    async def check_health(self) -> None:
        if self.dead is not None:
            raise self.dead

    async def is_paused(self) -> bool:
        return self.paused

    async def call_utility_async(self, method: str) -> bool:
        self.asked.append(method)
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return bool(self.answer)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def kills(server: FakeServer) -> list[float]:
    """When the engine's processes were killed."""
    return server.kills


def replica_of(server: FakeServer) -> Any:
    """A replica whose engine was asked at 0 s and is to answer within 5 s. The policy and the agent are left out."""
    watch = EngineWatch(hung_after_s=5.0)
    replica: Any = SimpleNamespace(_engine=server, _watch=watch, _hung_checks=0, _replica_id="r")
    replica.check_health = lambda: ReplicaControl.check_health(replica)
    replica._end_hung_engine = lambda: ReplicaControl._end_hung_engine(replica)
    watch.asked(asyncio.get_running_loop().time())
    return replica


async def fails(replica: Any) -> str:
    """One health check; the message of its failure, empty if it passed."""
    try:
        await replica.check_health()
    except EngineHungError as error:
        return str(error)
    return ""


async def test_hung_engine_fails_the_health_check_with_the_seconds(server: FakeServer) -> None:
    replica = replica_of(server)
    assert await fails(replica) == ""
    await asyncio.sleep(6.0)
    assert await fails(replica) == "engine hung: no answer for 6 s, 1 unfinished requests, steps not counted"


async def test_hung_engine_is_killed_once_serve_has_given_the_replica_up(server: FakeServer, kills: list[float]) -> None:
    replica = replica_of(server)
    await replica.check_health()
    failed_s = []
    for _ in range(6):
        await asyncio.sleep(4.0)
        if await fails(replica):
            failed_s.append(asyncio.get_running_loop().time())
    await asyncio.sleep(10.0)
    assert len(failed_s) == 5
    assert kills == [failed_s[2] + 2.0]


async def test_engine_that_comes_back_is_left_alone(server: FakeServer, kills: list[float]) -> None:
    replica = replica_of(server)
    await replica.check_health()
    await asyncio.sleep(6.0)
    assert await fails(replica)
    assert await fails(replica)
    replica._watch.failed()
    assert await fails(replica) == ""
    replica._watch.asked(0.0)
    assert await fails(replica)
    await asyncio.sleep(60.0)
    assert kills == []


async def test_dead_engine_fails_the_health_check_with_vllms_own_error(server: FakeServer, kills: list[float]) -> None:
    replica = replica_of(server)
    server.dead = ConnectionError("engine dead")
    await asyncio.sleep(6.0)
    for _ in range(4):
        with pytest.raises(ConnectionError, match="engine dead"):
            await replica.check_health()
    await asyncio.sleep(60.0)
    assert kills == []


async def test_a_replica_ends_once_the_answers_of_its_dead_engine_have_left(
    server: FakeServer, kills: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, ends = replica_of(server), []
    monkeypatch.setattr(replica_control, "_end_process", lambda: ends.append(asyncio.get_running_loop().time()))
    watch = asyncio.create_task(ReplicaControl._end_with_engine(replica))
    await asyncio.sleep(60.0)
    assert ends == []
    server.errored, died_s = True, asyncio.get_running_loop().time()
    with pytest.raises(RuntimeError, match="nobody is there"):
        await watch
    (end_s,) = ends
    assert 0.5 <= end_s - died_s <= 1.0
    assert kills == ends, "nothing of the engine stays"


async def test_engine_that_an_operator_paused_is_healthy_and_has_its_time_again_afterwards(server: FakeServer) -> None:
    replica = replica_of(server)
    server.paused = True
    for _ in range(10):
        await asyncio.sleep(4.0)
        assert await fails(replica) == ""
    server.paused = False
    replica._watch.restart()
    assert await fails(replica) == ""
    await asyncio.sleep(4.0)
    assert await fails(replica) == ""
    await asyncio.sleep(2.0)
    assert await fails(replica)


@pytest.mark.parametrize("answer", [False, True, RuntimeError("no such method")])
async def test_engine_served_plainly_tells_its_load_once_it_answers(server: FakeServer, answer: Exception | bool) -> None:
    server.answer = answer
    plain: Any = PlainEngine
    snapshot = await plain(server).exchange(EngineCommand())
    load = snapshot.load
    assert (load.num_running_reqs, load.num_waiting_reqs, load.num_deferred_reqs) == (3, 3, 2)
    assert server.asked == ["is_sleeping"]


async def test_engine_served_plainly_that_hangs_leaves_the_call_open(server: FakeServer) -> None:
    server.answer = None
    plain: Any = PlainEngine
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60.0):
            await plain(server).exchange(EngineCommand())
