"""A replica whose vLLM lacks what Nightjar hooks into: it serves as plain vLLM with the user's arguments, and says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from ray.serve import Application

from nightjar.deployments.app import LLMReplica, ModelToServe, deploy
from nightjar.deployments.engine.start.hooks import MissingHooks
from nightjar.deployments.llm_config import parse_args
from nightjar.policy.wire.report import DrafterState
from tests.deployments import serving

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


class ReplicaOfAnotherVLLM(LLMReplica):
    """As the product's, where the self-check found a hook that moved."""

    async def __init__(self, model: ModelToServe) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(model)

    @staticmethod
    def missing_hooks() -> MissingHooks:
        return MissingHooks(steering=("vllm.v1.core.sched.scheduler.Scheduler.schedule: there is no 'schedule'",))


def build(args: Mapping[str, Any]) -> Application:
    """What the Serve file of this test names as its import_path."""
    return deploy(parse_args(args), ReplicaOfAnotherVLLM)


@pytest.fixture
def cluster() -> Iterator[serving.ServeCluster]:
    serving.need_models(serving.TARGET)
    with serving.serve_cluster() as running:
        yield running


def test_engine_whose_hooks_do_not_match_serves_plainly_and_says_so(cluster: serving.ServeCluster) -> None:
    cluster.deploy(serving.application("chat", import_path=f"{__name__}:build"))
    with cluster.http("chat") as client:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 8}
        assert serving.post(client, body)["finish_reason"] in {"length", "stop"}
    (replica,) = serving.until(lambda: serving.replicas("chat"), within_s=20, what="a report")
    assert "this vLLM lacks what Nightjar hooks into: vllm.v1.core.sched" in replica.steering_reason
    assert replica.drafter_state is DrafterState.ABSENT
    assert replica.totals == ()

    (pid,) = serving.replica_pids("chat")
    engine = serving.until(lambda: serving.engine_processes_of(pid), within_s=10, what="the engine's processes")
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(engine, timeout=120)
    assert alive == [], "nothing of an engine stays that runs none of our classes"
