"""What a replica answers of vLLM's HTTP routes: the OpenAI ones, what was named, and nothing that manages an engine."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import httpx
import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI

from nightjar.deployments.engine.start.hooks import moved
from nightjar.deployments.routes import BY_NAME, MANAGEMENT, SERVED, absent_routes, close_other_routes

DEVELOPERS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_TORCH_PROFILER_DIR": "/nowhere"}
TASKS = (
    ("generate",),
    ("embed", "classify", "score", "token_embed"),
    ("transcription", "generate", "realtime"),
)


def vllms_app(*tasks: str) -> FastAPI:
    """vLLM's application for a model that can do `tasks`, without an engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.app import build_app

        args = argparse.Namespace(**(vars(moved("FrontendArgs")()) | vars(AsyncEngineArgs(model="m"))))
        app: FastAPI = build_app(args, tasks, None)
    return app


def paths(app: FastAPI) -> set[str]:
    return {getattr(route, "path", "") for route in app.router.routes}


@pytest.fixture(params=TASKS, ids=lambda tasks: tasks[0])
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """With every route that an environment can open."""
    for name, value in DEVELOPERS.items():
        monkeypatch.setenv(name, value)
    return vllms_app(*request.param)


def test_each_route_of_vllm_is_known_as_served_as_named_or_as_management(app: FastAPI) -> None:
    assert paths(app) <= SERVED | BY_NAME | MANAGEMENT
    assert len(SERVED | BY_NAME | MANAGEMENT) == len(SERVED) + len(BY_NAME) + len(MANAGEMENT), "no route is two things"


def test_without_a_word_of_the_operator_only_openais_routes_and_health_are_answered(app: FastAPI) -> None:
    before = paths(app)
    closed = close_other_routes(app, ())
    assert paths(app) == before & SERVED
    assert set(closed) == before - SERVED
    assert {"/sleep", "/collective_rpc"} <= set(closed), "the environment opened them"


def test_what_was_named_is_answered_and_a_route_that_manages_is_not_even_then() -> None:
    app = vllms_app("generate")
    close_other_routes(app, ("/metrics", "/invocations", "/scale_elastic_ep", "/of_a_later_vllm"))
    assert {"/metrics", "/invocations"} <= paths(app)
    assert "/scale_elastic_ep" not in paths(app)


async def test_a_closed_route_is_vllms_own_404() -> None:
    app = vllms_app("generate")
    close_other_routes(app, ())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        answers = [await client.post(path, json={}) for path in ("/invocations", "/scale_elastic_ep", "/no/such/path")]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1


def test_a_named_route_that_vllm_does_not_have_is_told(app: FastAPI) -> None:
    assert absent_routes(app, ("/metricz", "/metrics", "/tokenize")) == ("/metricz",)


def test_each_route_that_may_be_named_is_one_of_vllms() -> None:
    """`nightjar check` tells a misspelt one by this list. Some exist for models of other tasks: those are read in the source."""
    import vllm

    answered = set().union(*(paths(vllms_app(*tasks)) for tasks in TASKS))
    source = "".join(path.read_text(encoding="utf-8") for path in (Path(vllm.__file__).parent / "entrypoints").rglob("*.py"))
    assert {path for path in BY_NAME | SERVED if path not in answered and f'"{path}"' not in source} == set()
