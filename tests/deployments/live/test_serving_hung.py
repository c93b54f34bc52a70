"""An engine that stops in mid request, under Serve: it is ended, its replica replaced, and requests are answered again.

An engine that was killed cannot clean up after itself, so what it left in the file system is looked for, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.policy.wire.report import SteeringLevel
from tests.deployments import serving

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

HUNG_AFTER_S = 20.0
"""Longer than a step on a machine that runs other engines beside this one: only the stopped engine shall count as hung."""
SHORT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 8}
LONG: dict[str, Any] = SHORT | {"max_tokens": 900, "ignore_eos": True}


APPLICATIONS = {"with-our-scheduler": True, "plain": False}
"""By name: whether it speculates."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """An application whose engine was stopped while it ran a request."""

    replica_id: str
    pid: int
    engine: list[psutil.Process]
    files: set[Path]
    cut_off: Future[httpx.Response]


@pytest.fixture(scope="module")
def cluster() -> Iterator[serving.ServeCluster]:
    serving.need_models(serving.TARGET, serving.DRAFT)
    with serving.serve_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def stopped(cluster: serving.ServeCluster) -> Iterator[Mapping[str, Stopped]]:
    """Both applications, stopped at the same time: their waits are long, and one does not need the other's end."""
    cluster.deploy(*(serving.application(name, speculative=own, hung_after_s=HUNG_AFTER_S) for name, own in APPLICATIONS.items()))
    with contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(cluster.http(name)) for name in APPLICATIONS}
        pool = stack.enter_context(ThreadPoolExecutor(len(APPLICATIONS)))
        yield {name: _stop_in_mid_request(name, client, pool) for name, client in clients.items()}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_engine_stopped_in_mid_request_is_ended_and_its_replica_replaced(
    cluster: serving.ServeCluster, stopped: Mapping[str, Stopped], name: str
) -> None:
    before = stopped[name]
    _, alive = psutil.wait_procs(before.engine, timeout=120)
    assert alive == [], "stopped processes end of SIGKILL alone"
    assert before.cut_off.result(timeout=60).status_code >= 500
    serving.until(lambda: serving.replica_pids(name) - {before.pid}, within_s=180, what="a replica in its place")

    def replaced() -> bool:
        return any(replica.replica_id != before.replica_id for replica in serving.replicas(name))

    serving.until(replaced, within_s=180, what="a report of the replica that takes its place")
    serving.until(lambda: serving.replica_pids(name).isdisjoint({before.pid}), within_s=60, what="the end of the old replica")
    assert serving.existing(before.files) == set()
    with cluster.http(name) as client:
        assert serving.post(client, SHORT)["finish_reason"] in {"length", "stop"}


def _stop_in_mid_request(name: str, client: httpx.Client, pool: ThreadPoolExecutor) -> Stopped:
    serving.post(client, SHORT)
    (known,) = serving.until(lambda: serving.replicas(name), within_s=20, what="a report")
    assert (known.steering is SteeringLevel.PLAINLY) is not APPLICATIONS[name]
    (pid,) = serving.replica_pids(name)
    engine = serving.engine_processes_of(pid)
    core = serving.engine_core_of(pid)
    files = serving.files_of(engine)
    assert any(file.is_socket() for file in files)
    assert any(file.name.startswith("psm_") for file in files)
    cut_off = pool.submit(client.post, "/v1/chat/completions", json=LONG)
    serving.until(lambda: _running(name) == 1, within_s=20, what="the request runs")
    core.suspend()
    return Stopped(known.replica_id, pid, engine, files, cut_off)


def _running(application: str) -> int:
    return sum(replica.load.num_running_reqs for replica in serving.replicas(application))
