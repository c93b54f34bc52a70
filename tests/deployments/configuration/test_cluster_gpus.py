"""`nightjar check` of a RayService: replicas whose GPUs no pod has wait for ever, so they are errors before it is deployed."""

from __future__ import annotations

from textwrap import indent

import pytest
import yaml

from nightjar.deployments.configuration.checking import check_text
from nightjar.deployments.configuration.cluster_gpus import ClusterGpus, cluster_gpus

MODEL = """\
applications:
- name: chat
  import_path: nightjar.deployments.app:build
  args:
    llm_configs:
    - model_loading_config: {{model_id: chat, model_source: someone/target}}
      accelerator_type: H100
      engine_kwargs:
        tensor_parallel_size: {per_replica}
        max_num_seqs: 64
        speculative_config: {{method: draft_model, model: someone/draft, num_speculative_tokens: 5}}
      deployment_config: {{{replicas}}}
"""
SERVICE = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {{name: chat}}
spec:
  serveConfigV2: |
{config}
  rayClusterConfig:
    workerGroupSpecs: {groups}
"""
FIXED, SCALED = "num_replicas: 3", "autoscaling_config: {min_replicas: 1, max_replicas: 3}"


def group(gpus: str, most: int = 1, told: str = "") -> str:
    parameters = f"rayStartParams: {{num-gpus: '{told}'}}, " if told else ""
    return f"{{{parameters}maxReplicas: {most}, template: {{spec: {{containers: [{{resources: {{limits: {{{gpus}}}}}}}]}}}}}}"


def errors(per_replica: int, replicas: str, *groups: str) -> list[str]:
    config = indent(MODEL.format(per_replica=per_replica, replicas=replicas), "    ").rstrip("\n")
    lines = check_text(SERVICE.format(config=config, groups=f"[{', '.join(groups)}]")).lines
    return [line.text("f") for line in lines if line.finding.severity == "error"]


@pytest.mark.parametrize("replicas", [FIXED, SCALED])
def test_what_fits_is_no_error(replicas: str) -> None:
    assert errors(2, replicas, group("nvidia.com/gpu: 4", most=1), group("nvidia.com/gpu: 2", most=1)) == []


def test_a_replica_that_no_pod_holds_is_an_error_with_the_way_out() -> None:
    (line,) = errors(4, FIXED, group("nvidia.com/gpu: 2", most=9))
    assert "one replica needs 4 GPUs in one pod, and the largest of workerGroupSpecs has 2" in line
    assert "lower tensor_parallel_size" in line


@pytest.mark.parametrize("replicas", [FIXED, SCALED])
def test_replicas_that_do_not_fit_into_all_pods_together_are_an_error(replicas: str) -> None:
    (line,) = errors(2, replicas, group("nvidia.com/gpu: 2", most=2))
    assert "all replicas together need 6 GPUs, and workerGroupSpecs have 4 at most" in line


@pytest.mark.parametrize(
    ("groups", "known"),
    [
        ([group("nvidia.com/gpu: '4'", most=2), group("cpu: 2")], ClusterGpus(4, 8)),
        ([group("amd.com/gpu: 1", most=3, told="2")], ClusterGpus(2, 6)),
        ([group("nvidia.com/gpu: many")], None),
        ([group("cpu: 1", told="many")], None),
        (["{template: {}}"], ClusterGpus(0, 0)),
        (["7"], ClusterGpus(0, 0)),
        ([], None),
    ],
)
def test_gpus_are_what_ray_is_told_or_what_containers_are_limited_to(groups: list[str], known: ClusterGpus | None) -> None:
    text = SERVICE.format(config="    x: 1", groups=f"[{', '.join(groups)}]")
    assert cluster_gpus(yaml.safe_load(text)) == known


@pytest.mark.parametrize("manifest", [None, 7, {}, {"spec": []}, {"spec": {"rayClusterConfig": {"workerGroupSpecs": {}}}}])
def test_a_manifest_of_another_form_says_nothing(manifest: object) -> None:
    assert cluster_gpus(manifest) is None
