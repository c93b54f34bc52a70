"""Ray's own autoscaler, given the cluster that the chart renders: does it add pods for the replicas of the rendered models?

Under KubeRay Ray 2.60 reads what a pod of a group has from the custom resource, before there is such a pod. Its own code does both
here: it derives the node types, and schedules demands on them. No Kubernetes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray.autoscaler.v2")
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.llm_config import LLMConfig
from tests.helm.rendering import EXAMPLES, needs_helm, release

pytestmark = needs_helm
SCALED = tuple(file for file in EXAMPLES if yaml.safe_load(file.read_text()).get("autoscaler", {}).get("enabled"))
LEAST_ACCELERATOR = 0.001
"""What Ray asks of the resource of an accelerator's type for an actor that names one."""


def demands(serve_config: Mapping[str, Any]) -> list[dict[str, float]]:
    """What each replica asks of Ray, of the most that Serve may want."""
    found: list[dict[str, float]] = []
    for application in serve_config["applications"]:
        for values in application.get("args", {}).get("llm_configs", ()):
            options = LLMConfig(**values).actor_options()
            scaling = application["deployments"][0]["autoscaling_config"]
            asked = {"CPU": float(options["num_cpus"]), "GPU": float(options["num_gpus"])}
            asked[f"accelerator_type:{options['accelerator_type']}"] = LEAST_ACCELERATOR
            found += [asked] * scaling["max_replicas"]
    return found


def launched(cluster: Mapping[str, Any], asked: list[dict[str, float]]) -> tuple[dict[str, int], int]:
    """Pods that Ray adds, by group, and demands that it calls infeasible."""
    resource = {"metadata": {"name": "llm", "namespace": "default"}, "spec": cluster}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(each) for each in asked])
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=requests,
        )
    )
    pods = {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "headgroup"}
    return pods, len(reply.infeasible_resource_requests)


@pytest.mark.parametrize("example", SCALED, ids=lambda file: file.stem)
def test_rays_autoscaler_adds_pods_for_every_replica_that_serve_may_want(example: Path) -> None:
    rendered = release(example)
    (group,) = rendered.cluster["workerGroupSpecs"]
    asked = demands(rendered.serve_config)
    pods, infeasible = launched(rendered.cluster, asked)
    assert infeasible == 0
    assert pods == {group["groupName"]: len(asked)}


@pytest.mark.parametrize("example", SCALED, ids=lambda file: file.stem)
def test_without_the_accelerators_name_it_would_add_none(example: Path) -> None:
    rendered = release(example)
    (group,) = rendered.cluster["workerGroupSpecs"]
    del group["rayStartParams"]["resources"]
    pods, infeasible = launched(rendered.cluster, demands(rendered.serve_config))
    assert infeasible
    assert pods == {group["groupName"]: group["minReplicas"]}
    lines = check_text(yaml.safe_dump(rendered.one("RayService"))).findings
    (error,) = [line.message for line in lines if line.severity == "error"]
    assert f"Ray's autoscaler adds no pod of workerGroupSpecs[0] ({group['groupName']})" in error


def test_parts_of_a_gpu_bring_pods_because_the_chart_says_their_number() -> None:
    limits = {"cpu": 8, "nvidia.com/mig-3g.40gb": 2}
    group = {"groupName": "g", "minReplicas": 0, "maxReplicas": 2, "acceleratorType": "H100", "resources": {"limits": limits}}
    model = {"name": "m", "modelSource": "org/m", "acceleratorType": "H100", "deploymentConfig": {"num_replicas": 4}}
    cluster = release(values={"models": [model], "workerGroups": [group], "autoscaler": {"enabled": True}}).cluster
    asked = [{"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": LEAST_ACCELERATOR}] * 4
    assert launched(cluster, asked) == ({"g": 2}, 0)
    del cluster["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"]
    pods, infeasible = launched(cluster, asked)
    assert pods == {}
    assert infeasible


def test_the_version_of_the_autoscaler_is_said() -> None:
    for example in SCALED:
        assert release(example).cluster["autoscalerOptions"]["version"] == "v2"
