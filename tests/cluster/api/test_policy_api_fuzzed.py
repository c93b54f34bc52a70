"""Whatever is sent to the operator's API, it answers in a line: no server error, and nothing is written or read without a token.

schemathesis draws paths' parameters, headers and bodies from the API's own description (with the bodies that it does not describe).
What no such description holds is sent as bytes to the app itself, with a real policy behind it: header values that are no text,
halves of surrogate pairs, nesting, truncated bodies. Seeded, so that a run that fails fails again.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.cluster.storage.learned_file import to_text
from tests.cluster.api.test_policy_api import READER, TOKEN, FakePolicy, both_tokens, configured
from tests.cluster.protocol import Replica, running_service, settled, without_threads
from tests.cluster.seeds import some_file

pytestmark = pytest.mark.filterwarnings("ignore")
MODE = {
    "type": "object",
    "required": ["mode"],
    "additionalProperties": False,
    "properties": {
        "mode": {"enum": ["auto", "off", "shadow", "pin=3", "pin=99", "default", "", 0]},
        "scope": {"enum": ["fleet", "application", "replica", "galaxy"]},
        "name": {"type": "string"},
        "for_s": {"type": "number"},
        "reason": {"type": "string"},
    },
}
FREEZE = {
    "type": "object",
    "required": ["frozen"],
    "properties": {"frozen": {"type": "boolean"}, "for_s": {"type": "number"}, "reason": {"type": "string"}},
}
CANARY = {
    "anyOf": [
        {
            "type": "object",
            "required": ["do"],
            "additionalProperties": False,
            "properties": {"do": {"enum": ["end", "promote", ""]}, "reason": {"type": "string"}},
        },
        {
            "type": "object",
            "required": ["mode", "share"],
            "additionalProperties": False,
            "properties": {
                "mode": {"enum": ["auto", "off", "pin=3", "pin=99", "default"]},
                "share": {"enum": [0.25, 0.5, 0, 7]},
                "application": {"type": "string"},
                "settings": {"type": "object"},
                "block_s": {"type": "number"},
            },
        },
    ]
}
BODIES: dict[str, dict[str, Any]] = {"/mode": MODE, "/freeze": FREEZE, "/canary": CANARY, "/learned": {"type": "object"}}
EVERYTHING = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
OPERATIONS = (
    "GET /",
    "GET /status",
    "GET /explain",
    "GET /learned",
    "GET /health",
    "POST /learned",
    "POST /mode",
    "POST /freeze",
    "POST /canary",
)


def described(policy: FakePolicy) -> Any:
    """The API with the bodies that its writes take."""
    api = create_policy_api(policy, configured, both_tokens)
    raw = api.openapi()
    for path, schema in BODIES.items():
        raw["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    loaded = schemathesis.openapi.from_dict(raw)
    loaded.app = api
    return loaded


def operation(policy: FakePolicy, label: str) -> Any:
    found = {result.ok().label: result.ok() for result in described(policy).get_all_operations()}
    return found[label]


def test_every_path_of_the_api_is_among_those_that_are_tried() -> None:
    labels = {result.ok().label for result in described(FakePolicy()).get_all_operations()}
    assert labels - {"GET "} == set(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("token", [TOKEN, READER])
def test_with_a_token_anything_is_answered_without_a_server_error(label: str, token: str) -> None:
    policy = FakePolicy()
    asked = operation(policy, label)

    @EVERYTHING
    @given(case=asked.as_strategy())
    def answers(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code < 500
        assert token == TOKEN or label.startswith("GET") or answer.status_code == 401

    answers()
    is_write = label in {"POST /mode", "POST /freeze", "POST /canary"}
    assert bool(policy.requests) == (is_write and token == TOKEN), "good requests are among what was sent"


@pytest.mark.parametrize("label", OPERATIONS)
def test_without_a_token_nothing_is_written_and_nothing_but_health_is_read(label: str) -> None:
    policy = FakePolicy()
    asked = operation(policy, label)

    @EVERYTHING
    @given(case=asked.as_strategy())
    def refuses(case: Any) -> None:
        assert case.call().status_code == (200 if label == "GET /health" else 401)

    refuses()
    assert not policy.requests
    assert not policy.imported


Headers = Sequence[tuple[bytes, bytes]]


async def ask(api: Any, label: str, query: bytes = b"", headers: Headers = (), body: bytes = b"", *, is_cut: bool = False) -> int:
    """The status of the answer to a request of these bytes; with `is_cut` the client hangs up before the body's end."""
    method, _, path = label.partition(" ")
    pieces: list[Mapping[str, object]] = [{"type": "http.request", "body": body, "more_body": is_cut}, {"type": "http.disconnect"}]
    statuses: list[int] = []

    async def receive() -> Mapping[str, object]:
        return pieces.pop(0)

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await api(scope, receive, send)
    (status,) = statuses
    return status


def refused(api: Any, headers: Headers, *, beside: str = "") -> set[int]:
    """What all routes answer, but that one."""

    async def ask_all() -> set[int]:
        return {await ask(api, label, headers=headers) for label in OPERATIONS if label != beside}

    return asyncio.run(ask_all())


CREDENTIALS = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(lambda secret: b"Basic " + secret),
    st.binary(max_size=40).map(lambda secret: b"Bearer " + secret),
    st.binary(max_size=40).map(lambda secret: b"Basic " + base64.b64encode(secret)),
    st.binary(max_size=40).map(lambda secret: b"Basic " + base64.b64encode(b"anybody:" + secret)),
)


@EVERYTHING
@example(b"Basic \xff")
@example("Basic \u00e9".encode())
@given(CREDENTIALS)
def test_credentials_of_any_bytes_are_a_wrong_token_on_every_route(credentials: bytes) -> None:
    api = create_policy_api(FakePolicy(), configured, both_tokens)
    assert refused(api, [(b"authorization", credentials)], beside="GET /health") == {401}


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"content-type", b"content-length", b"cookie", b"accept", b"origin", b"x-forwarded-for"]),
        st.binary(max_size=60),
    ),
    max_size=4,
)
ANY_TEXT = st.text(st.characters(categories=["Cs", "L", "N", "P", "Zs", "Cc"]), max_size=12)
"""Halves of surrogate pairs among it, which JSON can spell and UTF-8 cannot."""
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from([*BODIES["/mode"]["properties"], *FREEZE["properties"], "do", "share", "application", "settings", "about"])
WORDS = st.sampled_from(
    ["off", "auto", "pin=3", "default", "fleet", "replica", "application", "begin", "end", "promote", 0.5, True]
)
OBJECTS = st.dictionaries(FIELDS | ANY_TEXT, WORDS | ANY_JSON, max_size=6).map(lambda values: json.dumps(values).encode())
BODIES_OF_BYTES = st.one_of(st.binary(max_size=200), ANY_JSON.map(lambda value: json.dumps(value).encode()), OBJECTS)
MEGABYTE: Final = 1 << 20


@pytest.mark.looptime
@pytest.mark.parametrize("label", [*OPERATIONS, "GET /status/", "POST /health", "GET /none", "PATCH /mode"])
async def test_any_bytes_in_query_headers_and_body_are_answered_by_a_real_policy_without_a_server_error(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    async with running_service() as service:
        await settled(service, Replica("r1"), Replica("r2"))
        api = create_policy_api(service, configured, both_tokens)
        token = [(b"authorization", f"Bearer {TOKEN}".encode())]
        drawn: list[tuple[bytes, Headers, bytes, bool]] = []

        @settings(EVERYTHING, max_examples=60)
        @given(st.binary(max_size=40), HEADERS, BODIES_OF_BYTES, st.booleans())
        def draw(query: bytes, headers: Headers, body: bytes, is_cut: bool) -> None:
            drawn.append((query, headers, body, is_cut))

        draw()
        drawn += [
            (b"replica=%ed%a0%80&group=%ff", [], b'{"do": "begin", "share": 0.5, "settings": {"\\ud800": 1}}', False),
            (b"", [], b"[" * MEGABYTE, False),
            (b"", [], b'{"a":' * (MEGABYTE // 5), False),
            (b"", [], b'{"mode":' * 900 + b"1" + b"}" * 900, False),
            (b"", [], b'{"for_s": ' + b"9" * 5000 + b"}", False),
            (b"", [], to_text(some_file()).replace(b'"about"', b'"\\ud800"'), False),
        ]
        for query, headers, body, is_cut in drawn:
            assert await ask(api, label, query, [*token, *headers], body, is_cut=is_cut) < 500, (query, headers, body, is_cut)


async def test_a_body_that_is_nested_deeper_than_the_actor_could_be_handed_is_refused_in_a_line() -> None:
    policy = FakePolicy()
    api = create_policy_api(policy, configured, both_tokens)
    token = [(b"authorization", f"Bearer {TOKEN}".encode())]
    deep = b'{"do": "begin", "mode": "off", "share": 0.5, "settings": ' + b'{"a":' * 9 + b"1" + b"}" * 9 + b"}"
    for label in ("POST /mode", "POST /freeze", "POST /canary"):
        assert await ask(api, label, headers=token, body=deep) == 422
    assert not policy.requests
