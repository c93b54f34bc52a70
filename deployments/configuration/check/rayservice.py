"""What a RayService says beside its Serve config: Ray's version, the images, the pods' variables, and the GPUs in them. Pure.

A config that is right in itself does not deploy where its pods cannot import what it names. What an image of the user's own holds
cannot be known here, and is said to be unknown.

Pods are counted as KubeRay makes them and as Ray's autoscaler knows them. Without an autoscaler KubeRay keeps `replicas` pods of a
group (v1.7.0, utils/util.go, GetWorkerGroupDesiredReplicas). With it there may be up to `maxReplicas`, but Ray's autoscaler adds a
pod only for what the group's own text says that the pod will have (Ray 2.60, kuberay/autoscaling_config.py): it looks into no pod.
What a manifest does not say is None here, never 0: a wrong number would refuse a cluster that works.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from nightjar.deployments.configuration.check.findings import Finding, Place, shown
from nightjar.deployments.configuration.check.source import mapping_in, mappings_in, value_at

SUPPORTED_RAY: Final = "2.60"
"""The one minor version that Nightjar is tested with (docs/support.md); a test holds it against pyproject.toml."""
_OURS: Final = "nightjar."
_OF_OTHERS: Final = ("rayproject/ray", "rayproject/ray-ml", "rayproject/ray-llm", "vllm/vllm-openai")
"""Images of other projects on Docker Hub: none of them holds nightjar-serve. In another registry the same name may be a copy, or
the user's own image on one of these; which cannot be told, so that it is one of the `unknown_images`."""
_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io"})
ELSEWHERE: Final = "of valueFrom"
"""Stands for a variable's value that the manifest names and does not hold."""
_BRING_PACKAGES: Final = frozenset({"pip", "uv", "conda", "py_modules", "working_dir", "image_uri", "container"})
"""Fields of a runtime_env by which Ray may put packages into an image that lacks them."""

UNBOUNDED: Final = 2_147_483_647
"""KubeRay's `maxReplicas` of a group that names none."""
PACK_VARIABLE: Final = "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"
ACCELERATOR_PREFIX: Final = "accelerator_type:"
"""Ray's resource of a node that has GPUs of a type."""
_MIG: Final = re.compile(r"nvidia\.com/mig-\d+g\.\d+gb$")
_LIKE_A_GPU: Final = re.compile(r"gpu|mig-")
_PRODUCT_LABELS: Final = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator")


def cluster_findings(manifest: Any, applications: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A RayService whose pods cannot import Nightjar, or have a Ray that it was never run with. Placed in the manifest."""
    ours = [application for application in applications if str(application.get("import_path")).startswith(_OURS)]
    if not ours or not isinstance(manifest, Mapping):
        return
    place: Place = ("spec", "rayClusterConfig", "rayVersion")
    version = value_at(manifest, *place)
    if version is not None and not _is_supported(str(version)):
        message = (
            f"{shown(version)}; Nightjar was run with Ray {SUPPORTED_RAY} alone: take images that have it, and write "
            f"{SUPPORTED_RAY}.0"
        )
        yield Finding("warning", place, message)
    if any(_BRING_PACKAGES & set(mapping_in(application.get("runtime_env"))) for application in ours):
        return
    for where, image in _images(manifest):
        if _repository(image) in _OF_OTHERS:
            message = (
                f"{shown(image)} has no nightjar-serve, so {ours[0]['import_path']} cannot be imported in it; build an image on it "
                "(Dockerfile, targets gpu and ray-llm) and name that"
            )
            yield Finding("error", where, message)


def unknown_images(manifest: Any) -> list[str]:
    """The images of the pods that may hold nightjar-serve, or not, each once."""
    return list(dict.fromkeys(image for _, image in _images(manifest) if _repository(image) not in _OF_OTHERS))


def pod_variables(manifest: Any) -> list[dict[str, str]]:
    """The variables of each pod's Ray container; `ELSEWHERE` for a value that a secret or a field has."""
    return [
        {
            str(each.get("name")): ELSEWHERE if each.get("valueFrom") else str(each.get("value") or "")
            for each in mappings_in(value_at(manifest, *place, "env"))
            if each
        }
        for place in _ray_containers(manifest)
    ]


def _images(manifest: Any) -> Iterator[tuple[Place, str]]:
    for container in _ray_containers(manifest):
        place: Place = (*container, "image")
        if isinstance(image := value_at(manifest, *place), str):
            yield place, image


def _ray_containers(manifest: Any) -> list[Place]:
    """The first of each pod, which runs Ray (KubeRay v1.7.0, ray-operator, RayContainerIndex)."""
    cluster: Place = ("spec", "rayClusterConfig")
    groups = value_at(manifest, *cluster, "workerGroupSpecs")
    numbers = range(len(groups)) if isinstance(groups, list) else ()
    pods: list[Place] = [(*cluster, "headGroupSpec"), *((*cluster, "workerGroupSpecs", number) for number in numbers)]
    return [(*pod, "template", "spec", "containers", 0) for pod in pods]


def _repository(image: str) -> str:
    """An image's name without tag and digest, and without the registry where that is Docker Hub.

    >>> _repository("docker.io/rayproject/ray-llm:2.60.0-py312-cu130"), _repository("registry.corp:5000/rayproject/ray@sha256:0")
    ('rayproject/ray-llm', 'registry.corp:5000/rayproject/ray')
    """
    *parents, last = image.partition("@")[0].split("/")
    if parents and parents[0] in _DOCKER_HUB:
        del parents[0]
    return "/".join([*parents, last.partition(":")[0]])


def _is_supported(version: str) -> bool:
    return version == SUPPORTED_RAY or version.startswith(f"{SUPPORTED_RAY}.")


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
    cluster = value_at(manifest, "spec", "rayClusterConfig")
    workers = value_at(cluster, "workerGroupSpecs", default=[])
    if not isinstance(workers, list) or not all(isinstance(group, Mapping) for group in workers):
        return None
    head = value_at(cluster, "headGroupSpec", default={})
    gpus, source, _ = _gpus(head) if isinstance(head, Mapping) else (0, "", True)
    if not isinstance(head, Mapping) or (gpus == 0 and not workers):
        return None
    is_autoscaled = value_at(cluster, "enableInTreeAutoscaling") is True
    learns = value_at(cluster, "autoscalerOptions", "version") != "v2"
    groups = [_group(group, number, is_autoscaled=is_autoscaled, learns=learns) for number, group in enumerate(workers)]
    if any(group is None for group in groups):
        return None
    at_head = [] if gpus == 0 else [PodGroup("the head", gpus, 1, 1, _accelerators(head), _likely(head), source)]
    packs = any(
        one.get("name") == PACK_VARIABLE and one.get("value") == "1" for one in mappings_in(value_at(_ray_container(head), "env"))
    )
    return ServicePods((*at_head, *(group for group in groups if group is not None)), is_autoscaled, packs)


def _group(group: Mapping[str, Any], number: int, *, is_autoscaled: bool, learns: bool) -> PodGroup | None:
    """None where a number of pods is none. `learns`: version 1 of the autoscaler takes GPUs over from pods that run."""
    asked, least = value_at(group, "replicas", default=0), value_at(group, "minReplicas", default=0)
    most, hosts = value_at(group, "maxReplicas", default=UNBOUNDED), value_at(group, "numOfHosts", default=1)
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in (asked, least, most, hosts)):
        return None
    started = 0 if value_at(group, "suspend") is True else min(max(asked, least), most) * max(hosts, 1)
    gpus, source, scaler_sees_gpus = _gpus(group)
    return PodGroup(
        name=f"workerGroupSpecs[{number}] ({value_at(group, 'groupName', default='without a name')})",
        gpus=gpus,
        started=started,
        most=max(started, most * max(hosts, 1)) if is_autoscaled else started,
        accelerators=_accelerators(group),
        likely=_likely(group),
        gpus_source=source,
        scaler_sees_gpus=scaler_sees_gpus or (learns and started > 0),
        resources_field="resources" if value_at(group, "resources") else "rayStartParams.resources",
    )


def _gpus(group: Mapping[str, Any]) -> tuple[int | None, str, bool]:
    """GPUs of one pod, what says so, and whether Ray's autoscaler, which knows fewer names than KubeRay, reads the same.

    In this order (KubeRay v1.7.0, common/pod.go, updateRayStartParamsResources and addWellKnownAcceleratorResources): the group's
    `resources`, `num-gpus`, the first limit of Ray's container that is one of GPUs. Where none is, Ray counts what it finds.
    """
    for field, values, name in (("resources", "resources", "GPU"), ("rayStartParams", "rayStartParams", "num-gpus")):
        if (told := value_at(group, values, name)) is not None:
            return _whole(told), f"{field}: {name}: {told}", True
    limits = value_at(_ray_container(group), "resources", "limits", default={})
    given = {str(name): value for name, value in limits.items() if value} if isinstance(limits, Mapping) else {}
    for name in sorted(filter(is_gpu, given)):
        if (number := _whole(given[name])) != 0:
            return number, name, name.endswith("gpu")
    if value_at(_ray_container(group), "resources", "claims"):
        return None, "resource claims", False
    unknown = next((name for name in sorted(given) if _LIKE_A_GPU.search(name)), None)
    return (0, "", True) if unknown is None else (None, f"{unknown}, which KubeRay does not count", False)


def _whole(quantity: object) -> int | None:
    """None for what is no whole number below 1,000: no pod has as many GPUs."""
    return int(str(quantity)) if re.fullmatch(r"[0-9]{1,3}", str(quantity)) else None


def _accelerators(group: Mapping[str, Any]) -> frozenset[str]:
    """Types that the group's resources name; its `resources` go over those of `ray start`."""
    named = value_at(group, "resources", default={})
    if not named:
        text = str(value_at(group, "rayStartParams", "resources", default="")).strip("'\"` ").replace("\\", "")
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
    selector = value_at(group, "template", "spec", "nodeSelector", default={})
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
    return value_at(group, "template", "spec", "containers", 0)
