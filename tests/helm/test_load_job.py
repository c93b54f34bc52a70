"""The load test's Job: what it runs is run here, by the real Locust against a fake server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightjar.loadtests.load.regimes import NAMED_REGIMES, parse_regime
from nightjar.loadtests.load.rows import read_rows
from tests.helm.rendering import ROOT, needs_helm, release
from tests.loadtests.fake_server import FakeServer, running_fake_server
from tests.ports import free_port

pytestmark = needs_helm


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running_fake_server() as fake:
        yield fake


def pods(**load_test: Any) -> dict[str, dict[str, Any]]:
    """Pod templates by component."""
    jobs = release(values={"loadTest": {"enabled": True, **load_test}}).all("Job")
    templates = [job["spec"]["template"] for job in jobs]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def locust(container: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    """The container's command, with the repository's locustfile and this machine as master."""
    assert container["command"] == ["locust"]
    here = {"--locustfile": str(ROOT / "loadtests/locustfile.py"), "--master-host": "127.0.0.1"}
    arguments = [
        f"{name}={here.get(name, value)}" if equals else name
        for name, equals, value in (argument.partition("=") for argument in container["args"])
    ]
    command = [sys.executable, "-m", "locust", *arguments, *more]
    environment = {**os.environ, "OPENAI_API_KEY": "sesame"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_master_and_workers_as_rendered_play_the_whole_load(server: FakeServer, tmp_path: Path) -> None:
    templates = pods(host=server.url, regime="busy:0.4@60", workers=2, seed=3, maxTokens=8, model="tiny")
    master, worker = (templates[name]["spec"]["containers"][0] for name in ("load-master", "load-worker"))
    rows, port = tmp_path / "rows.jsonl", str(free_port())
    running = [locust(master, f"--master-bind-port={port}", f"--rows={rows}")]
    running += [locust(worker, f"--master-port={port}") for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(outputs)
    assert {row.error for row in read_rows(rows)} == {""}
    assert len({row.request_id for row in read_rows(rows)}) == len(server.requests) > 0
    assert {(request["model"], request["max_tokens"]) for request in server.requests} == {("tiny", 8)}


def test_workers_find_the_master_by_the_service_that_selects_it() -> None:
    rendered = release(values={"loadTest": {"enabled": True}})
    service = rendered.one("Service")
    templates = pods()
    selector = service["spec"]["selector"].items()
    assert selector <= templates["load-master"]["metadata"]["labels"].items()
    assert not selector <= templates["load-worker"]["metadata"]["labels"].items()
    assert f"--master-host={service['metadata']['name']}" in templates["load-worker"]["spec"]["containers"][0]["args"]
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_a_change_is_a_new_run_and_a_change_elsewhere_is_none() -> None:
    def name(load: dict[str, Any] | None = None, **values: Any) -> str:
        rendered = release(values={"loadTest": {"enabled": True, **(load or {})}, **values})
        return str(rendered.one("Service")["metadata"]["name"])

    first = name()
    assert name(policy={"settings": {"mode": "auto"}}) == first
    assert len({first, name(load={"run": "2"}), name(load={"workers": 3}), name(toolsImage={"tag": "9"})}) == 4


def test_a_finished_job_is_kept_unless_somebody_says_otherwise() -> None:
    def seconds(**load_test: Any) -> list[int | None]:
        jobs = release(values={"loadTest": {"enabled": True, **load_test}}).all("Job")
        return [job["spec"].get("ttlSecondsAfterFinished") for job in jobs]

    assert seconds() == [None, None]
    assert seconds(ttlSecondsAfterFinished=600) == [600, 600]


def test_jobs_end_by_themselves_where_a_pod_never_finds_a_node_and_every_named_load_fits_before() -> None:
    def deadlines(**load_test: Any) -> list[int]:
        jobs = release(values={"loadTest": {"enabled": True, **load_test}}).all("Job")
        return [job["spec"]["activeDeadlineSeconds"] for job in jobs]

    assert deadlines() == [1800 + 14400] * 2
    assert deadlines(waitForModelsS=60, deadlineS=600) == [660] * 2
    assert max(parse_regime(name).duration_s for name in NAMED_REGIMES) < 14400


def test_load_and_checks_show_the_key_that_the_server_asks_for() -> None:
    def variables(values: dict[str, Any]) -> list[dict[str, Any]]:
        rendered = release(values=values)
        pods = [rendered.one("Pod"), *(job["spec"]["template"] for job in rendered.all("Job"))]
        containers = [
            container for pod in pods for kind in ("containers", "initContainers") for container in pod["spec"].get(kind, [])
        ]
        assert len(containers) == 5
        return [variable for container in containers for variable in container.get("env", []) if variable["name"] != "HOME"]

    key = {"name": "OPENAI_API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "vllm"}}}
    assert variables({"loadTest": {"enabled": True, "existingSecret": "keys", "secretKey": "vllm"}}) == [key] * 5
    assert variables({"loadTest": {"enabled": True}}) == []


def test_the_load_goes_to_the_first_model_once_it_is_served() -> None:
    model = {"name": "m", "modelSource": "org/m", "routePrefix": "/m"}
    (job, _) = release(values={"models": [model], "loadTest": {"enabled": True}}).all("Job")
    spec = job["spec"]["template"]["spec"]
    assert "--host=http://llm-nightjar-serve-svc:8000/m" in spec["containers"][0]["args"]
    assert "--model=/m=m" in spec["initContainers"][0]["args"]
    assert "initContainers" not in pods(host="http://elsewhere:8000")["load-master"]["spec"]
