"""Two real replicas under Serve, steered live over the real policy actor, seen from HTTP.

The model is the real one in float32, so greedy text may differ from plain decoding only at a near tie (INV-1).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from nightjar.policy.wire.status import ReplicaStatus
from tests.deployments import serving

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.checkout, pytest.mark.filterwarnings("ignore")]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
PROMPTS = (
    "What is the capital of France?",
    "Tell me a short story about a cat and a boat.",
    "Explain why the sky is blue.",
    "List five fruits and their colours.",
    "Write two lines about rain.",
    "How do I boil an egg?",
    "Name three planets and say which is the largest.",
    "Describe a city as JSON.",
)
GREEDY: tuple[dict[str, Any], ...] = (
    {"max_tokens": 48},
    {"max_tokens": 64},
    {"max_tokens": 48, "logprobs": True, "top_logprobs": 3},
    {"max_tokens": 64, "stop": [".", "\n\n"], "ignore_eos": True},
    {"max_tokens": 48, "logprobs": True, "top_logprobs": 1},
    {"max_tokens": 1},
    {"max_tokens": 33, "ignore_eos": True},
    {"max_tokens": 40, "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}},
)
SAMPLED_TOKENS = 40


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, **fields}


GREEDY_BODIES = tuple(chat(prompt, **fields) for prompt, fields in zip(PROMPTS, GREEDY, strict=True))
# Without seed: on CPU, vLLM 0.32.0 dies of a seeded request whose prompt is computed in chunks (Generator.get_offset).
# Not the list of fruits: plain vLLM answers it with emoji over and over, 8 times in 352 at this temperature.
SAMPLED_PROMPTS = (*PROMPTS[:3], PROMPTS[5])
SAMPLED_BODIES = tuple(chat(prompt, temperature=0.8, max_tokens=SAMPLED_TOKENS, ignore_eos=True) for prompt in SAMPLED_PROMPTS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[serving.ServeCluster]:
    """Skipped with the command to run where the models were not built."""
    serving.need_models(serving.TARGET, serving.DRAFT)
    with serving.serve_cluster(with_metrics=True) as running:
        yield running


@pytest.fixture(scope="module")
def reference(cluster: serving.ServeCluster) -> tuple[dict[str, Any], ...]:
    """What plain vLLM answers, one request at a time, with the two best logprobs of each token."""
    cluster.deploy(serving.application("reference", speculative=False))
    with cluster.http("reference") as client:
        answers = tuple(serving.post(client, body | {"logprobs": True, "top_logprobs": 2}) for body in GREEDY_BODIES)
    assert [replica.steering_reason for replica in serving.replicas("reference")] == [
        "engine_kwargs hold no speculative_config: there is nothing to steer"
    ]
    return answers


@pytest.fixture(scope="module")
def steered(cluster: serving.ServeCluster, reference: tuple[dict[str, Any], ...]) -> serving.ServeCluster:
    """Two replicas that the policy steers, in place of the reference."""
    settings = {"mode": "auto", "planner": "fixed", "exchange_period_s": 0.1, "decision_period_s": 0.1, "dwell_steps": 0}
    serving.configure(settings)
    cluster.deploy(serving.application("chat", num_replicas=2))
    return cluster


@pytest.fixture
def client(steered: serving.ServeCluster) -> Iterator[httpx.Client]:
    """HTTP to the two replicas, both of them steered and reporting."""
    until_both_are_steered()
    with steered.http("chat") as http:
        yield http


def both() -> Sequence[ReplicaStatus]:
    """The two replicas, if both have reported of late."""
    present = serving.replicas("chat")
    return present if len(present) == 2 else ()


def until_both_are_steered() -> None:
    def are_steered() -> bool:
        present = both()
        return bool(present) and all(replica.settings_version is not None for replica in present)

    serving.until(are_steered, within_s=120, what="two steered replicas")
    assert all(replica.steering is SteeringLevel.FULLY for replica in serving.replicas("chat"))


def assert_lossless(client: httpx.Client, reference: tuple[dict[str, Any], ...]) -> None:
    """INV-1 for one mixed batch: a third of its rows is sampled."""
    answers = serving.post_at_once(client, GREEDY_BODIES + SAMPLED_BODIES)
    for body, answer, expected in zip(GREEDY_BODIES, answers, reference, strict=False):
        serving.assert_same_text(body, answer, expected)
    assert json.loads(answers[7]["message"]["content"]).keys() == {"city", "size"}
    logprobs = answers[2]["logprobs"]["content"]
    for token, plain in zip(logprobs, reference[2]["logprobs"]["content"], strict=True):
        assert token["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)
    for answer in answers[len(GREEDY_BODIES) :]:
        assert answer["finish_reason"] == "length"
        assert len(set(answer["message"]["content"])) > 3, "sampled text is not one token over and over"


def steps_by_k() -> dict[int, int]:
    """Steps that both replicas ran at each K until now, by reports that began after this call."""
    return serving.steps(serving.reported(both))


def lengths_that_ran(since: dict[int, int]) -> set[int]:
    return {length for length, steps in steps_by_k().items() if steps > since.get(length, 0)}


def until_modes_are(modes: set[str]) -> None:
    serving.until(lambda: {str(replica.mode) for replica in both()} == modes, within_s=20, what=f"modes {modes}")


@pytest.mark.parametrize(("mode", "length"), [("off", 0), ("pin=4", 4)])
def test_output_is_plain_decodings_at_a_fixed_length(
    client: httpx.Client, reference: tuple[dict[str, Any], ...], mode: str, length: int
) -> None:
    """INV-1; and the engines run that length alone."""
    serving.set_fleet_mode(mode)
    until_modes_are({mode})
    serving.post(client, GREEDY_BODIES[5])
    before = steps_by_k()
    assert_lossless(client, reference)
    assert lengths_that_ran(before) == {length}


def test_output_is_plain_decodings_while_the_length_changes_every_few_steps(
    client: httpx.Client, reference: tuple[dict[str, Any], ...]
) -> None:
    """INV-1; once changed by the clock, so that restarts are cut short wherever they are, and once as soon as a length has run."""
    modes = {"pin=4": 4, "off": 0, "pin=2": 2, "pin=1": 1}

    def toggle_by_the_clock(finished: threading.Event) -> None:
        for mode in itertools.cycle((*modes, "off", "pin=3")):
            if finished.wait(0.15):
                return
            serving.set_fleet_mode(mode)

    def until_it_ran(mode: str, length: int) -> None:
        before = steps_by_k()
        serving.set_fleet_mode(mode)
        serving.until(lambda: length in lengths_that_ran(before), within_s=60, what=f"a step at K = {length}")

    def toggle_once_it_ran() -> None:
        for mode, length in modes.items():
            until_it_ran(mode, length)

    finished = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        toggling: Future[None] = pool.submit(toggle_by_the_clock, finished)
        try:
            assert_lossless(client, reference)
            assert_lossless(client, reference)
        finally:
            finished.set()
        toggling.result()
        toggling = pool.submit(toggle_once_it_ran)
        while not toggling.done():
            assert_lossless(client, reference)
        toggling.result()


def test_node_serves_metrics_of_every_replica_and_of_the_policy_beside_vllms(client: httpx.Client) -> None:
    def join_keys(name: str) -> set[tuple[str, ...]]:
        """Of series that have counted something."""
        counted = (sample for sample in serving.exported(name, model_name="chat") if sample.value)
        return {tuple(sample.labels[label] for label in ("model_name", "engine", "ReplicaId")) for sample in counted}

    replica_ids = {replica.replica_id for replica in serving.replicas("chat")}
    wanted = {("chat", "0", replica_id) for replica_id in replica_ids}
    for _ in range(4):
        serving.post_at_once(client, GREEDY_BODIES)
    serving.until(
        lambda: wanted <= join_keys("ray_nightjar_steps_total") & join_keys("ray_vllm_generation_tokens_total"),
        within_s=60,
        what="counters of both replicas, ours and vLLM's",
    )
    lengths = {str(length) for length in range(serving.MAX_NUM_SPECULATIVE_TOKENS + 1)}
    for replica_id in replica_ids:
        mine = {"ReplicaId": replica_id, "application": "chat", "deployment": "LLM"}
        steps = serving.exported("ray_nightjar_steps_total", **mine)
        assert {sample.labels["num_speculative_tokens"] for sample in steps} == lengths
        states = serving.exported("ray_nightjar_drafter_state", **mine)
        assert {sample.labels["state"] for sample in states} == set(DrafterState)
        (offloads,) = serving.exported("ray_nightjar_draft_offloads_total", **mine)
        assert offloads.value == 0.0, "there before it ever counts"
        (info,) = serving.exported("ray_nightjar_replica_info", **mine)
    group_id = info.labels["group_id"]
    serving.until(
        lambda: 2.0 in [sample.value for sample in serving.exported("ray_nightjar_replicas", group_id=group_id)],
        within_s=90,
        what="the policy's group of two",
    )


def test_client_that_disconnects_frees_its_request(client: httpx.Client) -> None:
    serving.set_fleet_mode("off")
    body = chat(PROMPTS[1], max_tokens=900, ignore_eos=True, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = (line for line in response.iter_lines() if line)
        for _ in range(5):
            next(lines)
        serving.until(lambda: _running() == 1, within_s=10, what="the request runs")
    serving.until(lambda: _running() == 0, within_s=10, what="the engine is idle again")
    assert serving.post(client, GREEDY_BODIES[5])["finish_reason"] == "length"


def _running() -> int:
    return sum(replica.load.num_running_reqs for replica in serving.replicas("chat"))


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "nobody"}, 404, "The model `nobody` does not exist."),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"messages": "hello"}, 400, "messages"),
        ({"temperature": -3.0}, 400, "temperature"),
    ],
)
def test_errors_are_vllms_own(client: httpx.Client, change: dict[str, Any], status: int, message: str) -> None:
    response = client.post("/v1/chat/completions", json=GREEDY_BODIES[0] | change)
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert error["code"] == status


def test_changed_user_config_replaces_no_replica_and_switches_at_once(steered: serving.ServeCluster, client: httpx.Client) -> None:
    serving.set_fleet_mode("pin=4")
    pids = serving.replica_pids("chat")
    steered.deploy(serving.application("chat", num_replicas=2, user_config={"mode": "off"}))
    until_modes_are({"off"})
    before = steps_by_k()
    serving.post(client, GREEDY_BODIES[0])
    assert lengths_that_ran(before) == {0}
    steered.deploy(serving.application("chat", num_replicas=2))
    until_modes_are({"pin=4"})
    assert serving.replica_pids("chat") == pids


def test_policy_killed_under_load_fails_no_request_and_comes_back_above(client: httpx.Client) -> None:
    """INV-4, INV-5."""
    serving.set_fleet_mode("pin=2")
    before = serving.fleet_status().policy
    stop = threading.Event()

    def load() -> int:
        done = 0
        while not stop.is_set():
            serving.post(client, GREEDY_BODIES[done % 4])
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(load) for _ in range(4)]
        try:
            serving.until(lambda: _running() > 1, within_s=60, what="the load")
            os.kill(before.pid, signal.SIGKILL)
            serving.until(lambda: _incarnation_after(before.pid) > before.incarnation, within_s=60, what="a new incarnation")
            serving.until(lambda: len(_confirmed_by_new_policy(before.incarnation)) == 2, within_s=30, what="both replicas back")
        finally:
            stop.set()
        assert all(user.result() > 0 for user in users)


def _incarnation_after(killed_pid: int) -> int:
    try:
        policy = serving.fleet_status().policy
    except RuntimeError:
        return 0
    return policy.incarnation if policy.pid != killed_pid else 0


def _confirmed_by_new_policy(incarnation: int) -> list[str]:
    return [
        replica.replica_id
        for replica in serving.replicas("chat")
        if replica.settings_version is not None and replica.settings_version.incarnation > incarnation
    ]
