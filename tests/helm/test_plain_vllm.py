"""Manifests of one steered server without Ray: valid, probed where vLLM answers, and a word away from plain vLLM.

No cluster took them. Of production-stack's chart, its keys are held here as far as its values.schema.json (0.1.12) names them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from nightjar.cluster.cli import COMMANDS, load_command
from nightjar.deployments.plain_vllm.server import ADDRESS_VARIABLE, NODE_VARIABLE
from tests.helm.rendering import ROOT
from tests.helm.test_core_kinds import KUBERNETES

FOLDER: Final = ROOT / "helm/plain-vllm"
OURS: Final = {name for option in load_command("serve", COMMANDS["serve"]).params for name in option.opts if name.startswith("--")}
TOKEN: Final = {"name": "NIGHTJAR_API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "nightjar-api", "key": "token"}}}

PLACE: Final = [
    {"name": NODE_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    {"name": ADDRESS_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
]
"""By which a policy elsewhere knows the server, and counts restarts per node."""
MODEL_SPEC_KEYS: Final = {
    **dict.fromkeys(("name", "repository", "tag", "modelURL", "requestMemory", "pvcStorage"), str),
    **dict.fromkeys(("replicaCount", "requestCPU", "requestGPU"), int),
    **dict.fromkeys(("vllmConfig", "initContainer"), dict),
    **dict.fromkeys(("env", "extraVolumes", "extraVolumeMounts"), list),
}
"""Of an item of `servingEngineSpec.modelSpec`, with their types."""
VLLM_CONFIG_KEYS: Final = {"enablePrefixCaching": bool, "extraArgs": list}
INIT_CONTAINER_KEYS: Final = {"name": str, "image": str, "command": list, "extraVolumeMounts": list}


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "deployment.yaml").read_text(encoding="utf-8")))


def pod() -> dict[str, Any]:
    (deployment,) = (manifest for manifest in manifests() if manifest["kind"] == "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def model_spec() -> dict[str, Any]:
    values = yaml.safe_load((FOLDER / "production-stack.yaml").read_text(encoding="utf-8"))
    (spec,) = values["servingEngineSpec"]["modelSpec"]
    return dict(spec)


def ours_of(arguments: list[str]) -> list[str]:
    return [name for name in (argument.partition("=")[0] for argument in arguments) if name.startswith("--nightjar")]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_a_manifest_is_valid(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_pod_is_probed_and_reached_where_vllm_answers_and_writes_ask_for_a_secrets_token() -> None:
    (container,) = pod()["containers"]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    (service,) = (manifest for manifest in manifests() if manifest["kind"] == "Service")
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": port["name"]}]
    assert container["env"] == [TOKEN, *PLACE]


def test_what_was_learned_lies_in_a_volume_that_outlives_the_pod() -> None:
    (container,) = pod()["containers"]
    (state,) = (argument.partition("=")[2] for argument in container["args"] if argument.startswith("--nightjar-state="))
    (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == state)
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == mount["name"])
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert [manifest["metadata"]["name"] for manifest in manifests() if manifest["kind"] == "PersistentVolumeClaim"] == [claim]


def test_without_our_word_and_our_arguments_it_is_vllms_own_command() -> None:
    (container,) = pod()["containers"]
    assert container["command"] == ["nightjar", "serve"]
    assert ours_of(container["args"]) == ["--nightjar-state"]
    assert set(ours_of(container["args"])) <= OURS


def test_the_values_for_production_stack_have_keys_that_its_chart_takes() -> None:
    spec = model_spec()
    for given, known in (
        (spec, MODEL_SPEC_KEYS),
        (spec["vllmConfig"], VLLM_CONFIG_KEYS),
        (spec["initContainer"], INIT_CONTAINER_KEYS),
    ):
        assert {name: type(value) for name, value in given.items()} == known
    assert spec["env"] == [TOKEN, *PLACE]
    assert spec["initContainer"]["image"] == f"{spec['repository']}:{spec['tag']}"
    assert set(ours_of(spec["vllmConfig"]["extraArgs"])) == {"--nightjar-state"}


def test_in_production_stack_vllms_command_calls_ours_with_every_argument_as_it_was(tmp_path: Path) -> None:
    """The chart runs `vllm serve MODEL ...`."""
    spec = model_spec()
    (mount,) = spec["extraVolumeMounts"]
    assert (mount["mountPath"], mount["subPath"]) == ("/usr/local/bin/vllm", "vllm")
    shell, option, script = spec["initContainer"]["command"]
    (written_to,) = (each["mountPath"] for each in spec["initContainer"]["extraVolumeMounts"])
    subprocess.run([shell, option, script.replace(written_to, str(tmp_path))], check=True)
    ours = tmp_path / "nightjar"
    ours.write_text("#!/bin/sh\nprintf '%s|' nightjar \"$@\"\n")
    ours.chmod(0o755)
    called = subprocess.run(
        [tmp_path / "vllm", "serve", "a model", "--port", "8000"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert called.stdout == "nightjar|serve|a model|--port|8000|"
