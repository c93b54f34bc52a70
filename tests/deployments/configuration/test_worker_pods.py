"""The pods of a RayService are counted as KubeRay makes them; what a manifest does not say is not guessed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.configuration.check.placement import Demand, placement_findings
from nightjar.deployments.configuration.check.rayservice import UNBOUNDED, PodGroup, is_gpu, service_pods


def pod_group(autoscaled: bool = False, limits: Any = None, **group: Any) -> PodGroup:
    template = {"spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1} if limits is None else limits}}]}}
    cluster = {"enableInTreeAutoscaling": autoscaled, "workerGroupSpecs": [{"groupName": "g", "template": template} | group]}
    found = service_pods({"spec": {"rayClusterConfig": cluster}})
    assert found is not None
    (only,) = found.groups
    return only


@pytest.mark.parametrize(
    ("resource", "counts"),
    [
        ("nvidia.com/gpu", True),
        ("amd.com/gpu", True),
        ("nvidia.com/mig-3g.40gb", True),
        ("nvidia.com/mig-1g.10gb.me", False),
        ("nvidia.com/gpu.shared", False),
        ("cpu", False),
    ],
)
def test_a_resource_is_gpus_where_kuberay_says_so(resource: str, counts: bool) -> None:
    assert is_gpu(resource) is counts


@pytest.mark.parametrize(
    ("fields", "started", "most"),
    [
        ({}, 0, UNBOUNDED),
        ({"replicas": 1, "maxReplicas": 10}, 1, 10),
        ({"minReplicas": 2, "maxReplicas": 3}, 2, 3),
        ({"replicas": 9, "maxReplicas": 3}, 3, 3),
        ({"replicas": 2, "maxReplicas": 3, "numOfHosts": 4}, 8, 12),
        ({"replicas": 2, "maxReplicas": 3, "numOfHosts": 0}, 2, 3),
    ],
)
def test_kuberay_keeps_as_many_pods_as_replicas_says_within_its_bounds(fields: dict[str, int], started: int, most: int) -> None:
    fixed, scaled = pod_group(False, **fields), pod_group(True, **fields)
    assert (fixed.started, fixed.most) == (started, started)
    assert (scaled.started, scaled.most) == (started, most)


def test_a_suspended_group_has_no_pod() -> None:
    assert pod_group(replicas=3, suspend=True).most == 0


@pytest.mark.parametrize(
    ("limits", "fields", "gpus"),
    [
        ({"nvidia.com/gpu": "4"}, {}, 4),
        ({"nvidia.com/gpu": 4}, {"rayStartParams": {"num-gpus": "2"}}, 2),
        ({"nvidia.com/gpu": 4}, {"rayStartParams": {"num-gpus": "2"}, "resources": {"GPU": "3"}}, 3),
        ({"nvidia.com/gpu": 0, "nvidia.com/mig-1g.5gb": 7}, {}, 7),
        ({"amd.com/gpu": 1, "nvidia.com/gpu": 2}, {}, 1),
        ({"cpu": "8"}, {}, 0),
        ({}, {}, 0),
        ({"nvidia.com/gpu": "many"}, {}, None),
        ({"nvidia.com/gpu": 1000}, {}, None),
        ({"nvidia.com/gpu": 4}, {"rayStartParams": {"num-gpus": "many"}}, None),
        ({"nvidia.com/gpu.shared": 4}, {}, None),
    ],
)
def test_gpus_are_what_ray_is_told_or_the_first_limit_that_is_one(limits: Any, fields: dict[str, Any], gpus: int | None) -> None:
    assert pod_group(limits=limits, **fields).gpus == gpus


@pytest.mark.parametrize(
    ("fields", "types"),
    [
        ({"rayStartParams": {"resources": '"{\\"accelerator_type:H100\\": 1, \\"other\\": 2}"'}}, {"H100"}),
        ({"rayStartParams": {"resources": "'{\"accelerator_type:H100\": 1}'"}}, {"H100"}),
        ({"rayStartParams": {"resources": "'{\"accelerator_type:H100\": 1}'"}, "resources": {"CPU": "1"}}, set()),
        ({"resources": {"accelerator_type:L4": "1"}}, {"L4"}),
        ({"rayStartParams": {"resources": "nonsense"}}, set()),
        ({}, set()),
    ],
)
def test_types_are_those_that_the_groups_resources_name(fields: dict[str, Any], types: set[str]) -> None:
    assert pod_group(**fields).accelerators == types


@pytest.mark.parametrize(
    ("product", "likely"),
    [
        ("NVIDIA-A100-SXM4-80GB", "A100"),
        ("Tesla-V100-SXM2-16GB", "V100"),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000"),
        ("NVIDIA-GeForce-RTX-4090", ""),
        ("nvidia-tesla-t4", "T4"),
        ("nvidia-h100-mega-80gb", "H100"),
        ("mine", ""),
    ],
)
def test_a_product_label_is_read_as_ray_reads_the_cards_name(product: str, likely: str) -> None:
    template = {"spec": {"nodeSelector": {"nvidia.com/gpu.product": product}, "containers": [{}]}}
    assert pod_group(template=template).likely == likely


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("[" * 9999),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("spec", "containers", "num-gpus", "resources")), inner)
    ),
    max_leaves=4,
)
FIELDS = ("replicas", "minReplicas", "maxReplicas", "numOfHosts", "suspend", "resources", "rayStartParams", "template", "groupName")


@given(st.dictionaries(st.sampled_from(FIELDS), JUNK), st.booleans())
def test_whatever_stands_in_a_group_the_answer_is_findings_or_nothing(group: dict[str, Any], autoscaled: bool) -> None:
    cluster = {"enableInTreeAutoscaling": autoscaled, "workerGroupSpecs": [group], "headGroupSpec": group}
    pods = service_pods({"spec": {"rayClusterConfig": cluster}})
    if pods is not None:
        placement_findings(pods, [Demand((), 3, (Fraction(1, 2), Fraction(2)), "H100", at_most=9)])


@pytest.mark.parametrize(
    "cluster",
    [
        None,
        7,
        {},
        {"headGroupSpec": {"template": {}}},
        {"headGroupSpec": 7, "workerGroupSpecs": [{}]},
        {"workerGroupSpecs": {}},
        {"workerGroupSpecs": [7]},
        {"workerGroupSpecs": [{"replicas": "2"}]},
    ],
)
def test_a_cluster_of_another_form_or_without_workers_says_nothing(cluster: object) -> None:
    assert service_pods({"spec": {"rayClusterConfig": cluster}}) is None
    assert service_pods(cluster) is None
