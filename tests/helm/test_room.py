"""What the chart cannot say of GPUs surely is left to `nightjar check`, which reads what it renders; both count as KubeRay does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightjar.deployments.configuration.check.report import check_text
from tests.helm.rendering import CHART, EXAMPLES, Release, needs_helm, notes_of, release

pytestmark = needs_helm
MODEL: dict[str, Any] = {"name": "m", "modelSource": "org/m", "acceleratorType": "H100"}
GROUP: dict[str, Any] = {"groupName": "g", "minReplicas": 1, "maxReplicas": 1, "resources": {"limits": {"nvidia.com/gpu": 1}}}
CLAIM = {"resources": {"claims": [{"name": "gpu"}]}, "podSpecOverrides": {"resourceClaims": [{"name": "gpu"}]}}
MIG = {"resources": {"limits": {"nvidia.com/mig-3g.40gb": 2}}}


def said(rendered: Release) -> list[str]:
    """What `nightjar check` says of replicas and pods."""
    lines = check_text(yaml.safe_dump(rendered.one("RayService"))).findings
    return [line.message for line in lines if "wait" in line.message or "were not counted" in line.message]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_check_finds_a_pod_for_every_replica_of_the_examples(example: Path) -> None:
    assert said(release(example)) == []


def test_check_says_what_the_chart_leaves_to_it() -> None:
    values = {
        "models": [
            MODEL | {"engineKwargs": {"tensor_parallel_size": 4}, "deploymentConfig": {"num_replicas": 2}},
            MODEL | {"name": "n", "routePrefix": "/n", "engineKwargs": {"tensor_parallel_size": 3}},
        ],
        "workerGroups": [GROUP | {"minReplicas": 2, "maxReplicas": 2, "resources": {"limits": {"nvidia.com/gpu": 6}}}],
    }
    (line,) = said(release(values=values))
    assert line.startswith("1 of 1 replicas may wait for ever")


def test_parts_of_a_gpu_are_counted_and_their_number_is_told_to_rays_autoscaler_too() -> None:
    values = {
        "models": [MODEL | {"deploymentConfig": {"num_replicas": 2}}],
        "workerGroups": [GROUP | MIG | {"acceleratorType": "H100"}],
    }
    for autoscaler in (False, True):
        group = values["workerGroups"][0] | {"minReplicas": 0 if autoscaler else 1}
        rendered = release(values=values | {"workerGroups": [group], "autoscaler": {"enabled": autoscaler}})
        (spec,) = rendered.cluster["workerGroupSpecs"]
        assert spec["rayStartParams"]["num-gpus"] == "2"
        assert said(rendered) == []


def test_a_pod_is_as_many_as_its_group_has_hosts() -> None:
    values = {"models": [MODEL | {"deploymentConfig": {"num_replicas": 4}}]}
    group = GROUP | {"minReplicas": 2, "maxReplicas": 2, "groupOverrides": {"numOfHosts": 2}}
    assert said(release(values=values | {"workerGroups": [group]})) == []


def test_gpus_by_resource_claim_pass_with_a_warning_in_the_notes_and_in_check(tmp_path: Path) -> None:
    values = {"models": [MODEL], "workerGroups": [GROUP | CLAIM]}
    rendered = release(values=values)
    (line,) = said(rendered)
    assert line.startswith("the GPUs of workerGroupSpecs[0] (g) were not counted (resource claims)")
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    notes = notes_of("--values", str(file))
    assert "WARNING: the GPUs of the worker group g come by a resource claim" in notes
    assert "get manifest llm | nightjar check -" in notes
    told = values | {"workerGroups": [GROUP | CLAIM | {"rayStartParams": {"num-gpus": "1"}}]}
    assert said(release(values=told)) == []


@pytest.mark.parametrize("example", [CHART / "examples/cpu.yaml"], ids=lambda path: path.stem)
def test_without_gpus_the_notes_say_nothing_of_them(example: Path) -> None:
    assert "with GPUs" not in notes_of("--values", str(example))
