"""One application of ray.serve.llm with three models, its engines steered live over the real policy actor, seen from HTTP.

The model is the real one in float32, so greedy text may differ from plain decoding only at a near tie (INV-1).
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from structlog.testing import capture_logs

from nightjar.deployments.llm_config import ConfigurationError
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from nightjar.policy.wire.status import ReplicaStatus
from tests.deployments import serving
from tests.serve_llm.application import ADAPTER, APPLICATION, NUM_REPLICAS, object_store, serve_application

pytestmark = [pytest.mark.serve_llm, pytest.mark.filterwarnings("ignore")]

PROMPTS = (
    "What is the capital of France?",
    "Tell me a short story about a cat and a boat.",
    "Explain why the sky is blue.",
    "Write two lines about rain.",
)
SETTINGS = {"mode": "auto", "planner": "fixed", "exchange_period_s": 0.1, "decision_period_s": 0.1, "dwell_steps": 0}
MAX = serving.MAX_NUM_SPECULATIVE_TOKENS


def ask(model: str, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "max_tokens": 24}
    return body | {"logprobs": True, "top_logprobs": 2} | fields


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServeCluster]:
    """Skipped with the command to run where the environment is another one, or the models were not built."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs an environment of its own: make test-serve-llm")
    serving.need_models(serving.TARGET, serving.DRAFT)
    with object_store(tmp_path_factory.mktemp("adapter")), serving.serve_cluster(num_cpus=12) as running:
        running.deploy(serve_application(), within_s=300)
        serving.configure(SETTINGS)
        serving.until(lambda: len(serving.replicas(APPLICATION)) == sum(NUM_REPLICAS.values()), within_s=60, what="their reports")
        yield running


@pytest.fixture
def client(cluster: serving.ServeCluster) -> Iterator[httpx.Client]:
    """HTTP to the application, with every mode that a test set taken back afterwards."""
    with cluster.http(APPLICATION) as http:
        yield http
    serving.set_fleet_mode("default")


def replicas(model: str) -> list[ReplicaStatus]:
    """The replicas of one model as the policy sees them."""
    import ray

    prefix = f"SERVE_REPLICA::{APPLICATION}#LLMServer:{model}#"
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    ids = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return [replica for replica in serving.replicas(APPLICATION) if replica.replica_id in ids]


def reported(model: str) -> Sequence[ReplicaStatus]:
    """The same, all of them from reports whose counters were read after this call began."""
    return serving.reported(lambda: replicas(model))


def steps(model: str) -> dict[int, int]:
    """Steps that the model's replicas ran at each K so far."""
    return serving.steps(reported(model))


def steps_by_replica(model: str) -> dict[str, int]:
    return {replica.replica_id: sum(total.steps for total in replica.totals) for replica in reported(model)}


def lengths_that_ran(model: str, before: dict[int, int]) -> set[int]:
    return {length for length, count in steps(model).items() if count > before.get(length, 0)}


def in_mode(mode: str, client: httpx.Client, model: str, state: DrafterState | None = None) -> None:
    """Return once every replica of the model runs in `mode`, its drafter in `state`."""
    prompts = (f"{number} is how many?" for number in itertools.count(1))
    serving.in_mode(
        mode,
        state,
        ask=lambda: serving.post(client, ask(model, next(prompts), max_tokens=8)),
        shown=lambda: replicas(model),
    )


def assert_plain_decodings(client: httpx.Client, model: str) -> set[int]:
    """INV-1 for a batch of the model; the K that its engines ran meanwhile."""
    expected = [serving.post(client, ask("plain", prompt)) for prompt in PROMPTS]
    before = steps(model)
    asked = [ask(model, prompt) for prompt in PROMPTS]
    for body, answer, plain in zip(asked, serving.post_at_once(client, asked), expected, strict=True):
        serving.assert_same_text(body, answer, plain)
    return lengths_that_ran(model, before)


def test_every_engine_with_a_drafter_is_steered_and_the_others_serve_plainly_and_say_so(client: httpx.Client) -> None:
    """On vLLM 0.29.0, whose hooks are the same."""
    assert {model["id"] for model in client.get("/v1/models").json()["data"]} >= set(NUM_REPLICAS)
    assert [replica.steering for replica in replicas("chat")] == [SteeringLevel.FULLY] * 2
    assert [replica.steering for replica in replicas("code")] == [SteeringLevel.FULLY]
    (plain,) = replicas("plain")
    assert plain.steering is SteeringLevel.PLAINLY
    assert plain.steering_reason == "engine_kwargs hold no speculative_config: there is nothing to steer"
    assert plain.totals == ()


@pytest.mark.parametrize(
    ("mode", "length", "state"),
    [("off", 0, DrafterState.DORMANT), ("pin=2", 2, DrafterState.ACTIVE), ("shadow", MAX, DrafterState.ACTIVE)],
)
def test_a_mode_runs_its_length_alone_and_output_is_plain_decodings(
    client: httpx.Client, mode: str, length: int, state: DrafterState
) -> None:
    """In shadow the engine runs as its user configured it."""
    in_mode(mode, client, "chat", state)
    assert assert_plain_decodings(client, "chat") == {length}


def test_in_auto_the_planners_length_runs_and_output_is_plain_decodings(client: httpx.Client) -> None:
    """That of the planner `fixed` is the engine's maximum, unless the guard measures that it is worse than off."""
    in_mode("auto", client, "chat")
    assert MAX in assert_plain_decodings(client, "chat")


def test_the_kill_switch_in_their_file_replaces_no_replica_and_holds_for_its_model_alone(
    cluster: serving.ServeCluster, client: httpx.Client
) -> None:
    in_mode("pin=3", client, "chat", DrafterState.ACTIVE)
    pids = serving.replica_pids(APPLICATION, "LLMServer:chat")
    assert len(pids) == 2
    cluster.deploy(serve_application(user_config={"mode": "off"}))
    serving.until(lambda: {str(r.mode) for r in replicas("chat")} == {"off"}, within_s=30, what="the switch")
    assert {str(replica.mode) for replica in replicas("code")} == {"pin=3"}
    cluster.deploy(serve_application())
    serving.until(lambda: {str(r.mode) for r in replicas("chat")} == {"pin=3"}, within_s=30, what="the switch taken back")
    assert serving.replica_pids(APPLICATION, "LLMServer:chat") == pids


def test_an_adapter_is_steered_as_its_base_model_is(client: httpx.Client) -> None:
    asked = [ask(ADAPTER, prompt) for prompt in PROMPTS]
    in_mode("off", client, "code")
    expected = [serving.post(client, body) for body in asked]
    base = [serving.post(client, body | {"model": "code"}) for body in asked]
    assert all(ours["message"] != theirs["message"] for ours, theirs in zip(expected, base, strict=True))
    in_mode("pin=3", client, "code")
    before = steps("code")
    for body, answer, plain in zip(asked, serving.post_at_once(client, asked), expected, strict=True):
        serving.assert_same_text(body, answer, plain)
    assert lengths_that_ran("code", before) == {3}
    (replica,) = reported("code")
    assert [adapter.adapter for adapter in replica.adapters] == [ADAPTER]


def test_the_prefix_aware_router_keeps_a_conversation_on_one_of_two_steered_replicas(client: httpx.Client) -> None:
    in_mode("pin=1", client, "chat", DrafterState.ACTIVE)
    begin = "You are a patient teacher who answers in one sentence. " * 4
    serving.post(client, ask("chat", begin + PROMPTS[0]))
    before = steps_by_replica("chat")
    for prompt in (*PROMPTS, *PROMPTS):
        serving.post(client, ask("chat", begin + prompt, max_tokens=8))
    after = steps_by_replica("chat")
    assert len([replica_id for replica_id, count in after.items() if count > before[replica_id]]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"experimental_configs": {"nightjar": {"hung_after": 3}}},
            "llm_configs: code: .*hung_after: no such field",
        ),
        ({"deployment_config": {"user_config": {"mode": "never"}}}, "llm_configs: code: user_config: mode 'never' is none"),
    ],
)
def test_a_wrong_word_of_ours_is_refused_when_the_application_is_built(
    cluster: serving.ServeCluster, change: dict[str, Any], message: str
) -> None:
    from nightjar.deployments.serve_llm import build_openai_app

    args = serve_application()["args"]
    args["llm_configs"][1] |= change
    with pytest.raises(ConfigurationError, match=message):
        build_openai_app(args)


def test_a_server_class_of_the_users_own_is_left_to_serve_and_the_log_says_so(cluster: serving.ServeCluster) -> None:
    from ray.serve.llm import LLMServer

    from nightjar.deployments.serve_llm import build_openai_app

    args = serve_application()["args"]
    args["llm_configs"][1]["server_cls"] = LLMServer
    with capture_logs() as logs:
        build_openai_app(args)
    assert [(line["event"], line["model"]) for line in logs] == [("serving_plainly", "code")]


def test_a_file_is_checked_before_it_runs_without_starting_ray(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [serve_application()]}))
    program = "import pathlib, sys, ray\nfrom nightjar.cluster.serve_config import load_serve_file\n"
    program += "print(load_serve_file(pathlib.Path(sys.argv[1])).applications[0].name, ray.is_initialized())"
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{APPLICATION} False"
