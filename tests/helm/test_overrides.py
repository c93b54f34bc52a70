"""A way out of the closed schema: what the chart has no value for goes over what it writes, and changes nothing else."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.helm.rendering import needs_helm, refusal, release

pytestmark = needs_helm
GROUP: dict[str, Any] = {"groupName": "w", "minReplicas": 1, "maxReplicas": 1, "resources": {"limits": {"cpu": "2"}}}
POD: dict[str, Any] = {
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
    "containers": [{"name": "sidecar", "image": "example/logs"}],
    "initContainers": [{"name": "warm", "image": "example/warm"}],
    "volumes": [{"name": "extra", "emptyDir": {}}],
    "terminationGracePeriodSeconds": 600,
}
LIFECYCLE = {"preStop": {"exec": {"command": ["sleep", "30"]}}}


def spec_of(values: dict[str, Any], group: str = "w") -> dict[str, Any]:
    template = release(values=values).ray_pods()[group]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, "1.36", strict=True)
    spec: dict[str, Any] = template["spec"]
    return spec


def test_fields_of_the_pod_stand_beside_or_over_the_charts_own() -> None:
    plain = spec_of({"workerGroups": [GROUP]})
    spec = spec_of({"workerGroups": [GROUP | {"podSpecOverrides": POD}]})
    assert (spec["runtimeClassName"], spec["schedulerName"], spec["terminationGracePeriodSeconds"]) == ("nvidia", "volcano", 600)
    assert spec["containers"] == [*plain["containers"], *POD["containers"]]
    assert spec["initContainers"] == POD["initContainers"]
    assert spec["volumes"] == [*plain["volumes"], *POD["volumes"]]
    kept = plain.keys() - POD.keys()
    assert {key: spec[key] for key in kept} == {key: plain[key] for key in kept}


def test_fields_of_rays_container_are_set_and_its_others_stay() -> None:
    (plain,) = spec_of({"workerGroups": [GROUP]})["containers"]
    (ray,) = spec_of({"workerGroups": [GROUP | {"containerOverrides": {"lifecycle": LIFECYCLE}}]})["containers"]
    assert ray == plain | {"lifecycle": LIFECYCLE}


def test_the_head_has_the_same_way_out_and_the_workers_stay_as_they_are() -> None:
    values = {"workerGroups": [GROUP], "head": {"podSpecOverrides": {"tolerations": [{"operator": "Exists"}]}}}
    assert spec_of(values, "head")["tolerations"][-1] == {"operator": "Exists"}
    assert spec_of(values) == spec_of({"workerGroups": [GROUP]})


def test_fields_of_the_cluster_go_over_the_charts() -> None:
    own = {
        "autoscalerOptions": {"idleTimeoutSeconds": 7},
        "headGroupSpec": {"headService": {"metadata": {"annotations": {"a": "b"}}}},
    }
    values = {"autoscaler": {"enabled": True}}
    plain, cluster = release(values=values).cluster, release(values=values | {"rayClusterOverrides": own}).cluster
    assert cluster["autoscalerOptions"] == plain["autoscalerOptions"] | {"idleTimeoutSeconds": 7}
    assert cluster["headGroupSpec"] == plain["headGroupSpec"] | own["headGroupSpec"]
    assert cluster["workerGroupSpecs"] == plain["workerGroupSpecs"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"rayClusterOverrides": {"workerGroupSpecs": []}}, "/rayClusterOverrides"),
        ({"head": {"containerOverrides": {"env": []}}}, "/head/containerOverrides/env"),
        ({"workerGroups": [GROUP | {"containerOverrides": {"name": "x"}}]}, "/workerGroups/0/containerOverrides/name"),
    ],
)
def test_what_has_a_value_of_its_own_is_refused_there(values: dict[str, Any], place: str) -> None:
    assert place in refusal(values=values)
