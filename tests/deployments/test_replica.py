"""What a replica says to Serve's health check, what it does with an engine that hangs, and how it reaches each rank of one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve")
from nightjar.deployments import replica_control
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.running_engine import LoadObserver, RunningEngine
from nightjar.deployments.engine_control import PlainEngine, SteeredEngine
from nightjar.deployments.engine_watch import EngineHungError, EngineWatch, FrontEnd
from nightjar.deployments.replica_control import ReplicaControl
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import Counters, EngineSnapshot, GroupKey, LoadReport
from nightjar.policy.wire.settings import EngineCommand, ExchangeReply

pytestmark = pytest.mark.looptime

STATS = {"num_running_reqs": 3, "num_waiting_reqs": 1, "num_skipped_waiting_reqs": 2, "kv_cache_usage": 0.5}
"""As vLLM's SchedulerStats: requests that could not be scheduled are counted apart from those that wait."""


class FakeServer:
    """An engine with a request that it does not work on; `dead` is vLLM's own error, `paused` an operator's order."""

    def __init__(self) -> None:
        self.engine = self
        self.engine_core = self
        self.load = LoadObserver()
        self.load.record(SimpleNamespace(**STATS), None)
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


class RankedCore:
    """vLLM's client of the engine cores of ranks 2 and 3."""

    engine_ranks_managed = (2, 3)
    core_engines = (b"two", b"three")

    def __init__(self) -> None:
        self.called: list[str | bytes] = []

    async def call_utility_async(self, _method: str, _payload: bytes) -> bytes:
        return self._answer("every core")

    async def _call_utility_async(self, _method: str, _payload: bytes, *, engine: bytes) -> bytes:
        return self._answer(engine)

    def _answer(self, called: str | bytes) -> bytes:
        self.called.append(called)
        return EngineSnapshot(counters=Counters(engine_id="e")).to_wire()


class FakePolicy:
    """Keeps who reports, and has no news."""

    def __init__(self) -> None:
        self.replicas: list[str] = []

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        self.replicas.append(report.replica_id)
        await asyncio.sleep(min(timeout_s, 0.5))
        return ExchangeReply(incarnation=1)


class FakeAgent:
    """Keeps the kill switch."""

    local_mode: Mode | None = None
    error = ""

    def set_local_mode(self, mode: Mode | None, error: str = "") -> None:
        self.local_mode, self.error = mode, error


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
    replica: Any = SimpleNamespace(_engine=server, _watches=[watch], _hung_checks=0, _replica_id="r")
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


async def test_one_hung_rank_of_several_fails_the_health_check(server: FakeServer) -> None:
    replica = replica_of(server)
    idle = EngineWatch(hung_after_s=5.0)
    replica._watches = [idle, *replica._watches]
    idle.asked(0.0)
    assert await fails(replica) == ""
    await asyncio.sleep(6.0)
    idle.answered(EngineSnapshot(counters=Counters(engine_id="rank 0")), asyncio.get_running_loop().time())
    assert await fails(replica) == "engine hung: no answer for 6 s, 1 unfinished requests, steps not counted"
    server.paused = True
    assert await fails(replica) == ""


async def test_each_rank_is_asked_at_its_own_core(server: FakeServer) -> None:
    core: Any = RankedCore()
    server.engine_core = core
    steered: Any = SteeredEngine
    for rank in (None, 3, 2):
        await steered(server, rank).exchange(EngineCommand())
    assert core.called == ["every core", b"three", b"two"]


async def test_each_rank_has_an_agent_that_reports_of_it_and_series_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(get_node_id=lambda: "n")
    monkeypatch.setattr(replica_control, "ray", SimpleNamespace(get_runtime_context=lambda: node))
    exported: list[dict[str, str]] = []
    monkeypatch.setattr("nightjar.cluster.telemetry.ray_backend.RayBackend", exported.append)
    policy, core = FakePolicy(), RankedCore()
    control: Any = ReplicaControl.__new__(ReplicaControl)
    control._policy, control._replica_id, control._application, control._deployment = policy, "chat#LLM#x1y2", "chat", "LLM"
    engine: Any = SimpleNamespace(engine_core=core, errored=False, shutdown=lambda timeout: None)
    arguments, group = EngineArguments({}, "draft_model", 4), GroupKey(target="t", data_parallel_size=4)
    running = RunningEngine(engine=engine, arguments=arguments, group=group, load=LoadObserver())
    control.begin(running, model_id="m", hung_after_s=5.0)
    await asyncio.sleep(2.0)
    await control.end()
    assert set(policy.replicas) == {"chat#LLM#x1y2-dp2", "chat#LLM#x1y2-dp3"}
    assert set(core.called) == {b"two", b"three"}
    assert [(labels["ReplicaId"], labels["engine"]) for labels in exported] == [("chat#LLM#x1y2", "2"), ("chat#LLM#x1y2", "3")]


async def test_the_kill_switch_reaches_every_rank_and_a_wrong_value_leaves_it_where_it_was() -> None:
    replica: Any = SimpleNamespace(_agents=[FakeAgent(), FakeAgent()])
    ReplicaControl.reconfigure(replica, {"mode": "off"})
    assert [str(agent.local_mode) for agent in replica._agents] == ["off", "off"]
    ReplicaControl.reconfigure(replica, {"mode": "of"})
    assert [str(agent.local_mode) for agent in replica._agents] == ["off", "off"]
    assert all("of" in agent.error for agent in replica._agents)


@pytest.mark.parametrize(("size", "plainly", "ranks"), [(1, "", (None,)), (2, "", (2, 3)), (2, "its ranks step together", (None,))])
def test_an_engine_is_asked_by_ranks_where_each_has_a_scheduler_of_ours(size: int, plainly: str, ranks: tuple[int, ...]) -> None:
    engine: Any = SimpleNamespace(engine_core=RankedCore())
    running = RunningEngine(
        engine=engine,
        arguments=EngineArguments({}, "draft_model", 4, serving_plainly=plainly),
        group=GroupKey(target="t", data_parallel_size=size),
        load=LoadObserver(),
    )
    assert running.ranks == ranks


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
    replica._watches[0].failed()
    assert await fails(replica) == ""
    replica._watches[0].asked(0.0)
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
    replica._watches[0].restart()
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
