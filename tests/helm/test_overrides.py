"""A way out of the closed schema: what the chart has no value for goes over what it writes, and changes nothing else."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.helm.rendering import needs_helm, refusal, release
from tests.helm.test_rayservice import problems

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


def test_fields_of_a_worker_group_go_over_the_charts() -> None:
    own = {
        "numOfHosts": 2,
        "idleTimeoutSeconds": 7,
        "priority": 3,
        "labels": {"zone": "a"},
        "scaleStrategy": {"workersToDelete": []},
    }
    values = {"workerGroups": [GROUP, GROUP | {"groupName": "other"}], "autoscaler": {"enabled": True}}
    (plain, other) = release(values=values).cluster["workerGroupSpecs"]
    values["workerGroups"] = [GROUP | {"groupOverrides": own}, GROUP | {"groupName": "other"}]
    rendered = release(values=values)
    assert rendered.cluster["workerGroupSpecs"] == [plain | own, other]
    assert problems(rendered.one("RayService")) == []


def test_fields_of_the_rayservice_go_over_the_charts_and_its_serve_config_stays_a_text() -> None:
    own = {"serveService": {"metadata": {"annotations": {"a": "b"}}}, "managedBy": "kueue.x-k8s.io/multikueue", "suspend": True}
    plain, rendered = release().one("RayService"), release(values={"rayServiceOverrides": own}).one("RayService")
    config = plain["spec"]["serveConfigV2"]
    assert rendered["spec"]["serveConfigV2"].strip() == config.strip()
    assert rendered["spec"] | {"serveConfigV2": config} == plain["spec"] | own
    assert problems(rendered) == []


def test_a_topology_constraint_is_of_the_pods_of_its_group_unless_it_says_otherwise() -> None:
    zone = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    mine = zone | {"labelSelector": {"matchLabels": {"a": "b"}}}
    values = {"workerGroups": [GROUP | {"topologySpreadConstraints": [zone, mine]}], "head": {"topologySpreadConstraints": [zone]}}
    pods = release(values=values).ray_pods()
    (ours, theirs) = spec_of(values)["topologySpreadConstraints"]
    assert theirs == mine
    selected = ours["labelSelector"]["matchLabels"]
    assert selected.items() <= pods["w"]["metadata"]["labels"].items() | {("ray.io/group", "w")}
    assert selected["ray.io/group"] == "w"
    (of_head,) = spec_of(values, "head")["topologySpreadConstraints"]
    assert of_head["labelSelector"]["matchLabels"].items() <= pods["head"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"rayClusterOverrides": {"workerGroupSpecs": []}}, "/rayClusterOverrides"),
        ({"rayServiceOverrides": {"rayClusterConfig": {}}}, "/rayServiceOverrides/rayClusterConfig"),
        ({"workerGroups": [GROUP | {"groupOverrides": {"maxReplicas": 2}}]}, "/workerGroups/0/groupOverrides/maxReplicas"),
        ({"head": {"containerOverrides": {"env": []}}}, "/head/containerOverrides/env"),
        ({"workerGroups": [GROUP | {"containerOverrides": {"name": "x"}}]}, "/workerGroups/0/containerOverrides/name"),
    ],
)
def test_what_has_a_value_of_its_own_is_refused_there(values: dict[str, Any], place: str) -> None:
    assert place in refusal(values=values)
