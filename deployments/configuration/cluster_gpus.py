"""The GPUs that a RayService's pods have, against those that its models ask for. Pure: values in, findings out.

A replica whose GPUs no pod has waits for ever, and nothing fails meanwhile. Says nothing where the manifest does not say it: worker
groups of another form, GPUs by a name of their own, a model without GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nightjar.deployments.configuration.deployed import DeployedModel
from nightjar.deployments.configuration.findings import Finding, Place


@dataclass(frozen=True, slots=True)
class ClusterGpus:
    """GPUs of the largest worker pod, and of all of them when every group is as large as it may be."""

    largest_pod: int
    all_pods: int


def cluster_gpus(manifest: Any) -> ClusterGpus | None:
    """Of a RayService's plain values; None where they do not say."""
    groups = _get(manifest, "spec", "rayClusterConfig", "workerGroupSpecs")
    if not isinstance(groups, list) or not groups:
        return None
    pods = [(_pod_gpus(group), _get(group, "maxReplicas", default=_get(group, "replicas", default=1))) for group in groups]
    if any(not isinstance(number, int) for pair in pods for number in pair):
        return None
    return ClusterGpus(max(gpus for gpus, _ in pods), sum(gpus * most for gpus, most in pods))


def gpu_findings(gpus: ClusterGpus, models: Sequence[tuple[Place, DeployedModel]]) -> Iterator[Finding]:
    """What no pod can hold, and what does not fit into all pods together; each model comes with its application's place."""
    asked: list[tuple[Place, float]] = []
    for place, deployed in models:
        options = deployed.config.deployment_config
        needed = float((options.get("ray_actor_options") or {}).get("num_gpus") or 0)
        where = (*place, *deployed.place_of("ray_actor_options"))
        if needed > gpus.largest_pod:
            yield Finding(
                "error",
                where,
                f"one replica needs {needed:g} GPUs in one pod, and the largest of workerGroupSpecs has {gpus.largest_pod}: it "
                "would wait for ever; give a group larger pods, or lower tensor_parallel_size",
            )
            return
        replicas = (options.get("autoscaling_config") or {}).get("max_replicas") or options.get("num_replicas") or 1
        asked.append((where, needed * (replicas if isinstance(replicas, int) else 1)))
    total = sum(number for _, number in asked)
    if total > gpus.all_pods:
        yield Finding(
            "error",
            max(asked, key=lambda one: one[1])[0],
            f"all replicas together need {total:g} GPUs, and workerGroupSpecs have {gpus.all_pods} at most: some would wait for "
            "ever; raise maxReplicas, or ask for fewer",
        )


def _pod_gpus(group: Any) -> Any:
    """Of one pod: what `ray start` is told, else what its containers are limited to; None where it is no whole number."""
    told = _get(group, "rayStartParams", "num-gpus")
    if told is not None:
        return int(told) if str(told).isdecimal() else None
    containers = _get(group, "template", "spec", "containers", default=[])
    limits = [_get(container, "resources", "limits", default={}) for container in containers if isinstance(container, Mapping)]
    numbers = [
        str(value) for one in limits if isinstance(one, Mapping) for name, value in one.items() if str(name).endswith("/gpu")
    ]
    return sum(map(int, numbers)) if all(number.isdecimal() for number in numbers) else None


def _get(value: Any, *path: str, default: Any = None) -> Any:
    for part in path:
        if not isinstance(value, Mapping) or value.get(part) is None:
            return default
        value = value[part]
    return value
