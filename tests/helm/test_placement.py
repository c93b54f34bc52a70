"""Serve's own packing, given the pods that the chart renders: does every replica of the rendered models find one?

Serve decides node by node with what its deployments ask for. Its scheduler runs here on made-up nodes with the resources of the
rendered worker groups, as large as they may be; only the start of actors is left out. No Kubernetes, no Ray cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray.serve")
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_scheduler import (
    DeploymentScheduler,
    ReplicaSchedulingRequest,
    RequestedResources,
    SpreadDeploymentSchedulingPolicy,
)

from nightjar.deployments.llm_config import LLMConfig
from tests.helm.rendering import EXAMPLES, Release, needs_helm, release

pytestmark = needs_helm
ON_GPUS = tuple(file for file in EXAMPLES if "nvidia.com/gpu" in file.read_text())
PACKS = {"name": "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", "value": "1"}


class Nodes:
    """What Serve's controller knows of a cluster's nodes."""

    def __init__(self, nodes: Mapping[str, dict[str, float]]) -> None:
        self._nodes = nodes

    def get_active_node_ids(self) -> set[str]:
        return set(self._nodes)

    def get_available_resources_per_node(self) -> dict[str, dict[str, float]]:
        return dict(self._nodes)

    get_total_resources_per_node = get_available_resources_per_node

    def get_node_labels(self, _node_id: str) -> dict[str, str]:
        return {}


class Placing(DeploymentScheduler):
    """Serve's scheduler; a replica that it would start stays noted."""

    def __init__(self, nodes: Mapping[str, dict[str, float]]) -> None:
        super().__init__(Nodes(nodes), head_node_id="head", create_placement_group_fn=None)
        self.placed: dict[str, list[str]] = {}
        self.left: list[str] = []

    def _schedule_replica(self, request: ReplicaSchedulingRequest, *, target_node_id: str | None = None, **_: Any) -> bool:
        name = request.replica_id.deployment_id.app_name
        if target_node_id is None:
            self.left.append(name)
            return False
        self.placed.setdefault(target_node_id, []).append(name)
        return True


def nodes_of(rendered: Release) -> dict[str, dict[str, float]]:
    """Every pod of the worker groups, each group as large as it may be."""
    found = {}
    for group in rendered.cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        told = yaml.safe_load(str(group["rayStartParams"].get("resources", "{}")).strip("'\"").replace("\\", "")) or {}
        for number in range(group["maxReplicas"]):
            gpus = float(limits.get("nvidia.com/gpu", 0))
            found[f"{group['groupName']}-{number}"] = {"CPU": float(limits["cpu"]), "GPU": gpus, **told}
    return found


def placed(rendered: Release, nodes: Mapping[str, dict[str, float]]) -> Placing:
    """All replicas of all models, as many as Serve may want, in one go of its scheduler."""
    scheduler = Placing(nodes)
    requests: list[ReplicaSchedulingRequest] = []
    for application in rendered.serve_config["applications"]:
        for values in application.get("args", {}).get("llm_configs", ()):
            config = LLMConfig(**values)
            asked = config.actor_options()
            options = config.deployment_config | next(iter(application.get("deployments", ())), {})
            most = options.get("autoscaling_config", {}).get("max_replicas") or options.get("num_replicas", 1)
            resources = {"CPU": float(asked["num_cpus"]), "GPU": float(asked["num_gpus"])}
            of = DeploymentID(name="LLM", app_name=application["name"])
            scheduler.on_deployment_created(of, SpreadDeploymentSchedulingPolicy())
            scheduler._deployments[of].actor_resources = RequestedResources(resources)
            replicas = (ReplicaID(str(number), of) for number in range(most))
            requests += [ReplicaSchedulingRequest(replica, None, resources, {}, (), print) for replica in replicas]
    for request in requests:
        scheduler._pending_replicas[request.replica_id.deployment_id][request.replica_id] = request
    scheduler._schedule_with_pack_strategy()
    return scheduler


@pytest.mark.parametrize("example", ON_GPUS, ids=lambda path: path.stem)
def test_every_replica_finds_a_pod_when_serve_packs_and_the_chart_makes_it_pack(example: Path) -> None:
    rendered = release(example)
    assert all(PACKS in template["spec"]["containers"][0]["env"] for template in rendered.ray_pods().values())
    done = placed(rendered, nodes_of(rendered))
    assert done.left == []
    assert done.placed


@pytest.mark.parametrize("example", ON_GPUS, ids=lambda path: path.stem)
def test_with_a_pod_less_than_its_gpus_need_one_replica_waits(example: Path) -> None:
    rendered = release(example)
    nodes = nodes_of(rendered)
    used = placed(rendered, nodes).placed
    fullest = max(used, key=lambda node: len(used[node]))
    fewer = {name: resources for name, resources in nodes.items() if name in used and name != fullest}
    assert Counter(placed(rendered, fewer).left)
