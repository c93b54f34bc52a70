"""The HTTP API without Ray: who may write, what a refusal says, what an absent actor looks like."""

from collections.abc import Callable, Mapping

import httpx
import pytest
from pydantic import SecretStr

from nightjar.cluster.api_token import TokenError
from nightjar.cluster.overrides import ModeRequestError, parse_mode_request
from nightjar.cluster.policy_api import MAX_BODY_BYTES, PolicyUnreachableError, create_policy_api
from nightjar.policy.status import FleetStatus
from tests.cluster.fleets import some_fleet

TOKEN = "correct horse"


class FakePolicy:
    """Checks requests as the actor does, and remembers the good ones."""

    def __init__(self, *, reachable: bool = True) -> None:
        self.reachable = reachable
        self.requests: list[Mapping[str, object]] = []

    async def status(self) -> FleetStatus:
        self._answer()
        return some_fleet()

    async def set_mode(self, override: Mapping[str, object]) -> Mapping[str, object]:
        self._answer()
        try:
            parse_mode_request(override, {})
        except ModeRequestError as error:
            return {"override": None, "error": str(error)}
        self.requests.append(override)
        return {"override": dict(override), "error": ""}

    def _answer(self) -> None:
        if not self.reachable:
            raise PolicyUnreachableError("status: no answer within 10 s")


def configured() -> SecretStr | None:
    return SecretStr(TOKEN)


def client(policy: FakePolicy, token: Callable[[], SecretStr | None] = configured) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_policy_api(policy, token)), base_url="http://nightjar")


async def post(policy: FakePolicy, body: object, *, authorization: str | None = f"Bearer {TOKEN}") -> httpx.Response:
    async with client(policy) as api:
        return await api.post("/mode", json=body, headers={b"Authorization": authorization.encode()} if authorization else {})


async def test_status_is_open_and_is_the_record_of_the_policy() -> None:
    async with client(FakePolicy(), lambda: None) as api:
        answer = await api.get("/status")
    assert answer.status_code == 200
    assert FleetStatus.model_validate(answer.json()) == some_fleet()


async def test_a_mode_reaches_the_policy_and_its_answer_comes_back() -> None:
    policy = FakePolicy()
    request = {"mode": "pin=3", "for_s": 90.0, "reason": "test"}
    answer = await post(policy, request)
    assert (answer.status_code, answer.json()) == (200, {"override": request})
    assert policy.requests == [request]


async def test_without_a_configured_token_the_api_is_read_only() -> None:
    policy = FakePolicy()
    async with client(policy, lambda: None) as api:
        answer = await api.post("/mode", json={"mode": "off"}, headers={"Authorization": "Bearer anything"})
    assert answer.status_code == 403
    assert "read-only" in answer.json()["detail"]
    assert "NIGHTJAR_API_TOKEN" in answer.json()["detail"]
    assert not policy.requests


async def test_a_token_file_that_cannot_be_read_leaves_the_api_read_only() -> None:
    def unreadable() -> SecretStr | None:
        raise TokenError("NIGHTJAR_API_TOKEN_FILE=/secret: the token file is empty")

    async with client(FakePolicy(), unreadable) as api:
        answer = await api.post("/mode", json={"mode": "off"})
    assert answer.status_code == 403
    assert "/secret: the token file is empty" in answer.json()["detail"]


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic correct horse", TOKEN, "Bearer correct hors\xe9"]
)
async def test_a_missing_or_wrong_token_is_401_and_changes_nothing(authorization: str | None) -> None:
    policy = FakePolicy()
    answer = await post(policy, {"mode": "off"}, authorization=authorization)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert not policy.requests


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"mode": "fast"}, ["mode", "'fast'", "auto, shadow, off, pin=K", "default"]),
        ({"mode": "pin=99"}, ["mode", "'pin=99'", "0 to 32"]),
        ({}, ["mode", "auto, shadow, off, pin=K"]),
        ({"mode": "off", "modee": 1}, ["modee", "'1'"]),
        ({"mode": "off", "scope": "cluster"}, ["scope", "'cluster'", "'fleet', 'application' or 'replica'"]),
        ({"mode": "off", "scope": "replica"}, ["name", "scope replica"]),
        ({"mode": "off", "name": "smollm2"}, ["name", "'smollm2'", "scope fleet"]),
        ({"mode": "off", "for_s": -1}, ["for_s", "greater than 0", "'-1'"]),
        (["off"], ["body", "list", "object"]),
    ],
)
async def test_a_bad_value_is_one_line_naming_field_value_and_what_is_allowed(body: object, parts: list[str]) -> None:
    policy = FakePolicy()
    answer = await post(policy, body)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert "\n" not in detail
    assert [part for part in parts if part not in detail] == []
    assert not policy.requests


async def test_a_body_that_is_not_json_is_refused() -> None:
    async with client(FakePolicy()) as api:
        answer = await api.post("/mode", content=b"mode=off", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 422
    assert "body: not JSON" in answer.json()["detail"]


async def test_a_body_that_is_too_long_is_refused_before_it_is_read_whole() -> None:
    answer = await post(FakePolicy(), {"mode": "off", "reason": "x" * MAX_BODY_BYTES})
    assert answer.status_code == 413


async def test_the_token_is_looked_at_before_the_body() -> None:
    async with client(FakePolicy()) as api:
        answer = await api.post("/mode", content=b"x" * 2 * MAX_BODY_BYTES)
    assert answer.status_code == 401


@pytest.mark.parametrize(("method", "path"), [("GET", "/status"), ("POST", "/mode")])
async def test_an_absent_actor_is_503_and_says_that_serving_goes_on(method: str, path: str) -> None:
    async with client(FakePolicy(reachable=False)) as api:
        answer = await api.request(method, path, json={"mode": "off"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 503
    assert "no answer within 10 s" in answer.json()["detail"]
    assert "keep serving" in answer.json()["detail"]
