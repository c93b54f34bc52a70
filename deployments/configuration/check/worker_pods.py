"""The pods of a RayService and the GPUs in them, as KubeRay makes them and as Ray's autoscaler knows them. Pure.

Without an autoscaler KubeRay keeps `replicas` pods of a group (v1.7.0, utils/util.go, GetWorkerGroupDesiredReplicas). With it there
may be up to `maxReplicas`, but Ray's autoscaler adds a pod only for what the group's own text says that the pod will have (Ray
2.60, kuberay/autoscaling_config.py): it looks into no pod. What a manifest does not say is None here, never 0: a wrong number would
refuse a cluster that works.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

UNBOUNDED: Final = 2_147_483_647
"""KubeRay's `maxReplicas` of a group that names none."""
PACK_VARIABLE: Final = "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"
ACCELERATOR_PREFIX: Final = "accelerator_type:"
"""Ray's resource of a node that has GPUs of a type."""
_MIG: Final = re.compile(r"nvidia\.com/mig-\d+g\.\d+gb$")
_LIKE_A_GPU: Final = re.compile(r"gpu|mig-")
_PRODUCT_LABELS: Final = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator")


@dataclass(frozen=True, slots=True)
class PodGroup:
    """Equal pods: those of a worker group, or the head."""

    name: str  # as messages show it
    gpus: int | None  # of one pod; None: the manifest does not say
    started: int  # pods that KubeRay makes by itself
    most: int  # pods with those that Ray's autoscaler may add
    accelerators: frozenset[str] = frozenset()  # types that its resources name; none: whatever its GPUs turn out to be
    likely: str = ""  # type that its node selector asks for; empty: not known
    gpus_source: str = ""  # the resource or the reason from which `gpus` is known, or not
    scaler_sees_gpus: bool = True  # whether Ray's autoscaler knows of `gpus`
    resources_field: Literal["rayStartParams.resources", "resources"] = "rayStartParams.resources"  # where its resources are named


@dataclass(frozen=True, slots=True)
class ServicePods:
    """All groups, the head first where it has GPUs."""

    groups: tuple[PodGroup, ...]
    is_autoscaled: bool = False
    packs: bool = False  # whether Serve is told to fill pods one after the other, in place of spreading


def is_gpu(resource: str) -> bool:
    """Whether KubeRay counts a pod's resource as GPUs of Ray (v1.7.0, utils/resources.go, IsGPUResourceKey)."""
    return resource.endswith("gpu") or _MIG.search(resource) is not None


def service_pods(manifest: Any) -> ServicePods | None:
    """Of a RayService's plain values; None where it has no cluster of the right form, or names neither workers nor GPUs."""
    cluster = _get(manifest, "spec", "rayClusterConfig")
    workers = _get(cluster, "workerGroupSpecs", default=[])
    if not isinstance(workers, list) or not all(isinstance(group, Mapping) for group in workers):
        return None
    head = _get(cluster, "headGroupSpec", default={})
    gpus, source, _ = _gpus(head) if isinstance(head, Mapping) else (0, "", True)
    if not isinstance(head, Mapping) or (gpus == 0 and not workers):
        return None
    is_autoscaled = _get(cluster, "enableInTreeAutoscaling") is True
    learns = _get(cluster, "autoscalerOptions", "version") != "v2"
    groups = [_group(group, number, is_autoscaled=is_autoscaled, learns=learns) for number, group in enumerate(workers)]
    if any(group is None for group in groups):
        return None
    at_head = [] if gpus == 0 else [PodGroup("the head", gpus, 1, 1, _accelerators(head), _likely(head), source)]
    packs = any(_get(one, "name") == PACK_VARIABLE and _get(one, "value") == "1" for one in _list(_ray_container(head), "env"))
    return ServicePods((*at_head, *(group for group in groups if group is not None)), is_autoscaled, packs)


def _group(group: Mapping[str, Any], number: int, *, is_autoscaled: bool, learns: bool) -> PodGroup | None:
    """None where a number of pods is none. `learns`: version 1 of the autoscaler takes GPUs over from pods that run."""
    asked, least = _get(group, "replicas", default=0), _get(group, "minReplicas", default=0)
    most, hosts = _get(group, "maxReplicas", default=UNBOUNDED), _get(group, "numOfHosts", default=1)
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in (asked, least, most, hosts)):
        return None
    started = 0 if _get(group, "suspend") is True else min(max(asked, least), most) * max(hosts, 1)
    gpus, source, scaler_sees_gpus = _gpus(group)
    return PodGroup(
        name=f"workerGroupSpecs[{number}] ({_get(group, 'groupName', default='without a name')})",
        gpus=gpus,
        started=started,
        most=max(started, most * max(hosts, 1)) if is_autoscaled else started,
        accelerators=_accelerators(group),
        likely=_likely(group),
        gpus_source=source,
        scaler_sees_gpus=scaler_sees_gpus or (learns and started > 0),
        resources_field="resources" if _get(group, "resources") else "rayStartParams.resources",
    )


def _gpus(group: Mapping[str, Any]) -> tuple[int | None, str, bool]:
    """GPUs of one pod, what says so, and whether Ray's autoscaler, which knows fewer names than KubeRay, reads the same.

    In this order (KubeRay v1.7.0, common/pod.go, updateRayStartParamsResources and addWellKnownAcceleratorResources): the group's
    `resources`, `num-gpus`, the first limit of Ray's container that is one of GPUs. Where none is, Ray counts what it finds.
    """
    for field, values, name in (("resources", "resources", "GPU"), ("rayStartParams", "rayStartParams", "num-gpus")):
        if (told := _get(group, values, name)) is not None:
            return _whole(told), f"{field}: {name}: {told}", True
    limits = _get(_ray_container(group), "resources", "limits", default={})
    given = {str(name): value for name, value in limits.items() if value} if isinstance(limits, Mapping) else {}
    for name in sorted(filter(is_gpu, given)):
        if (number := _whole(given[name])) != 0:
            return number, name, name.endswith("gpu")
    if _get(_ray_container(group), "resources", "claims"):
        return None, "resource claims", False
    unknown = next((name for name in sorted(given) if _LIKE_A_GPU.search(name)), None)
    return (0, "", True) if unknown is None else (None, f"{unknown}, which KubeRay does not count", False)


def _whole(quantity: object) -> int | None:
    """None for what is no whole number below 1,000: no pod has as many GPUs."""
    return int(str(quantity)) if re.fullmatch(r"[0-9]{1,3}", str(quantity)) else None


def _accelerators(group: Mapping[str, Any]) -> frozenset[str]:
    """Types that the group's resources name; its `resources` go over those of `ray start`."""
    named = _get(group, "resources", default={})
    if not named:
        text = str(_get(group, "rayStartParams", "resources", default="")).strip("'\"` ").replace("\\", "")
        try:
            named = json.loads(text or "{}")
        except (ValueError, RecursionError):
            named = {}
    names = map(str, named) if isinstance(named, Mapping) else iter(())
    return frozenset(name.removeprefix(ACCELERATOR_PREFIX) for name in names if name.startswith(ACCELERATOR_PREFIX))


def _likely(group: Mapping[str, Any]) -> str:
    """What Ray will call the GPUs of the nodes that the node selector asks for, by NVIDIA's or GKE's label; empty: not known.

    `NVIDIA-H100-80GB-HBM3` and `nvidia-h100-80gb` are H100: the words in capitals up to the first with a digit (Ray 2.60,
    accelerators/nvidia_gpu.py). A guess: the label's value is an administrator's, and only warnings may rest on it.
    """
    selector = _get(group, "template", "spec", "nodeSelector", default={})
    product = (
        next((str(selector[label]) for label in _PRODUCT_LABELS if label in selector), "") if isinstance(selector, Mapping) else ""
    )
    words = [word.upper() if product.islower() else word for word in product.split("-")]
    kept = [word for word in words if word.upper() not in {"NVIDIA", "TESLA"}]
    for number, word in enumerate(kept):
        if not word.isupper() and not word.isdecimal():
            return ""
        if any(letter.isdigit() for letter in word):
            return "-".join(kept[: number + 1])
    return ""


def _ray_container(group: Mapping[str, Any]) -> Any:
    """KubeRay runs Ray in the first container."""
    return next(iter(_list(_get(group, "template", "spec"), "containers")), None)


def _list(value: Any, field: str) -> Iterator[Any]:
    found = _get(value, field)
    return iter(found if isinstance(found, list) else [])


def _get(value: Any, *path: str, default: Any = None) -> Any:
    for part in path:
        if not isinstance(value, Mapping) or value.get(part) is None:
            return default
        value = value[part]
    return value
