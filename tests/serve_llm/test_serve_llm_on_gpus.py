"""ray.serve.llm's engines as it starts them on GPUs: vLLM's Ray executor, on devices that Ray gives out of nothing.

vLLM's configuration is made in a task of Ray's with a share of a device, and the workers are Ray's actors. The engine is the rig's:
model runner V1, scheduled asynchronously.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nightjar.deployments.proof.tiny_models import build_tiny_models
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from tests.deployments import serving
from tests.rig.environment import rig_environment
from tests.serve_llm.application import APPLICATION, gpu_application

pytestmark = [pytest.mark.serve_llm, pytest.mark.filterwarnings("ignore")]

DEPLOYMENT = "LLMServer:chat"
PROMPTS = ("What is the capital of France?", "Write two lines about rain.")
SETTINGS = {
    "mode": "auto",
    "planner": "fixed",
    "exchange_period_s": 0.1,
    "decision_period_s": 0.1,
    "dwell_steps": 0,
    "replica_timeout_s": 10.0,
}
MAX = serving.MAX_NUM_SPECULATIVE_TOKENS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServeCluster]:
    """Skipped with the command to run where the environment is another one, or the models were not built."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs an environment of its own: make test-serve-llm")
    serving.need_models(serving.TARGET, serving.DRAFT)
    variables = rig_environment(
        tmp_path_factory.mktemp("environment"),
        runner=1,
        asynchronous=True,
        in_one_process=False,
        kv_cache_is_sized=True,
        environ={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with serving.serve_cluster(num_gpus=2, variables=variables) as running:
        serving.configure(SETTINGS)
        running.deploy(gpu_application())
        yield running


@pytest.fixture
def client(cluster: serving.ServeCluster) -> Iterator[httpx.Client]:
    with cluster.http(APPLICATION) as http:
        yield http


def test_an_engine_on_rays_devices_is_steered_and_its_output_is_plain_decodings(client: httpx.Client) -> None:
    """INV-1 and INV-2, with no worker below the replica."""
    assert serving.only_replica(APPLICATION).steering is SteeringLevel.FULLY
    expected: list[dict[str, Any]] = []
    for mode, length in (("off", 0), ("pin=2", 2), ("off", 0), ("auto", MAX)):
        in_mode(client, mode, DrafterState.ACTIVE if length else DrafterState.DORMANT)
        before = serving.steps([serving.only_replica(APPLICATION)])
        answers = serving.post_at_once(client, [asked(prompt) for prompt in PROMPTS])
        ran = serving.steps([serving.only_replica(APPLICATION)])
        assert {each for each, count in ran.items() if count > before.get(each, 0)} == {length}
        expected = expected or answers
        for prompt, answer, plain in zip(PROMPTS, answers, expected, strict=True):
            serving.assert_same_text(asked(prompt), answer, plain)


@pytest.mark.parametrize("part", ["worker", "replica"])
def test_a_killed_worker_of_rays_or_replica_leaves_nothing_of_its_engine_and_the_next_one_is_steered(
    client: httpx.Client, part: str
) -> None:
    replica, workers, files = processes(ranks=1)
    (workers[0] if part == "worker" else replica[0]).kill()
    assert_next_is_steered(replica + workers, files)
    in_mode(client, "pin=2", DrafterState.ACTIVE)


def test_an_application_updated_to_two_ranks_leaves_nothing_of_the_old_engine_and_is_steered(
    cluster: serving.ServeCluster, client: httpx.Client, tmp_path: Path
) -> None:
    replica, workers, files = processes(ranks=1)
    cluster.deploy(gpu_application(build_tiny_models(tmp_path / "models")))
    assert_next_is_steered(replica + workers, files)
    processes(ranks=2)
    texts = {}
    for mode in ("off", "pin=2"):
        in_mode(client, mode, DrafterState.DORMANT if mode == "off" else DrafterState.ACTIVE, ask=lambda: complete(client))
        texts[mode] = complete(client)
    assert texts["pin=2"] == texts["off"] != ""


def processes(*, ranks: int) -> tuple[list[psutil.Process], list[psutil.Process], set[Path]]:
    """The replica with its engine core, Ray's workers of it, and the files that are there for them alone."""
    pid = serving.replica_pid(APPLICATION, serving.only_replica(APPLICATION).replica_id, DEPLOYMENT)
    core, workers = serving.engine_core_of(pid), serving.ray_workers()
    assert len(workers) == ranks
    return [psutil.Process(pid), core], workers, serving.files_of([core, *workers])


def assert_next_is_steered(ended: Sequence[psutil.Process], files: set[Path]) -> None:
    """Of an engine that is replaced no process and no file is left."""
    _, alive = psutil.wait_procs(ended, timeout=240)
    assert alive == []
    assert serving.only_replica(APPLICATION).steering is SteeringLevel.FULLY
    serving.until(lambda: not serving.existing(files), within_s=30, what=f"the end of {files}")


def asked(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "chat", "messages": messages, "temperature": 0.0, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}


def complete(client: httpx.Client) -> str:
    """What follows a text, with models that know no chats."""
    body = {"model": "chat", "prompt": "A cat and a boat went", "temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
    response = client.post("/v1/completions", json=body)
    response.raise_for_status()
    text: str = response.json()["choices"][0]["text"]
    return text


def in_mode(client: httpx.Client, mode: str, state: DrafterState, *, ask: Callable[[], object] | None = None) -> None:
    """Return once the replica runs in `mode`, its drafter in `state`."""

    def chat() -> object:
        return serving.post(client, asked(PROMPTS[0]) | {"max_tokens": 4})

    serving.in_mode(mode, state, ask=ask or chat, shown=lambda: [serving.only_replica(APPLICATION)])
