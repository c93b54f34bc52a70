"""`nightjar check` of a RayService: whether its pods can import Nightjar, and what was not looked at."""

from __future__ import annotations

import tomllib
from pathlib import Path
from textwrap import indent

import pytest
from typer.testing import CliRunner

from nightjar.deployments.configuration.check.rayservice import SUPPORTED_RAY
from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.commands import app
from tests.deployments.configuration.samples import RAY_SERVICES

ROOT = Path(__file__).parents[3]
IMAGE = "rayproject/ray-llm:2.60.0-py312-cu130"
MANIFEST = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: chat}
spec:
  serveConfigV2: |
    applications:
    - name: chat
      import_path: nightjar.deployments.app:build
      args:
        llm_configs:
        - model_loading_config: {model_id: chat, model_source: someone/chat}
          accelerator_type: L4
    - name: nightjar
      import_path: nightjar.cluster.policy_app:build
      route_prefix: /nightjar
  rayClusterConfig:
    rayVersion: "2.60.0"
    headGroupSpec:
      template:
        spec:
          containers:
          - {name: ray-head, image: "registry.example.com/serve:1"}
    workerGroupSpecs:
    - groupName: gpus
      replicas: 1
      template:
        spec:
          containers:
          - name: ray-worker
            image: registry.example.com/serve:1
            resources: {limits: {nvidia.com/gpu: 1}}
"""
AS_LIST = "apiVersion: v1\nkind: List\nitems:\n- " + indent(MANIFEST, "  ").lstrip() + "metadata: {resourceVersion: ''}\n"
"""As `kubectl get rayservice -o yaml` prints it."""


def of_cluster(text: str) -> list[str]:
    """What is said of places in the manifest."""
    return [line.text("f") for line in check_text(text).findings if line.place[:1] == ("spec",)]


def test_the_supported_ray_is_the_one_that_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"ray[serve]=={SUPPORTED_RAY}.*" in project["optional-dependencies"]["serve"]


def test_images_of_a_name_that_says_nothing_are_listed_as_not_read_and_no_mistake() -> None:
    assert of_cluster(MANIFEST) == []
    assert check_text(MANIFEST).not_read == (
        f"image registry.example.com/serve:1: whether it holds nightjar-serve, Ray {SUPPORTED_RAY} and vLLM",
    )


@pytest.mark.parametrize("image", [IMAGE, "docker.io/vllm/vllm-openai:v0.32.0", "rayproject/ray@sha256:0"])
def test_an_image_of_another_project_has_no_nightjar_and_is_an_error_at_its_line(image: str) -> None:
    (error,) = of_cluster(MANIFEST.replace("image: registry.example.com/serve:1\n", f"image: {image}\n"))
    assert error.startswith("f:30: error: spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.image: ")
    assert f"{image!r} has no nightjar-serve, so nightjar.deployments.app:build cannot be imported in it" in error


def test_a_name_of_another_project_in_a_registry_of_the_users_own_says_nothing() -> None:
    """Own images on Ray's keep its name there, and so do copies of it."""
    image = "registry.corp:5000/rayproject/ray-llm:2.60-nightjar"
    text = MANIFEST.replace("registry.example.com/serve:1", image)
    assert of_cluster(text) == []
    assert [line.partition(": ")[0] for line in check_text(text).not_read] == [f"image {image}"]


def test_where_a_runtime_env_may_bring_packages_nothing_is_said_of_images() -> None:
    brings = MANIFEST.replace("      args:\n", "      runtime_env: {working_dir: 'https://example.com/app.zip'}\n      args:\n")
    assert of_cluster(brings.replace("registry.example.com/serve:1", IMAGE)) == []


@pytest.mark.parametrize(("version", "is_known"), [("2.60.0", True), ("2.60.3", True), ("2.52.0", False), ("2.600.0", False)])
def test_a_ray_that_nightjar_never_ran_with_is_a_warning(version: str, is_known: bool) -> None:
    found = of_cluster(MANIFEST.replace('"2.60.0"', f'"{version}"'))
    expected = f"f:17: warning: spec.rayClusterConfig.rayVersion: '{version}'; Nightjar was run with Ray {SUPPORTED_RAY} alone"
    assert [line.startswith(expected) for line in found] == ([] if is_known else [True])


def test_a_manifest_without_nightjar_is_nobodys_to_judge() -> None:
    theirs = RAY_SERVICES["literal"].replace("example/ray-llm", IMAGE).replace("2.60.0", "2.40.0")
    assert of_cluster(theirs) == []


@pytest.mark.parametrize(
    "broken",
    [
        "rayClusterConfig: []",
        "rayClusterConfig: {headGroupSpec: 3, workerGroupSpecs: {}}",
        "rayClusterConfig: {workerGroupSpecs: [{template: {spec: {containers: [{image: 3, env: [1, {}]}]}}}]}",
    ],
)
def test_a_manifest_of_another_form_breaks_nothing(broken: str) -> None:
    assert of_cluster(MANIFEST.partition("  rayClusterConfig:")[0] + f"  {broken}\n") == []


def test_a_list_is_read_as_the_manifests_that_it_holds() -> None:
    shift = 3
    alone, listed = (
        check_text(text.replace("serve:1\n", "serve:1\n").replace("model_id: chat,", "model_idd: chat,"))
        for text in (MANIFEST, AS_LIST)
    )
    assert alone.num_errors > 0
    assert [line.line - shift for line in listed.findings] == [line.line for line in alone.findings]
    assert list(listed.findings) == list(alone.findings)


def test_no_error_is_only_said_of_what_was_read(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n"
        "- {name: shop, route_prefix: /shop, import_path: 'shop.api:app'}\n"
        "- name: llm\n"
        "  import_path: nightjar.deployments.serve_llm:build_openai_app\n"
        "  args: {llm_configs: [{model_loading_config: {model_id: m}, accelerator_config: {kind: cpu}}]}\n"
    )
    said = CliRunner().invoke(app, ["check", str(file)]).output
    assert "no application nightjar.cluster.policy_app:build: the policy runs its built-in settings, mode shadow" in said
    assert f"{file}: errors 0, warnings 0, advice 1, of what was read\n" in said
    assert "  not read: application shop: shop.api:app, beyond the form of its entry\n" in said
    assert "  not read: application llm: arguments near no name of vLLM's, adapters, callbacks, ingress options" in said
