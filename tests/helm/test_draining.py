"""A worker pod that ends: its replicas start elsewhere and finish their answers. Decided by Serve's own code, on no cluster.

Told to end, a Ray node drains for RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S (ray 2.60, `Node._drain_node_before_shutdown`), and Serve
stops a replica there, with or without another in its place, once what is left of that is no more than the replica may take to end.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
from ray.serve._private.deployment_state import DeploymentState

from tests.helm.rendering import CHART, needs_helm, release

pytestmark = needs_helm
DRAINS = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def drain_seconds(values: dict[str, Any]) -> set[str]:
    """What the worker pods of an example with GPUs hand to Ray; each must do so once."""
    pods = release(CHART / "examples/gpu.yaml", values=values).ray_pods()
    del pods["head"]
    environments = [pod["spec"]["containers"][0]["env"] for pod in pods.values()]
    found = [[variable["value"] for variable in environment if variable["name"] == DRAINS] for environment in environments]
    assert all(len(one) == 1 for one in found)
    return {one[0] for one in found}


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, "170"),
        ({"terminationGracePeriodSeconds": 900}, "890"),
        ({"env": [{"name": DRAINS, "value": "45"}]}, "45"),
    ],
)
def test_a_worker_drains_for_as_long_as_its_pod_may_live_unless_the_user_says_otherwise(
    values: dict[str, Any], seconds: str
) -> None:
    assert drain_seconds(values) == {seconds}


def stopped_at_once(drain_s: float, graceful_shutdown_timeout_s: float) -> bool:
    """Whether Serve stops a replica, of which no other runs, in the moment in which its node is told to end."""
    replica = SimpleNamespace(actor_node_id="n", _actor=SimpleNamespace(graceful_shutdown_timeout_s=graceful_shutdown_timeout_s))
    deadlines_ms = {"n": (time.time() + drain_s) * 1000}
    state = DeploymentState.__new__(DeploymentState)
    stopped, kept = state._choose_pending_migration_replicas_to_stop([replica], deadlines_ms, min_replicas_to_stop=0)
    assert len(stopped) + len(kept) == 1
    return bool(stopped)


def test_a_replica_is_not_stopped_before_another_could_start_as_it_would_be_with_rays_own_time() -> None:
    rendered = release(CHART / "examples/gpu.yaml")
    graceful_s = {
        deployment["graceful_shutdown_timeout_s"]
        for application in rendered.serve_config["applications"]
        for deployment in application["deployments"]
        if deployment["name"] == "LLM"
    }
    (seconds,) = drain_seconds({})
    for timeout_s in graceful_s:
        assert stopped_at_once(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, timeout_s)
        assert not stopped_at_once(float(seconds), timeout_s)
    assert graceful_s
