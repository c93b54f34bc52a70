"""A server that is to be steered: whatever of ours fails, vLLM serves, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from structlog.testing import capture_logs

from nightjar.cluster.api.operations import MODE, STARTING_MODE, Operation, OperationError
from nightjar.cluster.telemetry.metrics import Family
from nightjar.cluster.telemetry.prometheus import PrometheusPage
from nightjar.deployments.engine.engine_folder import EngineFolder, make_engine_folder
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.plain_vllm import server as under_test
from nightjar.deployments.plain_vllm.server import Prepared, SteeredServer, host_name, node_name
from nightjar.policy.wire.report import GroupKey

STEERED = EngineArguments({"scheduler_cls": "ours"}, "draft_model", 4)
PLAIN = EngineArguments({}, "draft_model", 4, serving_plainly="refused")
ARGUMENTS: Any = SimpleNamespace(model="m", served_model_name=None)


class Engine:
    """vLLM's, as far as its server uses it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vllm_config = SimpleNamespace(shutdown_timeout=7)
        self.engine_core = SimpleNamespace(call_utility_async=self.answer)
        self.shutdowns: list[float] = []
        self.asked = asyncio.Event()

    async def answer(self, *_: object) -> bytes:
        self.asked.set()
        return b"no snapshot, which costs a report"

    async def reset_mm_cache(self) -> None:
        pass

    def shutdown(self, timeout: float) -> None:
        self.shutdowns.append(timeout)


class Policy:
    """A thread that is none: `error` is what every call raises."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.mode = "auto"
        self.error: Exception | None = None
        self.asked: list[object] = []

    def start(self) -> None:
        self.events.append("start")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.events.append("stop")

    async def starting_mode(self, *asked: object) -> str:
        self.asked += asked
        if self.error is not None:
            raise self.error
        return self.mode

    async def exchange(self, *_: object) -> object:
        raise OperationError(503, "away")

    async def call(self, operation: Operation[..., Any], *_: object) -> object:
        if self.error is not None:
            raise self.error
        return {STARTING_MODE.name: "auto", MODE.name: {"override": None}}[operation.name]


class Host:
    """The server under test, with what it stands on: vLLM's own builder, the start of an engine, the page of metrics."""

    def __init__(self, folder: EngineFolder | None, *, is_local: bool = True) -> None:
        self.policy = Policy()
        self.folder = folder
        self.theirs, self.ours = Engine("theirs"), Engine("ours")
        self.start: Callable[..., Any] = lambda configure, start: (start(configure(STEERED)), STEERED)
        self.shadows: list[bool] = []
        policy: Any = self.policy
        self.server = SteeredServer(
            theirs=self.their_builder,
            their_build_app=FastAPI,
            policy=policy,
            api=policy if is_local else None,
            backend=lambda _: SimpleNamespace(),
            place="8000",
        )

    @asynccontextmanager
    async def their_builder(self, engine_args: object, **_: object) -> AsyncIterator[Engine]:
        assert engine_args is ARGUMENTS
        yield self.theirs

    async def serves(self) -> str:
        """Whose engine serves; the server ends at once."""
        async with self.server.engine_client(ARGUMENTS, usage_context=None) as engine:
            return str(engine.name)


@pytest.fixture(params=[True])
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    folder = make_engine_folder(tmp_path)
    running = Host(folder, is_local=request.param)

    def start_steered(_: object, __: object, ___: object, configure: Any, start: Any, *, shadow: bool, **rest: object) -> Any:
        running.shadows.append(shadow)
        return running.start(configure, start)

    prepared = Prepared(SimpleNamespace(engine_kwargs={}), SimpleNamespace(), folder, {})  # type: ignore[arg-type]
    for name, stand_in in {
        "prepare": lambda *_: prepared,
        "start_steered": start_steered,
        "with_kwargs": lambda *_: ARGUMENTS,
        "configured": lambda *_: SimpleNamespace(speculative_config=None),
        "observe_load": lambda *_: None,
        "group_of": lambda *_, **__: GroupKey(target="m"),
        "missing_hooks": lambda: None,
        "_accelerator": lambda: "cpu",
        "_start_engine": lambda *_: running.ours,
    }.items():
        monkeypatch.setattr(under_test, name, stand_in)
    return running


def left(host: Host) -> list[str]:
    """What stayed: folders, an engine that was started and not ended, a policy."""
    assert host.folder is not None
    found = ["folder"] if host.folder.path.exists() else []
    return found + ([] if host.policy.events == ["start", "stop"] else ["policy"])


async def test_an_engine_that_can_be_steered_serves_and_ends_in_vllms_own_time(host: Host) -> None:
    assert await host.serves() == "ours"
    assert host.ours.shutdowns[0] == 7
    assert left(host) == []


async def test_the_agent_asks_the_engine_while_it_serves(host: Host) -> None:
    async with host.server.engine_client(ARGUMENTS, usage_context=None):
        await host.ours.asked.wait()


async def test_each_rank_behind_one_front_end_has_an_agent_that_asks_its_own_core(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    both = asyncio.Event()

    async def of_a_core(*_: object, engine: str) -> bytes:
        asked.add(engine)
        if len(asked) == 2:
            both.set()
        return b"no snapshot, which costs a report"

    core: Any = host.ours.engine_core
    core.core_engines, core.engine_ranks_managed, core._call_utility_async = ["first", "second"], [0, 1], of_a_core
    monkeypatch.setattr(under_test, "group_of", lambda *_, **__: GroupKey(target="m", data_parallel_size=2))
    registry = CollectorRegistry()
    monkeypatch.setattr(host.server, "_backend", PrometheusPage(registry).host)
    async with host.server.engine_client(ARGUMENTS, usage_context=None):
        await both.wait()
    assert asked == {"first", "second"}
    assert left(host) == []
    (steps,) = (family for family in registry.collect() if family.name == "nightjar_steps")
    assert {sample.labels["engine"] for sample in steps.samples} == {"0", "1"}


@pytest.mark.parametrize("mode", ["shadow", "auto"])
async def test_an_engine_starts_with_the_users_arguments_where_the_policy_says_shadow(host: Host, mode: str) -> None:
    host.policy.mode = mode
    with capture_logs() as logs:
        await host.serves()
    assert host.shadows == [mode == "shadow"]
    assert [entry["mode"] for entry in logs if entry["event"] == "starting_mode"] == [mode]


@pytest.mark.parametrize("mode", ["", "auto", "shadow"])
async def test_a_policy_that_is_away_holds_up_no_engine_which_starts_as_its_user_said(
    host: Host, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.policy.error = OperationError(503, "away")
    monkeypatch.setattr(host.server, "_mode", mode)
    assert await host.serves() == "ours"
    assert host.shadows == [mode == "shadow"]


async def test_what_fails_before_an_engine_starts_is_left_to_vllm_in_the_users_environment(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        os.environ["NIGHTJAR_TEST_ADDED"] = "1"
        monkeypatch.setitem(os.environ, "HOME", "elsewhere")
        raise ValueError("model type unknown")

    home = os.environ["HOME"]
    monkeypatch.setattr(under_test, "prepare", prepare)
    with capture_logs() as logs:
        assert await host.serves() == "theirs"
    assert [entry["reason"] for entry in logs if entry["event"] == "serving_plainly"] == ["ValueError: model type unknown"]
    assert (os.environ.get("NIGHTJAR_TEST_ADDED"), os.environ["HOME"]) == (None, home)


async def test_a_fault_of_ours_behind_a_started_engine_ends_that_engine_and_vllm_starts_its_own(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group_of(*_: object, **__: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(under_test, "group_of", group_of)
    assert await host.serves() == "theirs"
    assert host.ours.shutdowns == [0]
    assert left(host) == []


async def test_what_vllm_says_of_the_users_own_arguments_is_not_asked_twice(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(under_test, "_start_engine", refuse)
    host.start = lambda configure, start: start(configure(PLAIN))
    with pytest.raises(RuntimeError, match="out of memory"):
        await host.serves()
    assert left(host) == []


async def test_a_signal_while_the_engine_starts_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(under_test, "_start_engine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await host.serves()
    assert left(host) == []


async def test_an_engine_without_an_agent_serves(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_backend(_: object) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(host.server, "_backend", no_backend)
    with capture_logs() as logs:
        assert await host.serves() == "ours"
    assert "agent_not_begun" in [entry["event"] for entry in logs]


def test_the_policys_routes_stand_beside_vllms_and_writes_ask_for_our_token(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "configured_token", lambda: SecretStr("s3cret"))
    monkeypatch.setenv("VLLM_API_KEY", "vllms")
    client = TestClient(host.server.build_app())
    assert client.get("/nightjar/health").json() == {"policy": "answers"}
    assert client.get("/docs").status_code == 200
    mode = {"mode": "off"}
    answers = [
        client.post("/nightjar/mode", json=mode, headers={"Authorization": f"Bearer {key}"} if key else {}).status_code
        for key in ("", "vllms", "s3cret")
    ]
    assert answers == [401, 401, 200]


def test_without_the_policys_routes_vllms_application_serves(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(under_test, "create_policy_api", broken)
    client = TestClient(host.server.build_app())
    assert client.get("/docs").status_code == 200
    assert client.get("/nightjar/health").status_code == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_our_series_stand_on_a_page_that_vllm_reads_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vllms = pytest.importorskip("vllm.entrypoints.serve.instrumentator.metrics")
    written = "from prometheus_client import Counter; Counter('vllm:counted', 'Counted.').inc()"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", written], check=True)

    def build_app() -> FastAPI:
        app = FastAPI()
        vllms.attach_router(app)
        return app

    ours = PrometheusPage(CollectorRegistry())
    app = under_test.with_our_series(build_app, ours)()
    ours.host({}).set(Family(name="nightjar_age_seconds", kind="gauge", unit="seconds", help="Age."), (), 3.0)
    page = TestClient(app).get("/metrics").text
    assert {family.name for family in text_string_to_metric_families(page)} == {"vllm:counted", "nightjar_age_seconds"}


@pytest.mark.parametrize("host", [False], indirect=True)
async def test_under_a_policy_elsewhere_a_server_reports_by_its_models_name_and_has_no_routes_of_ours(host: Host) -> None:
    assert await host.serves() == "ours"
    assert host.policy.asked[1] == "m"
    client = TestClient(host.server.build_app())
    assert client.get("/docs").status_code == 200
    assert client.get("/nightjar/status").status_code == 404


@pytest.mark.parametrize("host", [False], indirect=True)
@pytest.mark.parametrize("error", [OperationError(401, "wrong token"), OperationError(503, "nothing answers")])
async def test_inv_4_an_engine_starts_and_serves_whatever_a_policy_elsewhere_says(host: Host, error: Exception) -> None:
    host.policy.error = error
    host.policy.start = lambda: None  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert await host.serves() == "ours"
    assert [entry["error"] for entry in logs if entry["event"] == "starting_mode_unknown"] == [str(error)]


def test_pods_that_share_a_host_name_are_told_apart_by_their_addresses() -> None:
    assert host_name({"POD_IP": "10.1.2.3"}) != host_name({"POD_IP": "10.1.2.4"})
    assert host_name({"POD_IP": ""}) == platform.node()


@pytest.mark.parametrize(("environ", "node"), [({"NODE_NAME": " gpu-7 "}, "gpu-7"), ({"NODE_NAME": ""}, None), ({}, None)])
def test_a_pods_node_is_what_it_was_told_and_else_its_host(environ: dict[str, str], node: str | None) -> None:
    assert node_name(environ) == (node or platform.node())
