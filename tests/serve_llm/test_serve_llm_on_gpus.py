"""ray.serve.llm's engines as it starts them on GPUs: vLLM's Ray executor, on devices that Ray gives out of nothing.

vLLM's configuration is made in a task of Ray's with a share of a device, and the workers are Ray's actors. The engine is the rig's:
model runner V1, scheduled asynchronously.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nightjar.deployments.rig.environment import rig_environment
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from tests.deployments import serving
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
    with serving.serve_cluster(num_gpus=1, variables=variables) as running:
        assert serving.ask_policy(lambda policy: policy.configure(SETTINGS))["error"] == ""
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
        answers = serving.post_at_once(client, [ask(prompt) for prompt in PROMPTS])
        ran = serving.steps([serving.only_replica(APPLICATION)])
        assert {each for each, count in ran.items() if count > before.get(each, 0)} == {length}
        expected = expected or answers
        for prompt, answer, plain in zip(PROMPTS, answers, expected, strict=True):
            serving.assert_same_text(ask(prompt), answer, plain)


def test_a_killed_worker_of_rays_takes_its_replica_along_and_the_next_one_is_steered(client: httpx.Client) -> None:
    known = serving.only_replica(APPLICATION)
    pid = serving.replica_pid(APPLICATION, known.replica_id, DEPLOYMENT)
    core = serving.engine_core_of(pid)
    workers = serving.ray_workers()
    files = serving.files_of([core, *workers])
    workers[0].kill()
    _, alive = psutil.wait_procs([psutil.Process(pid), core, *workers], timeout=60)
    assert alive == []
    fresh = serving.until(
        lambda: [replica for replica in serving.replicas(APPLICATION) if replica.replica_id != known.replica_id],
        within_s=180,
        what="a report of the replica in its place",
    )
    assert [replica.steering for replica in fresh] == [SteeringLevel.FULLY]
    assert serving.existing(files) == set()
    in_mode(client, "pin=2", DrafterState.ACTIVE)


def ask(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "chat", "messages": messages, "temperature": 0.0, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}


def in_mode(client: httpx.Client, mode: str, state: DrafterState) -> None:
    """Return once the replica runs in `mode`, its drafter in `state`."""
    body = ask(PROMPTS[0]) | {"max_tokens": 4}
    serving.in_mode(mode, state, ask=lambda: serving.post(client, body), shown=lambda: [serving.only_replica(APPLICATION)])
