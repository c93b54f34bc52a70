"""What a RayService says beside its Serve config: Ray's version, the images, the pods' variables. Pure: values in, findings out.

A config that is right in itself does not deploy where its pods cannot import what it names. What an image of the user's own holds
cannot be known here, and is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from nightjar.deployments.configuration.check.findings import Finding, Place, shown

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


def cluster_findings(manifest: Any, applications: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A RayService whose pods cannot import Nightjar, or have a Ray that it was never run with. Placed in the manifest."""
    ours = [application for application in applications if str(application.get("import_path")).startswith(_OURS)]
    if not ours or not isinstance(manifest, Mapping):
        return
    place: Place = ("spec", "rayClusterConfig", "rayVersion")
    version = _get(manifest, place)
    if version is not None and not _is_supported(str(version)):
        message = (
            f"{shown(version)}; Nightjar was run with Ray {SUPPORTED_RAY} alone: take images that have it, and write "
            f"{SUPPORTED_RAY}.0"
        )
        yield Finding("warning", place, message)
    if any(_BRING_PACKAGES & set(_mapping(application.get("runtime_env"))) for application in ours):
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
    found: list[dict[str, str]] = []
    for place in _ray_containers(manifest):
        variables = _get(manifest, (*place, "env"))
        named = [each for each in variables if isinstance(each, Mapping)] if isinstance(variables, list) else []
        found.append(
            {str(each.get("name")): ELSEWHERE if each.get("valueFrom") else str(each.get("value") or "") for each in named}
        )
    return found


def _images(manifest: Any) -> Iterator[tuple[Place, str]]:
    for container in _ray_containers(manifest):
        place: Place = (*container, "image")
        if isinstance(image := _get(manifest, place), str):
            yield place, image


def _ray_containers(manifest: Any) -> list[Place]:
    """The first of each pod, which runs Ray (KubeRay v1.7.0, ray-operator, RayContainerIndex)."""
    cluster: Place = ("spec", "rayClusterConfig")
    groups = _get(manifest, (*cluster, "workerGroupSpecs"))
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


def _get(value: Any, place: Place) -> Any:
    for part in place:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
