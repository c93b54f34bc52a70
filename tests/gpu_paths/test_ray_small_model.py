"""The small real model under vLLM's Ray executor, in a deployment of our own: one rank, on model runner V1.

On V2 the rig interprets the kernels that sample, and with this model's vocabulary a step takes seconds. The rig's tiny models are
served there (test_ray_executor.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("vllm")
from tests.deployments import serving
from tests.gpu_paths.ray_application import (
    NAME,
    SETTINGS,
    application,
    assert_catches_up,
    assert_steered_with_plain_decodings_texts,
    running_engine,
    variables,
)

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def test_the_small_real_model_is_steered_sleeps_catches_up_and_ends_with_its_replica(tmp_path: Path) -> None:
    """INV-1, INV-2 and INV-9 where no worker is below the replica."""
    serving.need_models(serving.TARGET, serving.DRAFT)
    environment = variables(tmp_path / "environment", runner=1)
    with serving.serve_cluster(num_gpus=1, variables=environment) as cluster, cluster.http(NAME) as client:
        serving.configure(SETTINGS)
        cluster.deploy(application())
        assert_steered_with_plain_decodings_texts(client)
        assert_catches_up(client)
        engine = running_engine(ranks=1)
        engine.replica.kill()
        engine.assert_nothing_is_left()
