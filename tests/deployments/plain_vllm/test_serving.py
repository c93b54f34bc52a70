"""`nightjar serve` with a real engine, held against vLLM's own command with the same arguments: ready, texts, K, end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

pytest.importorskip("vllm")
pytest.importorskip("openai")

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import MODE, STATUS, OperationError
from nightjar.deployments.models import resolve_model
from nightjar.policy.wire.status import ReplicaStatus
from tests.benchmarks.serve.servers import OURS, THEIRS, arguments_of, running
from tests.cluster.dashboards.exported_names import VLLM_OWN_SERIES
from tests.deployments import serving

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

TOKEN: Final = "s3cret"
PINNED_K: Final = 2
PROMPTS: Final = ("The capital of France is", "Count to five: one, two,", "def add(a, b):")


def arguments() -> list[str]:
    """Of a server of the small models."""
    draft = {
        "method": "draft_model",
        "model": resolve_model(serving.DRAFT),
        "num_speculative_tokens": serving.MAX_NUM_SPECULATIVE_TOKENS,
    }
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 4, "max_num_batched_tokens": 256}
    return arguments_of(
        resolve_model(serving.TARGET), options | {"kv_cache_memory_bytes": 500_000_000, "speculative_config": draft}
    )


def answers(url: str) -> list[Any]:
    """What the stock OpenAI client gets, greedily: models, completions and chats, whole and as streams."""
    import openai

    server: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=180)
    greedy = {"model": "chat", "max_tokens": 32, "temperature": 0.0}
    with server as client:
        completions, chats = client.completions, client.chat.completions
        found: list[Any] = [(model.id, model.max_model_len) for model in client.models.list().data]
        for prompt in PROMPTS:
            whole = completions.create(prompt=prompt, **greedy)
            parts = [chunk.choices[0].text for chunk in completions.create(prompt=prompt, stream=True, **greedy)]
            found += [whole.choices[0].text, whole.choices[0].finish_reason, whole.usage.model_dump(), "".join(parts)]
        messages = [{"role": "user", "content": PROMPTS[0]}]
        whole = chats.create(messages=messages, **greedy)
        deltas = [chunk.choices[0].delta.content or "" for chunk in chats.create(messages=messages, stream=True, **greedy)]
        return [*found, whole.choices[0].message.model_dump(), whole.choices[0].finish_reason, "".join(deltas)]


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """Ctrl-C; the exit code, with nothing left of the engine."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=120)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    return code


def replica_of(client: HttpClient) -> ReplicaStatus:
    return serving.until(lambda: client.call(STATUS).replicas, within_s=60, what="a report")[0]


def steps_by_k(replica: ReplicaStatus) -> dict[int, int]:
    return {total.num_speculative_tokens: total.steps for total in replica.totals}


def test_a_steered_server_is_vllms_own_to_its_clients_and_k_follows_its_operator(tmp_path: Path) -> None:
    serving.need_models(serving.TARGET, serving.DRAFT)
    with running(THEIRS, arguments()) as server:
        expected = answers(server.url)
        their_code = interrupted(server.process)

    state = tmp_path / "state"
    ours = [*arguments(), "--nightjar-mode", "off", "--nightjar-state", str(state)]
    with running(OURS, ours, {"NIGHTJAR_API_TOKEN": TOKEN}) as server:
        process, url = server.process, server.url
        with HttpClient(url, token=SecretStr(TOKEN)) as client:
            serving.until(lambda: replica_of(client).settings_confirmed, within_s=60, what="the engine runs its settings")
            assert replica_of(client).steering_reason == ""
            assert answers(url) == expected
            serving.until(lambda: set(steps_by_k(replica_of(client))) == {0}, within_s=60, what="steps at K = 0 alone")
            client.call(MODE, {"mode": f"pin={PINNED_K}"})

            def drafts_as_pinned() -> bool:
                same = answers(url) == expected
                assert same
                return steps_by_k(replica_of(client)).get(PINNED_K, 0) > 0

            serving.until(drafts_as_pinned, within_s=120, what=f"steps at K = {PINNED_K}")
            assert max(steps_by_k(replica_of(client))) == PINNED_K
        with HttpClient(url) as stranger, pytest.raises(OperationError, match="a token is needed"):
            stranger.call(MODE, {"mode": "off"})
        page = httpx.get(f"{url}/metrics", timeout=30).text
        names = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
        assert names >= VLLM_OWN_SERIES | {"nightjar_replica_info", "nightjar_steps_total", "nightjar_policy_decision_age_seconds"}
        assert interrupted(process) == their_code
        assert [path.name for path in server.folder.iterdir() if path.name.startswith("nightjar-engine-")] == []
    assert list(state.glob("policy-v*.overrides")), "what was set by hand is kept for the next start"
