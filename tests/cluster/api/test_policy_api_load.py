"""However often health and status are asked for, the policy actor hears of it once a second, and a write is not kept waiting."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from nightjar.cluster.api.operations import STATUS
from nightjar.cluster.api.policy_api import KEPT_S, STALE_S, Kept, create_policy_api
from tests.cluster.api.test_policy_api import TOKEN, FakePolicy, client

pytestmark = pytest.mark.looptime


async def test_health_asks_the_actor_once_a_second_whoever_asks_and_never_for_a_status() -> None:
    policy = FakePolicy()
    async with client(policy) as api:
        answers = [await api.get("/health") for _ in range(50)]
        assert policy.health == 1
        await asyncio.sleep(KEPT_S)
        answers += await asyncio.gather(*(api.get("/health") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert (policy.health, policy.statuses) == (2, 0)


async def test_an_actor_that_does_not_answer_is_not_asked_by_everybody_and_is_heard_again_within_a_second() -> None:
    policy = FakePolicy(reachable=False)
    async with client(policy) as api:
        answers = await asyncio.gather(*(api.get("/health") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {503}
        assert policy.health == 1
        policy.reachable = True
        assert (await api.get("/health")).status_code == 503
        await asyncio.sleep(KEPT_S)
        assert (await api.get("/health")).status_code == 200


async def test_a_status_is_built_once_a_second_and_after_every_write() -> None:
    policy = FakePolicy()
    token = {"Authorization": f"Bearer {TOKEN}"}
    async with client(policy) as api:
        first, second = [await api.get("/status") for _ in range(2)]
        assert (policy.statuses, first.content) == (1, second.content)
        for path, body in (("/mode", {"mode": "off"}), ("/freeze", {"frozen": True}), ("/canary", {"do": "end"})):
            before = policy.statuses
            assert (await api.post(path, json=body, headers=token)).status_code == 200
            await api.get("/status")
            assert policy.statuses == before + 1, "no status from before a write is given after it"
        await asyncio.sleep(KEPT_S)
        await api.get("/status")
        assert policy.statuses == 5


async def test_a_write_does_not_wait_for_those_who_wait_for_a_status() -> None:
    class Slow(FakePolicy):
        async def call(self, operation, *arguments, **_):  # type: ignore[no-untyped-def]
            await asyncio.sleep(5.0 if operation is STATUS else 0.0)
            return await super().call(operation, *arguments)

    policy = Slow()
    async with client(policy) as api:
        asking = [asyncio.create_task(api.get("/status")) for _ in range(100)]
        await asyncio.sleep(0.1)
        began_s = asyncio.get_running_loop().time()
        answer = await api.post("/mode", json={"mode": "off"}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert (answer.status_code, asyncio.get_running_loop().time() - began_s) == (200, 0.0)
        answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert policy.statuses == 1


async def test_while_the_actor_is_busy_nobody_waits_long_for_its_health_and_one_that_stays_silent_is_told() -> None:
    class Busy(FakePolicy):
        busy_s = 0.0

        async def call(self, operation, *arguments, **_):  # type: ignore[no-untyped-def]
            await asyncio.sleep(self.busy_s)
            if self.busy_s > STALE_S:
                self.reachable = False
            return await super().call(operation, *arguments)

    policy, loop = Busy(), asyncio.get_running_loop()
    async with client(policy) as api:
        assert (await api.get("/health")).status_code == 200
        policy.busy_s = STALE_S + 0.5
        seen = []
        for _ in range(9):
            await asyncio.sleep(1.0)
            began_s = loop.time()
            seen.append(((await api.get("/health")).status_code, round(loop.time() - began_s, 3)))
    assert seen[:2] == [(200, KEPT_S), (200, 0.0)], "it waits for a second, and not again for an answer that is late already"
    assert [status for status, _ in seen] == [200] * 8 + [503]


async def test_a_caller_who_hangs_up_ends_the_answer_for_nobody_else() -> None:
    asked = []

    async def slowly() -> int:
        asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        return len(asked)

    kept = Kept(slowly)
    gone, stays = asyncio.create_task(kept()), asyncio.create_task(kept())
    await asyncio.sleep(0.5)
    gone.cancel()
    assert await stays == 1
    assert len(asked) == 1


async def test_a_status_is_the_same_document_as_before() -> None:
    policy = FakePolicy()
    transport = httpx.ASGITransport(create_policy_api(policy, lambda: None))
    async with httpx.AsyncClient(transport=transport, base_url="http://nightjar") as api:
        answer = await api.get("/status")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == (await policy.call(STATUS)).model_dump(mode="json", exclude_none=True)
