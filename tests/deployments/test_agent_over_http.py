"""INV-4 and INV-5 over HTTP: an agent and the real client before everything that may be wrong with a policy elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.deployments.agent import EXCHANGE_TIMEOUT_S, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.policy.exchange import MAX_BACKOFF_S
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.over_http import TOKEN, URL, application_of
from tests.cluster.protocol import MemoryStore, running_service
from tests.deployments.test_agent import FakeEngine, FakeMetrics

pytestmark = pytest.mark.looptime

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Network(httpx.AsyncBaseTransport):
    """Whom a server reaches: a policy, or what is wrong."""

    def __init__(self) -> None:
        self.reached: httpx.ASGITransport | None = None
        self.trouble: Answer | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.trouble is not None:
            return await self.trouble(request)
        assert self.reached is not None
        return await self.reached.handle_async_request(request)


async def gone(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed")


async def hangs(_: httpx.Request) -> httpx.Response:
    await asyncio.sleep(1e6)
    raise AssertionError


def answers(code: int, body: bytes) -> Answer:
    async def answer(_: httpx.Request) -> httpx.Response:
        async def stream() -> AsyncIterator[bytes]:
            yield body

        return httpx.Response(code, content=stream())

    return answer


FULL = b'{"detail": "this policy holds 2000 calls, which is all it holds; keep your settings and come again in 5 s"}'
OTHER_PROTOCOL = ExchangeReply(protocol_version=PROTOCOL_VERSION + 1, incarnation=9).to_wire()
TROUBLES: dict[str, tuple[Answer, str]] = {
    "unreachable": (gone, f"nothing answers at {URL} (ConnectError: All connection attempts failed)"),
    "silent": (hangs, f"{URL} did not answer within {EXCHANGE_TIMEOUT_S:g} s"),
    "wrong token": (answers(401, b'{"detail": "wrong token"}'), f"{URL}: wrong token (HTTP 401)"),
    "another protocol": (
        answers(200, OTHER_PROTOCOL),
        f"the policy speaks protocol {PROTOCOL_VERSION + 1}, this replica {PROTOCOL_VERSION}: nothing of it is taken",
    ),
    "garbage": (answers(200, b"<html>"), f"{URL} answered with something else: ExchangeReply"),
    "no policy": (answers(404, b'{"detail": "Not Found"}'), f"{URL}/nightjar/exchange answered 404: no policy there takes reports"),
    "full": (answers(503, FULL), "this policy holds 2000 calls, which is all it holds"),
}
TOLD = {"policy_unavailable", "report_or_settings_refused"}


@asynccontextmanager
async def steered(network: Network) -> AsyncIterator[FakeEngine]:
    """An engine whose agent knows its policy by an address."""
    engine = FakeEngine()
    who = ReplicaIdentity(replica_id="r", application="a", deployment="d", node_id="n", group=GroupKey(target="t"))
    policy = HttpPolicy(URL, token=lambda: TOKEN, transport=network)
    agent = ReplicaAgent(engine=engine, policy=policy, identity=who, watch=EngineWatch(), metrics=FakeMetrics())
    running = asyncio.create_task(agent.run())
    try:
        yield engine
        assert not running.done(), "the loop must survive everything"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_inv_4_whatever_is_wrong_with_the_policy_the_engine_keeps_its_settings_is_asked_on_and_hears_of_the_end(
    trouble: str,
) -> None:
    network = Network()
    async with running_service() as service, steered(network) as engine:
        await service.configure({"mode": "pin=3"})
        network.reached = httpx.ASGITransport(application_of(service))
        await asyncio.sleep(5.0)
        ran = engine.running
        assert ran is not None
        network.trouble, named = TROUBLES[trouble]
        await asyncio.sleep(1.0)
        engine.commands.clear()
        with capture_logs() as logs:
            await asyncio.sleep(3 * EXCHANGE_TIMEOUT_S)
        assert len(engine.commands) > 10, "the engine's loop goes on"
        assert [(command.issued, command.confirmed) for command in engine.commands] == [(None, None)] * len(engine.commands)
        assert engine.running == ran
        told = [entry["error"] for entry in logs if entry["event"] in TOLD]
        assert len(told) <= 1, "once"
        network.trouble = None
        await asyncio.sleep(EXCHANGE_TIMEOUT_S + MAX_BACKOFF_S)
        assert engine.running == ran or engine.running.is_newer_than(ran)
        assert engine.commands[-1].confirmed == engine.running
        with capture_logs() as logs:
            network.trouble = TROUBLES[trouble][0]
            await asyncio.sleep(2 * EXCHANGE_TIMEOUT_S)
        (told_again,) = [entry["error"] for entry in logs if entry["event"] in TOLD]
        assert named in told_again


async def test_each_kind_of_trouble_is_told_once_and_the_next_one_when_it_comes() -> None:
    network = Network()
    network.trouble = gone
    with capture_logs() as logs:
        async with steered(network):
            for trouble in ("unreachable", "wrong token", "garbage", "wrong token", "full", "silent"):
                network.trouble = TROUBLES[trouble][0]
                await asyncio.sleep(60.0)
    told = [entry["error"] for entry in logs if entry["event"] == "policy_unavailable"]
    expected = [TROUBLES[trouble][1] for trouble in ("unreachable", "wrong token", "garbage", "full", "silent")]
    assert [named in words for named, words in zip(expected, told, strict=True)] == [True] * 5


async def test_a_server_with_the_wrong_token_is_never_steered_and_says_so() -> None:
    network = Network()
    with capture_logs() as logs:
        async with running_service() as service, steered(network) as engine:
            network.reached = httpx.ASGITransport(application_of(service, SecretStr("another")))
            await asyncio.sleep(20.0)
            assert engine.running is None
            assert service.status().replicas == ()
    (told,) = [entry["error"] for entry in logs if entry["event"] == "policy_unavailable"]
    assert told == f"{URL}: wrong token (HTTP 401)"


@pytest.mark.parametrize("is_stored", [True, False])
async def test_inv_5_after_a_kill_settings_only_move_forward_and_those_of_an_older_policy_are_never_applied(
    is_stored: bool,
) -> None:
    network, store, ran = Network(), MemoryStore(), list[tuple[int, int]]()
    async with steered(network) as engine:
        for mode in ("pin=3", "off", "pin=1"):
            async with running_service(store if is_stored else MemoryStore()) as service:
                await service.configure({"mode": mode})
                network.reached, network.trouble = httpx.ASGITransport(application_of(service)), None
                await asyncio.sleep(20.0)
                assert engine.running is not None
                ran.append((engine.running.incarnation, engine.running.sequence))
                (shown,) = service.status().replicas
                assert shown.settings_confirmed, "whatever happened, the living policy is obeyed"
            network.trouble = gone
            await asyncio.sleep(3.0)
    assert ran == sorted(set(ran))
