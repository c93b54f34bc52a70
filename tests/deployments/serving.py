"""What the Serve-level tests share: a Ray cluster of their own, requests over HTTP, the policy, and processes by kind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from nightjar.cluster.api.operations import CONFIGURE, MODE, STATUS, Answer, Operation, OperationError, P
from nightjar.cluster.client import OPERATOR_TIMEOUT_S, PolicyClient, get_or_create_policy_actor
from nightjar.cluster.local.cluster import NODE_TIMED_OUT, QUIET_ENVIRONMENT
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE
from nightjar.deployments.engine_watch import HUNG_AFTER_S
from nightjar.deployments.models import ModelError, resolve_model
from nightjar.loadtests.arms.texts import NEAR_TIE
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.status import FleetStatus, ReplicaStatus, Scope
from tests.ports import free_port

T = TypeVar("T")

TARGET, DRAFT = "smollm2-135m", "smollm2-135m-noise08"
MAX_NUM_SPECULATIVE_TOKENS = 4
PATIENCE: Final = 4
"""A machine that others use as well may need as many times longer than one of our own, and is not wrong."""
REPORT_TAKES_S: Final = 1.0
"""From the engine's answer to the policy, at most, where agents report every 0.1 s."""


def application(
    name: str,
    *,
    speculative: bool = True,
    num_replicas: int = 1,
    user_config: object = None,
    import_path: str = "nightjar.deployments.app:build",
    hung_after_s: float = HUNG_AFTER_S,
    draft_offload: DraftOffload = "never",
    kv_cache_memory_bytes: int = 500_000_000,
) -> dict[str, Any]:
    """One application of a Serve file: the real small model in float32, small enough for several engines on a laptop."""
    engine_kwargs: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "kv_cache_memory_bytes": kv_cache_memory_bytes,
    }
    if speculative:
        engine_kwargs["speculative_config"] = {
            "method": "draft_model",
            "model": DRAFT,
            "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
        }
    model = {
        "model_loading_config": {"model_id": "chat", "model_source": TARGET},
        "engine_kwargs": engine_kwargs,
        "deployment_config": {"num_replicas": num_replicas, "health_check_period_s": 2},
        "hung_after_s": hung_after_s,
        "draft_offload": draft_offload,
    }
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": import_path,
        "args": {"llm_configs": [model]},
        "deployments": [{"name": "LLM", "user_config": user_config}],
    }


def need_models(*names: str) -> None:
    """Skip the test, with the command to run, where one of the small models was not built."""
    try:
        for name in names:
            resolve_model(name)
    except ModelError as error:
        pytest.skip(str(error))


@dataclass(frozen=True, slots=True)
class ServeCluster:
    """Ray and Serve of these tests alone."""

    url: str

    def deploy(self, *applications: Mapping[str, Any], within_s: float = 600) -> None:
        """Make these, as a Serve file would list them, the applications of the cluster; wait until all their replicas serve."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        client = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": list(applications)}))
        wanted = {application["name"] for application in applications}

        def all_run() -> bool:
            statuses = {name: status.status.value for name, status in serve_status().applications.items()}
            assert "DEPLOY_FAILED" not in statuses.values(), serve_status()
            return set(statuses) == wanted and set(statuses.values()) <= {"RUNNING"}

        until(all_run, within_s=within_s, what=f"applications {sorted(wanted)} run")

    def http(self, application: str) -> httpx.Client:
        """A client of one application."""
        return httpx.Client(base_url=f"{self.url}/{application}", timeout=180)


@contextlib.contextmanager
def serve_cluster(
    *, with_metrics: bool = False, num_cpus: int = 4, num_gpus: int = 0, variables: Mapping[str, str] | None = None
) -> Iterator[ServeCluster]:
    """Start Ray with Serve on free ports; at the end nothing of it is left, engines included.

    `num_gpus` are devices that Ray gives out, of nothing; `variables` are of every process of the cluster.
    """
    import ray
    from ray import serve

    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    (folder / "token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        for name, value in QUIET_ENVIRONMENT.items():
            environment.setenv(name, value)
        if with_metrics:
            environment.setenv("RAY_enable_metrics_collection", "1")
        environment.setenv("NIGHTJAR_JOURNAL_DIR", str(folder / "journal"))
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        environment.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves an engine whose core another process keeps busy
        for name, value in (variables or {}).items():
            environment.setenv(name, value)
        port = free_port()
        _start_ray(folder, num_cpus, num_gpus)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield ServeCluster(url=f"http://127.0.0.1:{port}")
        finally:
            serve.shutdown()
            with contextlib.suppress(Exception):
                ray.kill(get_or_create_policy_actor(), no_restart=True)
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start_ray(folder: Path, num_cpus: int, num_gpus: int) -> None:
    """Start Ray; where its node was too slow (NODE_TIMED_OUT), kill what is left of it and start Ray a second time."""
    import ray

    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False, "log_to_driver": False}
    options["object_store_memory"] = 80 << 20
    try:
        ray.init(address="local", _temp_dir=str(folder), **options)
    except Exception as error:
        if NODE_TIMED_OUT not in str(error):
            raise
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(str(folder) in word for word in process.cmdline()):
                    process.kill()
        ray.init(address="local", _temp_dir=str(folder), **options)


def serve_status() -> Any:
    """Serve's own view of its applications."""
    from ray import serve

    return serve.status()


def ask_policy(operation: Operation[P, Answer], *arguments: P.args, **named: P.kwargs) -> Answer:
    """One operation by the policy actor from synchronous code. Raises OperationError."""
    return asyncio.run(PolicyClient().call(operation, *arguments, **named))


def configure(settings: Mapping[str, object], *, timeout_s: float = OPERATOR_TIMEOUT_S) -> None:
    """Replace the operator's settings. Raises OperationError."""
    asyncio.run(PolicyClient(timeout_s=timeout_s).call(CONFIGURE, settings))


def fleet_status() -> FleetStatus:
    """The fleet as the policy sees it now."""
    return ask_policy(STATUS)


def replicas(application: str) -> tuple[ReplicaStatus, ...]:
    """An application's replicas that reported within the last seconds."""
    return tuple(r for r in fleet_status().replicas if r.application == application and r.report_age_s < 5.0)


def reported(shown: Callable[[], Sequence[ReplicaStatus]], *, within_s: float = 60) -> Sequence[ReplicaStatus]:
    """The replicas that `shown` gives, at least one, all of them from reports whose counters were read after this call began."""
    began_s = time.monotonic()

    def fresh() -> Sequence[ReplicaStatus]:
        waited_s = time.monotonic() - began_s
        now = shown()
        return now if all(replica.report_age_s < waited_s - REPORT_TAKES_S for replica in now) else ()

    return until(fresh, within_s=within_s, what="new reports")


def only_replica(application: str) -> ReplicaStatus:
    """The application's one replica, from a report made after this call began."""

    def alone() -> Sequence[ReplicaStatus]:
        present = replicas(application)
        return present if len(present) == 1 else ()

    (replica,) = reported(alone)
    return replica


def steps(of: Iterable[ReplicaStatus]) -> dict[int, int]:
    """Steps that these replicas ran at each K so far."""
    counted: dict[int, int] = {}
    for replica in of:
        for total in replica.totals:
            counted[total.num_speculative_tokens] = counted.get(total.num_speculative_tokens, 0) + total.steps
    return counted


def in_mode(
    mode: str, state: DrafterState | None, *, ask: Callable[[], object], shown: Callable[[], Sequence[ReplicaStatus]]
) -> None:
    """Set the fleet's mode and return once every replica shown runs in it, its drafter in `state`.

    A drafter comes back by requests alone, so `ask` sends one before each look.
    """
    set_fleet_mode(mode)

    def is_so() -> bool:
        ask()
        now = shown()
        return {str(replica.mode) for replica in now} == {mode} and (
            state is None or {replica.drafter_state for replica in now} == {state}
        )

    until(is_so, within_s=60, what=f"mode {mode}, the drafter {state or 'in any state'}")


def set_fleet_mode(mode: str) -> None:
    """Set the whole fleet's mode and return once the policy took it."""
    set_mode(mode)


def set_mode(mode: str, *, scope: Scope = "fleet", name: str = "") -> None:
    """Set a mode by hand, `default` takes it back; return once the policy took it."""
    ask_policy(MODE, {"scope": scope, "name": name, "mode": mode, "for_s": None, "reason": "test"})


def exported(name: str, **labels: str) -> list[Sample]:
    """The series of one metric that have these labels, as the cluster's only node serves them to Prometheus now."""
    page = httpx.get(f"http://{metrics_address()}/metrics", timeout=30, trust_env=False).text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return [sample for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]


def metrics_address() -> str:
    """Where the cluster's only node serves its metrics."""
    import ray

    (node,) = ray.nodes()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def until(condition: Callable[[], T], *, within_s: float, what: str) -> T:
    """Poll until `condition` gives something true, and return that. A policy that does not answer now says nothing yet.

    `within_s` is ample on two cores with nothing beside; PATIENCE times as long is waited before the test fails.
    """
    deadline_s = time.monotonic() + PATIENCE * within_s
    while True:
        try:
            if value := condition():
                return value
        except OperationError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
        assert time.monotonic() < deadline_s, f"{what}: not within {PATIENCE * within_s:.0f} s"
        time.sleep(0.2)


def engine_processes_of(replica_pid: int) -> list[psutil.Process]:
    """vLLM's engine and worker processes of one replica. Not told by their titles: now and then vLLM does not get to set them."""
    below = psutil.Process(replica_pid).children(recursive=True)
    return [process for process in below if "multiprocessing.resource_tracker" not in _title(process)]


def engine_core_of(replica_pid: int) -> psutil.Process:
    """vLLM's engine core of one replica, the parent of its workers."""
    (core,) = (process for process in engine_processes_of(replica_pid) if process.ppid() == replica_pid)
    return core


def ray_workers() -> list[psutil.Process]:
    """The workers of vLLM's Ray executor in this cluster. They are Ray's children, not their engine core's."""
    return [process for process in psutil.Process().children(recursive=True) if _title(process).startswith("ray::RayWorkerProc")]


def files_of(processes: Sequence[psutil.Process]) -> set[Path]:
    """Files that are there for these engine processes alone: shared memory, sockets on which they listen, and their folder."""
    found: set[Path] = set()
    with os.scandir("/dev/shm") as entries:
        names = {entry.inode(): Path(entry.path) for entry in entries}
    for process in processes:
        mapped = (line.split() for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if " /dev/shm/" in line)
        found |= {names[inode] for line in mapped if (inode := int(line[4])) in names}
        found.add(Path(f"/dev/shm/__KMP_REGISTERED_LIB_{process.pid}_{process.uids().real}"))
        found |= {Path(str(connection.laddr)) for connection in process.net_connections("unix") if connection.laddr}
        if named := process.environ().get(ENGINE_FOLDER_VARIABLE):  # a worker of Ray's was told later
            folder = Path(named)
            found |= {folder, *(link.readlink() for link in folder.iterdir() if link.is_symlink())}
    return existing(found)


def existing(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that are there now."""
    return {path for path in paths if path.exists()}


def replica_pids(application: str, deployment: str = "LLM") -> set[int]:
    """Process ids of an application's Serve replicas."""
    title = f"ray::ServeReplica:{application}:{deployment}"
    return {process.pid for process in psutil.Process().children(recursive=True) if _title(process).startswith(title)}


def replica_pid(application: str, replica_id: str, deployment: str = "LLM") -> int:
    """Process id of one replica."""
    import ray

    actor = ray.get_actor(f"SERVE_REPLICA::{application}#{deployment}#{replica_id}", namespace="serve")
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=30)
    return pid


def post(client: httpx.Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """One chat completion's choice. Raises for any status but 200."""
    response = client.post("/v1/chat/completions", json=dict(body))
    response.raise_for_status()
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def post_at_once(client: httpx.Client, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The choices of chat completions that run together, in order."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: post(client, body), bodies))


def assert_same_text(body: Mapping[str, Any], answer: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Equal text and end, or a first difference where the reference's two best logits nearly tie."""
    got, want = answer["message"]["content"], expected["message"]["content"]
    if got == want:
        assert answer["finish_reason"] == expected["finish_reason"]
        return
    tokens = expected["logprobs"]["content"]
    ends = list(itertools.accumulate(len(token["token"]) for token in tokens))
    common = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
    first_different = tokens[next((i for i, end in enumerate(ends) if end > common), len(ends) - 1)]
    best, second = (candidate["logprob"] for candidate in first_different["top_logprobs"][:2])
    assert best - second < NEAR_TIE, f"{body['messages'][0]['content']!r}: {got!r}, plain vLLM says {want!r}"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""
