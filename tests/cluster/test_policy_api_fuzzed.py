"""Whatever is sent to the operator's API, it answers in a line: no server error, and nothing is written or read without a token.

schemathesis draws paths' parameters, headers and bodies from the API's own description (with the bodies that it does not describe);
seeded, so that a run that fails fails again.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from nightjar.cluster.policy_api import create_policy_api
from tests.cluster.test_policy_api import READER, TOKEN, FakePolicy, both_tokens, configured

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
