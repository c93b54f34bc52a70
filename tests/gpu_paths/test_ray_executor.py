"""Our own deployment with vLLM's Ray executor, whose workers Ray starts: what ray.serve.llm takes for every engine on GPUs.

Ray gives out devices of nothing. `make test-slow` runs one engine, `make test-gpu-paths` all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

pytest.importorskip("ray")
pytest.importorskip("vllm")
from ray.serve import Application

from nightjar.deployments.app import LLMReplica, ModelToServe, deploy
from nightjar.deployments.llm_config import parse_args
from nightjar.deployments.proof.tiny_models import build_tiny_models
from nightjar.policy.wire.report import SteeringLevel
from tests.deployments import serving
from tests.gpu_paths.ray_application import (
    NAME,
    PROMPTS,
    SETTINGS,
    application,
    assert_catches_up,
    assert_replaced,
    assert_steered_with_plain_decodings_texts,
    complete,
    only_replica,
    running_engine,
    running_request,
    variables,
)

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

NUM_GPUS: Final = 2
REFUSAL: Final = "Engine core initialization failed"
"""vLLM's one exception for whatever keeps a core from starting."""


class RefusedReplica(LLMReplica):
    """As the product's, on whose node the worker of a steered engine does not start."""

    async def __init__(self, model: ModelToServe) -> None:  # type: ignore[misc]  # Serve awaits it
        from nightjar.deployments.engine.start.arguments import V2_WORKER
        from tests.rig.platform import CPU_WORKERS

        CPU_WORKERS[V2_WORKER] = "tests.gpu_paths.engines.refusing_worker.RefusingV2Worker"
        await super().__init__(model)


def build_refused(args: Mapping[str, Any]) -> Application:
    """What the Serve file of a refused engine names as its import_path."""
    return deploy(parse_args(args), RefusedReplica)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("rig") / "models")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServeCluster]:
    with serving.serve_cluster(num_gpus=NUM_GPUS, variables=variables(tmp_path_factory.mktemp("environment"))) as running:
        serving.configure(SETTINGS)
        yield running


@pytest.fixture
def client(cluster: serving.ServeCluster) -> Iterator[httpx.Client]:
    with cluster.http(NAME) as http:
        yield http


def test_an_engine_with_rays_workers_is_steered_sleeps_catches_up_and_ends_with_its_replica(
    cluster: serving.ServeCluster, client: httpx.Client, models: Path
) -> None:
    """INV-1, INV-2 and INV-9 where no worker is below the replica."""
    cluster.deploy(application(models))
    assert_steered_with_plain_decodings_texts(client)
    assert_catches_up(client)
    engine = running_engine(ranks=1)
    engine.replica.kill()
    engine.assert_nothing_is_left()


@pytest.mark.long
def test_two_ranks_of_ray_are_steered_and_replaced_with_their_replica_when_one_is_killed(
    cluster: serving.ServeCluster, client: httpx.Client, models: Path
) -> None:
    cluster.deploy(application(models, ranks=2))
    assert_steered_with_plain_decodings_texts(client)
    assert_catches_up(client)
    engine = running_engine(ranks=2)
    with ThreadPoolExecutor(1) as pool:
        cut_off = running_request(pool, client)
        engine.workers[0].kill()
        assert cut_off.result(timeout=120).status_code >= 500
    engine.assert_nothing_is_left()
    assert_replaced(engine)
    assert_steered_with_plain_decodings_texts(client)


@pytest.mark.long
def test_a_stopped_rank_of_ray_is_ended_with_its_engine_and_both_are_replaced(
    cluster: serving.ServeCluster, client: httpx.Client, models: Path
) -> None:
    cluster.deploy(application(models, ranks=2))
    engine = running_engine(ranks=2)
    with ThreadPoolExecutor(1) as pool:
        cut_off = running_request(pool, client)
        engine.workers[1].suspend()
        assert cut_off.result(timeout=240).status_code >= 500
    engine.assert_nothing_is_left()
    assert_replaced(engine)
    assert complete(client, PROMPTS[0])["finish_reason"] == "length"


@pytest.mark.long
def test_an_application_that_is_updated_gets_a_new_engine_on_the_devices_of_the_old_one(
    cluster: serving.ServeCluster, client: httpx.Client, models: Path
) -> None:
    cluster.deploy(application(models, ranks=2))
    engine = running_engine(ranks=2)
    cluster.deploy(application(models, ranks=2, max_num_seqs=4))
    engine.assert_nothing_is_left()
    assert_replaced(engine)
    assert_steered_with_plain_decodings_texts(client)


@pytest.mark.long
def test_where_rays_workers_refuse_the_steered_arguments_they_are_gone_before_the_plain_engine_takes_their_devices(
    cluster: serving.ServeCluster, client: httpx.Client, models: Path
) -> None:
    cluster.deploy(application(models, ranks=2, import_path=f"{__name__}:build_refused"))
    status = only_replica()
    assert status.steering is SteeringLevel.PLAINLY
    assert REFUSAL in status.steering_reason
    assert complete(client, PROMPTS[0])["finish_reason"] == "length"
    assert len(serving.ray_workers()) == 2
