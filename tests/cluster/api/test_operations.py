"""The table of operations: what it says is so everywhere, and actors and applications of the release before are understood."""

from __future__ import annotations

import json
import pickle
import pickletools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.cluster.api.operations import (
    EXPLAIN,
    IMPORT,
    MODE,
    OPERATIONS,
    OperationError,
)
from nightjar.cluster.storage.learned_file import to_text
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.protocol import Replica, refusal, running_service, settled, without_threads
from tests.cluster.seeds import some_file

pytest.importorskip("ray")
from ray import cloudpickle
from ray.actor import _modify_class

from nightjar.cluster.client import PolicyClient
from nightjar.cluster.policy_actor import PolicyActor
from nightjar.cluster.service.policy_service import PolicyService


def test_an_operation_has_a_route_of_its_own_or_none() -> None:
    routes = [(operation.route.method, operation.route.path) for operation in OPERATIONS if operation.route is not None]
    assert len({*routes}) == len(routes)


@pytest.mark.parametrize(
    "values",
    [{"override": None, "outlives": {"head": True, "upgrade": False}}, {"override": {"mode": "off"}}],
    ids=["taken back", "of an older release"],
)
def test_an_answer_is_the_same_behind_the_http_api(values: Mapping[str, object]) -> None:
    assert MODE.from_body(MODE.to_body(values)) == values


@pytest.mark.parametrize(
    ("operation", "body", "said"),
    [
        (MODE, b"<html>", "the answer is no JSON; is this Nightjar?"),
        (MODE, b"[" * 10_000, "the answer is no JSON; is this Nightjar?"),
        (MODE, b"[]", "the answer is no JSON object; is this Nightjar?"),
        (IMPORT, b"{}", "the answer names no groups; is this Nightjar?"),
        (EXPLAIN, b"{}", "the answer is no explanation of this version of Nightjar: replica_id: Field required"),
    ],
)
def test_a_body_of_something_else_is_said_to_be_none(operation: Any, body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match="the answer") as error:
        operation.from_body(body)
    assert str(error.value).startswith(said)


def actor_of(service: PolicyService) -> Any:
    """The actor, without the Ray around it."""
    actor = object.__new__(PolicyActor)
    actor._service = service
    return actor


def test_of_the_actors_class_ray_stores_the_name_of_one_module() -> None:
    """Ray hands an actor's class to whoever looks the actor up: a release that moved the module could not read it."""
    stored = cloudpickle.dumps(_modify_class(PolicyActor))
    texts = {argument for _, argument, _ in pickletools.genops(stored) if isinstance(argument, str)}
    assert {text for text in texts if text.startswith("nightjar.")} == {"nightjar.cluster.policy_actor"}


@pytest.mark.looptime
async def test_the_actor_answers_the_calls_of_applications_of_the_release_before(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    async with running_service() as service:
        await settled(service, Replica())
        actor = actor_of(service)
        assert await actor.starting_mode("r2", "chat") == "shadow"
        assert (await actor.configure({"mode": "auto"}))["settings"]["mode"] == "auto"
        assert "dwel_steps" in (await actor.configure({"dwel_steps": 4}))["error"]
        assert (await actor.set_mode({"mode": "off"}))["override"]["mode"] == "off"
        assert "pin=K" in (await actor.set_mode({"mode": "fast"}))["error"]
        assert (await actor.freeze({"frozen": False}))["freeze"] is None
        assert "share" in (await actor.canary({"mode": "pin=3"}))["error"]
        assert FleetStatus.from_wire(await actor.status()).overrides[0].scope == "fleet"
        assert Explanation.model_validate((await actor.explain("r1"))["explanation"]).replica_id == "r1"
        assert (await actor.explain("r7"))["error"] == "no replica 'r7'; there are r1"
        assert json.loads(await actor.learned())["format"] == "nightjar-learned"
        assert "not JSON" in (await actor.import_learned(b"{", []))["error"]


async def test_answers_of_an_actor_of_the_release_before_are_understood() -> None:
    answers: list[dict[str, object]] = [{"override": None, "error": ""}, {"override": None, "error": "mode: missing"}]

    async def set_mode(values: dict[str, object]) -> dict[str, object]:
        return answers.pop(0)

    async def explain(replica: str) -> dict[str, object]:
        return {"explanation": None, "error": f"no replica {replica!r}"}

    handle = SimpleNamespace(set_mode=SimpleNamespace(remote=set_mode), explain=SimpleNamespace(remote=explain))
    client = PolicyClient(resolve=lambda: handle)
    assert await client.call(MODE, {"mode": "default"}) == {"override": None}
    assert await refusal(client.call(MODE, {"mode": "default"})) == "mode: missing"
    with pytest.raises(OperationError) as unknown:
        await client.call(EXPLAIN, "r7")
    assert (unknown.value.code, str(unknown.value)) == (404, "no replica 'r7'")


@pytest.mark.looptime
async def test_a_file_goes_in_and_out_through_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    async with running_service() as service:
        answer = await service.call(IMPORT, to_text(some_file()), ())
        assert [group["cells"] for group in answer["groups"]] == [30]
        assert "not in the file" in await refusal(service.call(IMPORT, to_text(some_file()), ["other"]))


def test_the_error_of_an_operation_is_itself_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(OperationError(503, "no policy answers")))
    assert (type(error), error.code, str(error)) == (OperationError, 503, "no policy answers")
