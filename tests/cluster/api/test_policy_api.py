"""The HTTP API without Ray: who may write, what a refusal says, what an absent actor looks like."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

import httpx
import pytest
from pydantic import SecretStr

from nightjar.cluster.api.access import TokenError
from nightjar.cluster.api.operations import (
    CANARY,
    EXPLAIN,
    FREEZE,
    IMPORT,
    LEARNED,
    MODE,
    STARTING_MODE,
    STATUS,
    Answer,
    CanaryAnswer,
    FreezeAnswer,
    ImportAnswer,
    ModeAnswer,
    Operation,
    OperationError,
    P,
    refused,
)
from nightjar.cluster.api.policy_api import MAX_BODY_BYTES, PAGE, create_policy_api, security_policy
from nightjar.cluster.operator.canary import parse_canary_request
from nightjar.cluster.operator.overrides import parse_mode_request
from nightjar.cluster.operator.state import parse_freeze_request
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES, LearnedFileError, chosen_groups, parse_learned_file, to_text
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.fleets import some_fleet
from tests.cluster.protocol import GROUP
from tests.cluster.seeds import some_file

TOKEN = "correct horse"
EXPLAINED = Explanation(
    replica_id="r1",
    application="chat",
    group_id=GROUP.group_id,
    at_s=1.0,
    report_age_s=0.5,
    summary="planner fleet: off",
    decided_by="planner fleet",
    mode=Mode.parse("auto"),
    planner="fleet",
    decode_batch_size=1,
    first_batch_size=1,
    last_batch_size=1,
    num_speculative_tokens=0,
    drafter_state=DrafterState.ACTIVE,
)
TOKEN_NEEDED = "a token is needed: `nightjar` sends its NIGHTJAR_API_TOKEN, others send Authorization: Bearer TOKEN"


class FakePolicy:
    """Checks requests as the actor does, and remembers the good ones."""

    def __init__(self, *, reachable: bool = True) -> None:
        self.reachable = reachable
        self.requests: list[Mapping[str, object]] = []
        self.imported: list[tuple[bytes, list[str]]] = []
        self.statuses = 0
        self.health = 0
        self._handlers = dict(
            (
                STARTING_MODE.done_by(self._starting_mode),
                STATUS.done_by(self._status),
                EXPLAIN.done_by(self._explain),
                LEARNED.done_by(lambda: to_text(some_file())),
                MODE.done_by(self._set_mode),
                FREEZE.done_by(self._freeze),
                CANARY.done_by(self._canary),
                IMPORT.done_by(self._import),
            )
        )

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        self.health += operation.name == STARTING_MODE.name
        self.statuses += operation.name == STATUS.name
        if not self.reachable:
            raise OperationError(HTTPStatus.SERVICE_UNAVAILABLE, "status: no answer within 10 s")
        answer: Answer = self._handlers[operation.name](*arguments)
        return answer

    def _starting_mode(self, replica_id: str, application: str) -> str:
        return "auto"

    def _status(self) -> FleetStatus:
        return some_fleet()

    def _explain(self, replica: str) -> Explanation:
        if replica != EXPLAINED.replica_id:
            raise OperationError(HTTPStatus.NOT_FOUND, f"no replica {replica!r}; there are r1")
        return EXPLAINED

    def _set_mode(self, values: Mapping[str, object]) -> ModeAnswer:
        parse_mode_request(values, {}, OperatorSettings())
        self.requests.append(values)
        return {"override": dict(values)}

    def _freeze(self, values: Mapping[str, object]) -> FreezeAnswer:
        parse_freeze_request(values)
        self.requests.append(values)
        return {"freeze": dict(values)}

    def _canary(self, values: Mapping[str, object]) -> CanaryAnswer:
        parse_canary_request(values)
        self.requests.append(values)
        return {"canary": dict(values)}

    def _import(self, content: bytes, group_ids: Sequence[str]) -> ImportAnswer:
        try:
            file = chosen_groups(parse_learned_file(content), group_ids)
        except LearnedFileError as error:
            raise refused(str(error)) from error
        self.imported.append((content, list(group_ids)))
        return {"groups": [{"group_id": group.key.group_id, "cells": len(group.cells), "replicas": 0} for group in file.groups]}


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


async def test_an_explanation_is_open_and_an_unknown_replica_is_404_naming_those_that_exist() -> None:
    async with client(FakePolicy(), lambda: None) as api:
        known, unknown = [await api.get("/explain", params={"replica": name}) for name in ("r1", "r9")]
    assert (known.status_code, known.json()) == (200, to_plain(EXPLAINED))
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "no replica 'r9'; there are r1"})


async def test_a_mode_reaches_the_policy_and_its_answer_comes_back() -> None:
    policy = FakePolicy()
    request = {"mode": "pin=3", "for_s": 90.0, "reason": "test"}
    answer = await post(policy, request)
    assert (answer.status_code, answer.json()) == (200, {"override": request})
    assert policy.requests == [request]


async def test_a_freeze_reaches_the_policy_with_the_token_alone_and_a_wrong_one_is_422() -> None:
    policy = FakePolicy()
    token = {"Authorization": f"Bearer {TOKEN}"}
    async with client(policy) as api:
        good = await api.post("/freeze", json={"frozen": True, "for_s": 60.0}, headers=token)
        wrong = await api.post("/freeze", json={"frozen": 1}, headers=token)
        nobodys = await api.post("/freeze", json={"frozen": True})
    assert (good.status_code, good.json()) == (200, {"freeze": {"frozen": True, "for_s": 60.0}})
    assert (wrong.status_code, nobodys.status_code) == (422, 401)
    assert "frozen" in wrong.json()["detail"]
    assert policy.requests == [{"frozen": True, "for_s": 60.0}]


async def test_a_canary_reaches_the_policy_with_the_token_alone_and_a_wrong_one_is_422() -> None:
    policy = FakePolicy()
    token = {"Authorization": f"Bearer {TOKEN}"}
    body = {"do": "begin", "mode": "pin=3", "share": 0.25}
    async with client(policy) as api:
        good = await api.post("/canary", json=body, headers=token)
        wrong = await api.post("/canary", json={"mode": "pin=3"}, headers=token)
        nobodys = await api.post("/canary", json=body)
    assert (good.status_code, good.json()) == (200, {"canary": body})
    assert (wrong.status_code, nobodys.status_code) == (422, 401)
    assert wrong.json()["detail"].startswith("share: missing")
    assert policy.requests == [body]


async def test_without_a_configured_token_the_api_is_read_only() -> None:
    policy = FakePolicy()
    async with client(policy, lambda: None) as api:
        answer = await api.post("/mode", json={"mode": "off"}, headers={"Authorization": "Bearer anything"})
    assert answer.status_code == 403
    assert "read-only" in answer.json()["detail"]
    assert "under `nightjar run`: end it, export NIGHTJAR_API_TOKEN, start it again" in answer.json()["detail"]
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
    assert answer.json()["detail"] in ("wrong token", TOKEN_NEEDED)
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


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/status"), ("GET", "/explain"), ("POST", "/mode"), ("GET", "/learned"), ("POST", "/learned")]
)
async def test_an_absent_actor_is_503_and_says_that_serving_goes_on(method: str, path: str) -> None:
    async with client(FakePolicy(reachable=False)) as api:
        answer = await api.request(method, path, json={"mode": "off"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 503
    assert "no answer within 10 s" in answer.json()["detail"]
    assert "keep serving" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/nightjar", "/nightjar/"])
async def test_the_page_is_open_below_any_prefix_and_may_run_nothing_but_itself(path: str) -> None:
    transport = httpx.ASGITransport(create_policy_api(FakePolicy(reachable=False), lambda: None), root_path="/nightjar")
    async with httpx.AsyncClient(transport=transport, base_url="http://nightjar") as api:
        answer = await api.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    directives = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(directives)
    assert [directive.split("-")[0] for directive in directives if "'sha256-" in directive] == ["script", "style"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_the_page_names_no_address_outside_itself() -> None:
    assert re.findall(r"\w+://|\bsrc=|@import|url\(", PAGE) == []
    assert re.findall(r'href="([^"]*)"', PAGE) == ["data:,"]


def test_the_page_writes_no_markup_and_no_inline_style_from_its_script() -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bstyle=|\bon\w+=", PAGE) == []


@pytest.mark.parametrize("page", ["<style></style>", "<style></style><script></script><script></script>"])
def test_a_page_without_exactly_one_script_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="<script> elements, exactly one is allowed"):
        security_policy(page)


async def post_learned(policy: FakePolicy, content: bytes, *, token: str = TOKEN, group: str = "") -> httpx.Response:
    async with client(policy) as api:
        headers = {"Authorization": f"Bearer {token}"}
        return await api.post("/learned", content=content, headers=headers, params={"group": group} if group else {})


async def test_what_was_learned_is_open_and_is_the_file() -> None:
    async with client(FakePolicy(), lambda: None) as api:
        answer = await api.get("/learned")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert parse_learned_file(answer.content) == some_file()


async def test_a_learned_file_and_the_groups_that_were_named_reach_the_policy() -> None:
    policy, content = FakePolicy(), to_text(some_file())
    answer = await post_learned(policy, content, group=GROUP.group_id)
    assert answer.json() == {"groups": [{"group_id": GROUP.group_id, "cells": 30, "replicas": 0}]}
    assert policy.imported == [(content, [GROUP.group_id])]


async def test_importing_needs_the_token_and_a_file_that_can_be_used() -> None:
    policy, content = FakePolicy(), to_text(some_file())
    assert (await post_learned(policy, content, token="wrong")).status_code == 401
    cut = await post_learned(policy, content[:-30])
    assert (cut.status_code, cut.json()["detail"][:8]) == (422, "not JSON")
    unknown = await post_learned(policy, content, group="other")
    assert (unknown.status_code, "is not in the file" in unknown.json()["detail"]) == (422, True)
    assert not policy.imported


async def test_a_learned_file_may_be_large_but_not_endless() -> None:
    assert (await post_learned(FakePolicy(), b" " * MAX_FILE_BYTES)).status_code == 422
    assert (await post_learned(FakePolicy(), b" " * (MAX_FILE_BYTES + 1))).status_code == 413


async def test_a_body_that_is_nested_without_end_is_refused() -> None:
    async with client(FakePolicy()) as api:
        answer = await api.post("/mode", content=b"[" * MAX_BODY_BYTES, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 422


READER = "to read"
READS = ("/", "/status", "/explain?replica=r1", "/learned")


def closed_client(readers: Callable[[], tuple[SecretStr, ...] | None]) -> httpx.AsyncClient:
    api = create_policy_api(FakePolicy(), configured, readers)
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://nightjar")


def both_tokens() -> tuple[SecretStr, ...]:
    return SecretStr(READER), SecretStr(TOKEN)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer wrong", "Bearer ", basic("wrong"), "Basic !", "Basic /w==", READER],
)
async def test_where_readers_need_a_token_nobody_reads_without_one(path: str, authorization: str) -> None:
    async with closed_client(both_tokens) as api:
        answer = await api.get(path, headers={"Authorization": authorization} if authorization else {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic "), "so that a browser asks for it"
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("authorization", [f"Bearer {READER}", f"Bearer {TOKEN}", basic(READER), basic(TOKEN)])
async def test_the_read_token_and_the_one_that_writes_read_as_bearer_and_as_password(path: str, authorization: str) -> None:
    async with closed_client(both_tokens) as api:
        answer = await api.get(path, headers={"Authorization": authorization})
    assert answer.status_code == 200


async def test_a_read_token_does_not_write_and_neither_does_a_password_that_a_browser_sends_by_itself() -> None:
    async with closed_client(both_tokens) as api:
        answers = [
            await api.post("/mode", json={"mode": "off"}, headers={"Authorization": authorization})
            for authorization in (f"Bearer {READER}", basic(TOKEN))
        ]
    assert [answer.status_code for answer in answers] == [401, 401]


def no_tokens() -> tuple[SecretStr, ...]:
    return ()


def broken_tokens() -> tuple[SecretStr, ...]:
    raise TokenError("NIGHTJAR_API_READ_TOKEN_FILE=/secret: the token file is empty")


@pytest.mark.parametrize(
    ("readers", "words"), [(no_tokens, "none is configured"), (broken_tokens, "/secret: the token file is empty")]
)
async def test_where_the_readers_token_is_missing_or_broken_nobody_reads(
    readers: Callable[[], tuple[SecretStr, ...] | None], words: str
) -> None:
    async with closed_client(readers) as api:
        answers = [await api.get(path, headers={"Authorization": f"Bearer {TOKEN}"}) for path in READS]
        health = await api.get("/health")
    assert {answer.status_code for answer in answers} == {403}
    assert all(answer.json()["detail"].startswith("closed: ") and words in answer.json()["detail"] for answer in answers)
    assert (health.status_code, health.json()) == (200, {"policy": "answers"})


async def test_health_says_when_the_policy_does_not_answer() -> None:
    policy = FakePolicy()
    policy.reachable = False
    async with client(policy) as api:
        assert (await api.get("/health")).status_code == 503
