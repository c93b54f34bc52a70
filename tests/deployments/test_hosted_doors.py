"""Who gets through to a model of ray.serve.llm under Nightjar: its ingress asks for the key, its server answers named routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve.llm")
pytest.importorskip("vllm")

from fastapi import FastAPI
from ray import serve
from ray.llm._internal.serve.core.ingress import ingress as rays
from ray.serve.llm import LLMServingArgs

from nightjar.deployments.serve_llm import server
from nightjar.deployments.serve_llm.doors import ENDPOINTS, ONE_MODEL, OpenAiIngress, answer_named_routes
from tests.deployments.test_routes import vllms_app

KEY = "sesame"


def test_every_endpoint_of_rays_ingress_asks() -> None:
    assert set(ENDPOINTS) == rays.DEFAULT_ENDPOINTS.keys()


@pytest.fixture
async def ingress(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Ray's application around our ingress, with a replica that has one model, and no engine behind it."""
    app = rays.init()
    rays.make_fastapi_ingress(OpenAiIngress, app=app)
    card = rays.ModelCard(id="m", object="model", owned_by="us", permission=[], metadata={})
    replica = OpenAiIngress({"m": SimpleNamespace()}, {"m": card})
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(servable_object=replica))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        yield client


async def statuses(client: httpx.AsyncClient, **headers: str) -> set[int]:
    posts = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/score", "/tokenize", "/detokenize")
    answers = [await client.post(path, json={}, headers=headers) for path in posts]
    return {answer.status_code for answer in [*answers, await client.get("/v1/models", headers=headers)]}


async def test_without_the_key_no_route_of_the_ingress_answers(ingress: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    refused: tuple[dict[str, str], ...] = ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEY}"})
    for presented in refused:
        assert await statuses(ingress, **presented) == {401}
    assert (await ingress.get("/v1/models", headers={b"Authorization": b"Bearer \xff"})).status_code == 401


async def test_with_the_key_or_where_none_is_set_the_ingress_answers_as_rays_does(
    ingress: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 401 not in await statuses(ingress)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    assert 401 not in await statuses(ingress, Authorization=f"Bearer {KEY}")
    answer = await ingress.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert [model["id"] for model in answer.json()["data"]] == ["m"]
    assert (await ingress.get("/v1/models/m", headers={"Authorization": f"bearer {KEY}"})).json()["id"] == "m"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ray.serve.llm's builder is given."""
    given: list[Any] = []
    monkeypatch.setattr(server, "build_their_openai_app", given.append)
    return given


ARGUMENTS = {"llm_configs": [{"model_loading_config": {"model_id": "m"}, "accelerator_config": {"kind": "cpu"}}]}


@pytest.mark.parametrize(("direct", "is_ours"), [("0", True), ("1", False)])
def test_our_builder_puts_our_ingress_in_unless_there_is_none(
    direct: str, is_ours: bool, built: list[LLMServingArgs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING", direct)
    server.build_openai_app(ARGUMENTS)
    assert (built[0].ingress_cls_config.ingress_cls is OpenAiIngress) == is_ours


def test_an_ingress_of_the_users_own_stays(built: list[LLMServingArgs]) -> None:
    theirs = "ray.serve.llm.ingress:OpenAiIngress"
    server.build_openai_app({**ARGUMENTS, "ingress_cls_config": {"ingress_cls": theirs}})
    assert built[0].ingress_cls_config.ingress_cls is not OpenAiIngress


async def test_with_direct_streaming_a_server_answers_what_our_own_replicas_answer_and_what_was_named() -> None:
    app: FastAPI = vllms_app("generate")

    @app.get(ONE_MODEL)
    async def one(model: str) -> str:
        return model

    answer_named_routes(app, ("/version", "/sleep"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        closed = ("/invocations", "/tokenize", "/scale_elastic_ep", "/sleep", "/docs", "/metrics", "/v1/chat/completions/x")
        assert {(await client.post(path, json={})).status_code for path in closed} == {404}
        assert (await client.get("/v1/models/a/b")).json() == "a/b"
        assert (await client.get("/version")).status_code == 200
        assert (await client.post("/v1/completions", json={})).status_code != 404


async def test_a_closed_socket_is_closed_and_the_start_of_an_application_is_let_through() -> None:
    app = FastAPI()
    answer_named_routes(app, ())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.shutdown"} if sent else {"type": "lifespan.startup"}

    await app({"type": "websocket", "path": "/nowhere", "root_path": "", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close"}]
    sent.clear()
    await app({"type": "lifespan"}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.complete"
