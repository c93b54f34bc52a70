"""One application of our own whose workers Ray starts, on the rig, asynchronous."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from nightjar.deployments.proof.model_names import DRAFT, TARGET
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from nightjar.policy.wire.status import ReplicaStatus
from tests.deployments import serving
from tests.gpu_paths.overlay import OVERLAY_VARIABLE, version_under_test
from tests.rig.environment import Runner, rig_environment

NAME: Final = "chat"
MAX: Final = 3
HUNG_AFTER_S: Final = 20.0
SETTINGS: Final = {
    "mode": "auto",
    "planner": "fixed",
    "exchange_period_s": 0.1,
    "decision_period_s": 0.1,
    "dwell_steps": 0,
    "replica_timeout_s": 10.0,
}
PROMPTS: Final = ("Count to five.", "A cat and a boat went", "Rain, rain")
ENDLESS_TOKENS: Final = 3900
MISSED_TOKENS: Final = 40
SKIPS_DRAFTS_FROM: Final = (0, 33)
"""From there on vLLM asks for no drafts in a step after which every request ends: it counts as one at K = 0."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The processes of one application's only engine, and what is in the file system for them alone."""

    replica_id: str
    replica: psutil.Process
    core: psutil.Process
    workers: list[psutil.Process]
    files: set[Path]

    def assert_nothing_is_left(self, within_s: float = 240) -> None:
        """No process and no file."""
        _, alive = psutil.wait_procs([self.replica, self.core, *self.workers], timeout=within_s)
        assert alive == []
        serving.until(lambda: not serving.existing(self.files), within_s=30, what=f"the end of {self.files}")


def variables(folder: Path, runner: Runner = 2) -> dict[str, str]:
    """Of every process of the cluster: vLLM hands Ray's workers the replica's variables only after they imported vLLM."""
    checkout = str(Path(__file__).parents[2])
    return rig_environment(
        folder,
        runner=runner,
        asynchronous=True,
        in_one_process=False,
        kv_cache_is_sized=True,
        environ={"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get(OVERLAY_VARIABLE), checkout)))},
    )


def application(tiny_models: Path | None = None, *, ranks: int = 1, max_num_seqs: int = 8, **fields: Any) -> dict[str, Any]:
    """One application as a user writes it for this executor: the replica's placement group has a GPU for each worker.

    The small real model on runner V1, or one of the rig's `tiny_models`: those have attention heads that divide by two ranks, and
    a vocabulary that is small enough for V2's interpreted kernels.
    """
    target, draft = serving.TARGET, serving.DRAFT
    if tiny_models is not None:
        target, draft = str(tiny_models / TARGET), str(tiny_models / DRAFT)
    model = {
        "model_loading_config": {"model_id": NAME, "model_source": target},
        "engine_kwargs": {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 4096,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": 256,
            "kv_cache_memory_bytes": 500_000_000 if tiny_models is None else 32 << 20,
            "tensor_parallel_size": ranks,
            "distributed_executor_backend": "ray",
            "speculative_config": {"method": "draft_model", "model": draft, "num_speculative_tokens": MAX},
        },
        "deployment_config": {
            "health_check_period_s": 2,
            "placement_group_bundles": [{"CPU": 1}, *[{"GPU": 1}] * ranks],
            "placement_group_strategy": "PACK",
        },
        "hung_after_s": HUNG_AFTER_S,
    }
    whole = {"name": NAME, "route_prefix": f"/{NAME}", "import_path": "nightjar.deployments.app:build"}
    return whole | {"args": {"llm_configs": [model]}} | fields


def assert_steered_with_plain_decodings_texts(client: httpx.Client) -> None:
    """Each K runs alone, and its texts are those of K = 0."""
    assert only_replica().steering is SteeringLevel.FULLY
    texts, skipped = {}, {0} if version_under_test() >= SKIPS_DRAFTS_FROM else set()
    for mode, length in (("off", 0), ("pin=1", 1), ("off", 0), ("auto", MAX)):
        in_mode(client, mode, DrafterState.DORMANT if mode == "off" else DrafterState.ACTIVE)
        before = steps()
        texts[mode] = [choice["text"] for choice in complete_all(client, PROMPTS)]
        assert {each for each, count in steps().items() if count > before.get(each, 0)} - skipped == {length} - skipped
    assert texts["pin=1"] == texts["auto"] == texts["off"]


def assert_catches_up(client: httpx.Client) -> None:
    """A draft that slept reads what it missed of a request that still runs, and drafts for it."""
    in_mode(client, "off", DrafterState.DORMANT)
    body = body_of(PROMPTS[1], ENDLESS_TOKENS) | {"stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:  # closed, it is aborted
        # A chunk brings at least one token, and an empty line stands between two.
        chunks = (line for line in response.iter_lines() if line.startswith("data: {"))
        assert len(list(islice(chunks, MISSED_TOKENS))) == MISSED_TOKENS, "the answer ended before the drafter had missed enough"
        before = only_replica()
        assert before.load.num_running_reqs == 1
        serving.set_fleet_mode("pin=3")

        def drafts_again() -> bool:
            drafter = only_replica().drafter
            return drafter.recomputed_tokens - before.drafter.recomputed_tokens >= MISSED_TOKENS and drafter.lag_tokens == 0

        serving.until(drafts_again, within_s=60, what="a draft that has read what it missed")
        asked, drafts = steps().get(MAX, 0), draft_tokens()
        serving.until(
            lambda: steps().get(MAX, 0) > asked and draft_tokens() > drafts, within_s=30, what="drafts of the same request"
        )


def in_mode(client: httpx.Client, mode: str, state: DrafterState) -> None:
    """Return once the replica runs in `mode`, its drafter in `state`."""
    serving.in_mode(mode, state, ask=lambda: complete(client, PROMPTS[0]), shown=lambda: [only_replica()])


def only_replica() -> ReplicaStatus:
    """The application's, from a report made after this call began."""
    return serving.only_replica(NAME)


def steps() -> dict[int, int]:
    """Steps at each K so far."""
    return serving.steps([only_replica()])


def draft_tokens() -> int:
    return sum(total.draft_tokens for total in only_replica().totals)


def body_of(prompt: str, max_tokens: int) -> dict[str, Any]:
    return {"model": NAME, "prompt": prompt, "temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}


def complete(client: httpx.Client, prompt: str, max_tokens: int = 8) -> dict[str, Any]:
    """One completion's choice. Raises for any status but 200."""
    response = client.post("/v1/completions", json=body_of(prompt, max_tokens))
    response.raise_for_status()
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def complete_all(client: httpx.Client, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Completions that run together."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: complete(client, prompt, 24), prompts))


def running_request(pool: ThreadPoolExecutor, client: httpx.Client) -> Future[httpx.Response]:
    """A request that runs until its engine ends."""
    request = pool.submit(client.post, "/v1/completions", json=body_of(PROMPTS[1], ENDLESS_TOKENS))
    serving.until(lambda: only_replica().load.num_running_reqs == 1, within_s=30, what="a running request")
    return request


def running_engine(*, ranks: int, on_this_node: bool = True) -> Engine:
    """The application's only one; `on_this_node` says where its workers are. Files of another node are not its."""
    status = only_replica()
    pid = serving.replica_pid(NAME, status.replica_id)
    core = serving.engine_core_of(pid)
    assert serving.engine_processes_of(pid) == [core]
    workers = serving.ray_workers()
    assert len(workers) == ranks
    files = serving.files_of([core, *workers] if on_this_node else [core])
    if on_this_node:
        assert any(file.name.startswith("psm_") for file in files)
    else:  # a core without shared memory is not noted, so a kilobyte of Intel's OpenMP, which the rig preloads, stays
        files = {file for file in files if not file.name.startswith("__KMP")}
    return Engine(status.replica_id, psutil.Process(pid), core, workers, files)


def assert_replaced(engine: Engine) -> None:
    """Another replica serves in its place."""
    serving.until(
        lambda: any(replica.replica_id != engine.replica_id for replica in serving.replicas(NAME)),
        within_s=180,
        what="a report of the replica in its place",
    )
    serving.until(lambda: serving.serve_status().applications[NAME].status.value == "RUNNING", within_s=60, what="it serves")
