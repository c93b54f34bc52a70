"""The client: one error, soon, whatever the actor does; and the actor found again (INV-4), in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from ray.exceptions import ActorDiedError, ActorUnavailableError

from nightjar.cluster.api.operations import STARTING_MODE, OperationError
from nightjar.cluster.client import PolicyClient, get_or_create_policy_actor
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.protocol import Replica, without_threads

pytestmark = pytest.mark.looptime

REPLY = ExchangeReply(incarnation=1).to_wire()


@pytest.fixture(autouse=True)
def _threads_are_immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


class FakeRay:
    """Hands out actors whose exchange runs through a script: bytes, an exception to raise, or seconds to hang."""

    def __init__(self, *script: bytes | Exception | float) -> None:
        self.script = list(script)
        self.look_ups: list[float] = []

    def resolve(self) -> Any:
        self.look_ups.append(asyncio.get_running_loop().time())
        return SimpleNamespace(exchange=SimpleNamespace(remote=self._exchange))

    async def _exchange(self, payload: bytes) -> bytes:
        step = self.script.pop(0) if self.script else REPLY
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
            return REPLY
        return step


async def test_the_handle_is_looked_up_once_while_it_works() -> None:
    cluster = FakeRay()
    client = PolicyClient(resolve=cluster.resolve)
    for _ in range(5):
        assert (await client.exchange(Replica().report(), 5.0)).incarnation == 1
    assert len(cluster.look_ups) == 1


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (ActorDiedError(), "ActorDiedError"),
        (ActorUnavailableError("restarting", None), "ActorUnavailableError"),
        (60.0, "did not answer within 5 s"),
        (RuntimeError("boom"), "RuntimeError: boom"),
    ],
)
async def test_every_failure_is_one_error_and_the_next_call_looks_the_actor_up_again(
    failure: Exception | float, named: str
) -> None:
    cluster = FakeRay(failure)
    client = PolicyClient(resolve=cluster.resolve)
    with pytest.raises(OperationError, match=named):
        await client.exchange(Replica().report(), 5.0)
    assert (await client.exchange(Replica().report(), 5.0)).incarnation == 1
    assert len(cluster.look_ups) == 2


async def test_an_answer_of_another_protocol_is_the_same_error() -> None:
    client = PolicyClient(resolve=FakeRay(b"\xff\xff").resolve)
    with pytest.raises(OperationError, match="ExchangeReply"):
        await client.exchange(Replica().report(), 5.0)


async def test_look_ups_of_an_absent_actor_back_off() -> None:
    attempts = 1100
    cluster = FakeRay(*[ActorDiedError() for _ in range(attempts)])
    client = PolicyClient(resolve=cluster.resolve)
    for _ in range(attempts):
        with pytest.raises(OperationError):
            await client.exchange(Replica().report(), 30.0)
    gaps = [later - earlier for earlier, later in zip(cluster.look_ups, cluster.look_ups[1:], strict=False)]
    assert gaps[0] <= 0.1
    assert all(2.5 <= gap <= 5.0 for gap in gaps[-5:])


async def test_a_success_ends_the_back_off() -> None:
    cluster = FakeRay(*[ActorDiedError() for _ in range(10)], REPLY, ActorDiedError())
    client = PolicyClient(resolve=cluster.resolve)
    for _ in range(10):
        with pytest.raises(OperationError):
            await client.exchange(Replica().report(), 30.0)
    await client.exchange(Replica().report(), 30.0)
    with pytest.raises(OperationError):
        await client.exchange(Replica().report(), 30.0)
    before_s = asyncio.get_running_loop().time()
    await client.exchange(Replica().report(), 30.0)
    assert asyncio.get_running_loop().time() - before_s <= 0.1


async def test_a_look_up_that_hangs_holds_callers_only_for_their_timeout_and_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_ups: list[float] = []

    async def hang(function: Callable[..., Any], *arguments: object) -> Any:
        look_ups.append(asyncio.get_running_loop().time())
        await asyncio.sleep(100.0)
        return FakeRay().resolve()

    monkeypatch.setattr(asyncio, "to_thread", hang)
    client = PolicyClient()
    while asyncio.get_running_loop().time() < 80:
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(OperationError, match="did not answer within 3 s"):
            await client.exchange(Replica().report(), 3.0)
        assert asyncio.get_running_loop().time() - before_s == pytest.approx(3.0)
    assert len(look_ups) == 1
    assert (await client.exchange(Replica().report(), 60.0)).incarnation == 1


async def test_calls_of_one_client_share_a_look_up() -> None:
    cluster = FakeRay()
    client = PolicyClient(resolve=cluster.resolve)
    await asyncio.gather(*(client.exchange(Replica().report(), 5.0) for _ in range(10)))
    assert len(cluster.look_ups) == 1


def test_without_ray_no_cluster_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(OperationError, match="not connected to a Ray cluster"):
        get_or_create_policy_actor()


async def test_a_ping_asks_for_what_costs_the_actor_nothing_and_an_actor_of_the_release_before_answers_as_well() -> None:
    asked: list[tuple[str, str]] = []

    async def starting_mode(replica_id: str, application: str) -> str:
        asked.append((replica_id, application))
        return "auto"

    client = PolicyClient(resolve=lambda: SimpleNamespace(starting_mode=SimpleNamespace(remote=starting_mode)))
    await client.call(STARTING_MODE, "", "")
    assert asked == [("", "")]
    with pytest.raises(OperationError):
        await PolicyClient(resolve=SimpleNamespace).call(STARTING_MODE, "", "")
