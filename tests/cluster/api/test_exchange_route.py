"""Reports over HTTP, both sides: who may report, what a wrong body moves, how many calls wait, and what each end is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from nightjar.cluster.api.access import EXCHANGE_TOKEN_VARIABLE, TokenError, configured_token
from nightjar.cluster.api.exchange_client import MEDIA_TYPE, HttpPolicy
from nightjar.cluster.api.exchange_route import add_exchange
from nightjar.cluster.api.operations import STARTING_MODE, Answer, Operation, OperationError, P
from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.cluster.policy_app import PolicyReplica
from nightjar.policy.wire.record import MAX_RECORD_BYTES
from nightjar.policy.wire.settings import ExchangeReply
from tests.cluster.over_http import TOKEN, URL, application_of, client_of, over_http
from tests.cluster.protocol import Replica, running_service, settled

pytestmark = pytest.mark.looptime

PATH = f"{URL}/nightjar/exchange"
BEARER = {"Authorization": f"Bearer {TOKEN.get_secret_value()}"}
AS_REPORT = {"Content-Type": MEDIA_TYPE}

Reply = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Network(httpx.AsyncBaseTransport):
    """What a request meets. `answer` may raise, hang, or answer anything."""

    def __init__(self, answer: Reply) -> None:
        self.answer = answer
        self.seen: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return await self.answer(request)


def answering(code: int, body: bytes) -> Reply:
    async def answer(_: httpx.Request) -> httpx.Response:
        async def stream() -> AsyncIterator[bytes]:
            yield body

        return httpx.Response(code, content=stream())

    return answer


async def refusal(client: HttpPolicy) -> tuple[int, str]:
    with pytest.raises(OperationError) as refused:
        await client.exchange(Replica().report(), 30.0)
    return int(refused.value.code), str(refused.value)


class Parked:
    """A policy whose calls wait until they are let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.three_wait = asyncio.Event()
        self.go = asyncio.Event()

    async def exchange(self, payload: bytes) -> bytes:
        self.waiting += 1
        if self.waiting == 3:
            self.three_wait.set()
        await self.go.wait()
        return ExchangeReply(incarnation=1).to_wire()

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        assert operation is STARTING_MODE
        return "shadow"  # type: ignore[return-value]


def application(policy: Parked, token: Callable[[], SecretStr | None], **limits: object) -> httpx.ASGITransport:
    api = create_policy_api(policy, configured_token)
    add_exchange(api, policy, policy.exchange, token, **limits)  # type: ignore[arg-type]
    whole = FastAPI()
    whole.mount("/nightjar", api)
    return httpx.ASGITransport(whole)


async def test_a_server_with_the_token_gets_its_settings_and_the_mode_it_starts_in() -> None:
    async with running_service() as service:
        await service.configure({"mode": "pin=2"})
        replica = Replica()
        await settled(over_http(service), replica)
        assert str(replica.mode) == "pin=2"
        assert await client_of(service).starting_mode("r1", "chat", 5.0) == "pin=2"
        await service.set_mode({"mode": "off", "scope": "replica", "name": "r1"})
        assert await client_of(service).starting_mode("r1", "chat", 5.0) == "off"


@pytest.mark.parametrize(
    ("token", "code", "named"),
    [
        (None, 401, "a token is needed: the server that reports needs the policy's NIGHTJAR_EXCHANGE_TOKEN"),
        (SecretStr("another"), 401, "wrong token"),
    ],
)
async def test_without_the_token_nothing_is_taken_and_both_calls_say_so(token: SecretStr | None, code: int, named: str) -> None:
    async with running_service() as service:
        client = client_of(service, token)
        assert await refusal(client) == (code, f"{URL}: {named} (HTTP {code})")
        with pytest.raises(OperationError, match=named):
            await client.starting_mode("r1", "chat", 5.0)
        status = service.status().policy
        assert (status.reports, status.refused_reports) == (0, 0)


def no_token() -> None:
    return None


def broken_token() -> SecretStr | None:
    raise TokenError("NIGHTJAR_EXCHANGE_TOKEN_FILE=/t: the token file is empty")


@pytest.mark.parametrize(("configured", "named"), [(no_token, "no token is configured"), (broken_token, "the token file is empty")])
async def test_where_no_usable_token_is_configured_nobody_may_report(
    configured: Callable[[], SecretStr | None], named: str
) -> None:
    policy = Parked()
    client = HttpPolicy(URL, token=lambda: TOKEN, transport=application(policy, configured))
    code, words = await refusal(client)
    assert (code, "takes no reports" in words, named in words) == (403, True, True)
    assert policy.waiting == 0


async def test_on_its_own_machine_a_policy_without_a_token_takes_reports_and_one_with_a_token_asks_for_it() -> None:
    for configured, code in ((no_token, 200), (lambda: TOKEN, 401)):
        policy = Parked()
        policy.go.set()
        async with httpx.AsyncClient(transport=application(policy, configured, is_open=True)) as client:
            answer = await client.post(PATH, content=Replica().report().to_wire(), headers=AS_REPORT)
            assert answer.status_code == code


@pytest.mark.parametrize(
    ("body", "headers", "code", "named"),
    [
        (b"", AS_REPORT, 422, "body: LoadReport: 0 bytes that are not msgpack"),
        (b"\xff" * 40, AS_REPORT, 422, "body: LoadReport"),
        (b"\x80", AS_REPORT, 422, "replica_id"),
        (b"\x91" * 1000 + b"\x01", AS_REPORT, 422, "body: LoadReport"),
        (b"x" * (MAX_RECORD_BYTES + 1), AS_REPORT, 413, f"body: more than the {MAX_RECORD_BYTES} bytes allowed"),
        (Replica().report().to_wire(), {}, 415, "a report is application/msgpack"),
        (Replica().report().to_wire(), {"Content-Type": "text/plain"}, 415, "Content-Type: 'text/plain'"),
    ],
)
async def test_inv_10_a_body_that_is_no_report_is_refused_in_words_and_moves_nothing(
    body: bytes, headers: dict[str, str], code: int, named: str
) -> None:
    async with running_service() as service:
        replica = Replica()
        await settled(over_http(service), replica)
        before = service.status()
        transport = httpx.ASGITransport(application_of(service))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.post(PATH, content=body, headers=BEARER | headers)
        assert (answer.status_code, named in answer.json()["detail"]) == (code, True)
        after = service.status()
        assert (after.replicas, after.policy.reports) == (before.replicas, before.policy.reports)


async def test_one_more_call_than_a_process_holds_is_told_when_to_come_again_and_the_next_after_one_ended_is_held() -> None:
    policy = Parked()
    transport = application(policy, lambda: TOKEN, most_calls=3)
    clients = [HttpPolicy(URL, token=lambda: TOKEN, transport=transport) for _ in range(4)]
    held = [asyncio.create_task(client.exchange(Replica().report(), 30.0)) for client in clients[:3]]
    await policy.three_wait.wait()
    code, words = await refusal(clients[3])
    assert code == 503
    assert "this policy holds 3 calls, which is all it holds; keep your settings and come again in 5 s" in words
    assert await clients[3].starting_mode("r4", "chat", 5.0) == "shadow", "what a server asks once is answered all the same"
    policy.go.set()
    await asyncio.gather(*held)
    assert (await clients[3].exchange(Replica().report(), 30.0)).incarnation == 1


async def test_a_clusters_policy_application_hands_reports_on_to_the_actor_and_keeps_from_it_what_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_service() as service:

        async def exchange_bytes(payload: bytes, timeout_s: float) -> bytes:
            return (await service.exchange(payload)).to_wire()

        replica = PolicyReplica.__new__(PolicyReplica)
        replica._policy = SimpleNamespace(call=service.call, exchange_bytes=exchange_bytes)  # type: ignore[assignment]
        whole = FastAPI()
        whole.mount("/nightjar", await replica.__serve_build_asgi_app__())
        transport = httpx.ASGITransport(whole)
        client = HttpPolicy(URL, token=lambda: TOKEN, transport=transport)
        monkeypatch.delenv(EXCHANGE_TOKEN_VARIABLE, raising=False)
        assert (await refusal(client))[0] == 403
        monkeypatch.setenv(EXCHANGE_TOKEN_VARIABLE, TOKEN.get_secret_value())
        assert (await client.exchange(Replica().report(), 30.0)).refused == ""
        async with httpx.AsyncClient(transport=transport) as stranger:
            answer = await stranger.post(PATH, content=b"\xff", headers=BEARER | AS_REPORT)
        assert answer.status_code == 422
        status = service.status().policy
        assert (status.reports, status.refused_reports) == (1, 0)


async def nobody(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed")


async def silence(_: httpx.Request) -> httpx.Response:
    await asyncio.sleep(1e6)
    raise AssertionError


@pytest.mark.parametrize(
    ("answer", "code", "named"),
    [
        (nobody, 503, f"nothing answers at {URL} (ConnectError: All connection attempts failed)"),
        (silence, 504, f"{URL} did not answer within 30 s"),
        (answering(200, b"<html>welcome</html>"), 502, f"{URL} answered with something else: ExchangeReply"),
        (answering(200, b""), 502, "answered with something else"),
        (answering(200, b"\xc1" * (2 * MAX_RECORD_BYTES)), 502, "allowed are at most"),
        (answering(404, b'{"detail": "Not Found"}'), 404, f"{PATH} answered 404: no policy there takes reports"),
        (answering(307, b""), 307, f"{PATH} answered 307: no Nightjar policy app there"),
        (answering(500, b"oops"), 500, f"{PATH} answered 500: no Nightjar policy app there"),
        (answering(503, b'{"detail": "come again"}'), 503, f"{URL}: come again (HTTP 503)"),
    ],
)
async def test_whatever_answers_or_does_not_is_one_error_in_words(answer: Reply, code: int, named: str) -> None:
    found, words = await refusal(HttpPolicy(URL, token=lambda: TOKEN, transport=Network(answer)))
    assert found == code
    assert named in words


async def test_the_token_is_read_once_and_anew_after_it_was_refused() -> None:
    read: list[str] = []

    def token() -> SecretStr:
        read.append("read")
        return SecretStr(f"token-{len(read)}")

    network = Network(answering(200, ExchangeReply(incarnation=1).to_wire()))
    client = HttpPolicy(URL, token=token, transport=network)
    for _ in range(3):
        await client.exchange(Replica().report(), 30.0)
    network.answer = answering(401, b'{"detail": "wrong token"}')
    await refusal(client)
    network.answer = answering(200, ExchangeReply(incarnation=1).to_wire())
    await client.exchange(Replica().report(), 30.0)
    assert [request.headers["Authorization"] for request in network.seen] == ["Bearer token-1"] * 4 + ["Bearer token-2"]


async def test_a_token_that_cannot_be_read_is_named_and_nothing_is_sent() -> None:
    network = Network(answering(200, b""))
    assert await refusal(HttpPolicy(URL, token=broken_token, transport=network)) == (
        401,
        "NIGHTJAR_EXCHANGE_TOKEN_FILE=/t: the token file is empty",
    )
    assert network.seen == []


@pytest.mark.parametrize("url", ["policy:8470", "ftp://policy", "http://me:s3cret@policy:8470"])
def test_what_is_no_address_or_holds_a_password_makes_no_client(url: str) -> None:
    with pytest.raises(OperationError) as refused:
        HttpPolicy(url)
    assert refused.value.code == 400
    assert "s3cret" not in str(refused.value)
