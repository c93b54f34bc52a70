"""The Serve config inside the RayService: our Serve YAML's shape, and vLLM's and Ray's names untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helm.rendering import CHART, EXAMPLES, ROOT, needs_helm, release

pytestmark = needs_helm
NIGHTJAR = str(Path(sys.executable).with_name("nightjar"))
LOCAL_CPU = ROOT / "cluster/configs/local-cpu.yaml"


def test_the_cpu_example_deploys_what_our_own_serve_yaml_deploys() -> None:
    ours = yaml.safe_load(LOCAL_CPU.read_text())
    rendered = release(CHART / "examples/cpu.yaml").serve_config
    assert rendered["applications"] == ours["applications"]
    assert rendered["http_options"] == {"host": "0.0.0.0", "port": 8000}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_rays_own_schema_and_ours_take_every_example(example: Path) -> None:
    pytest.importorskip("ray.serve")
    from nightjar.cluster.serve_config import check_policy_settings, check_shape

    for application in check_shape(release(example).serve_config).applications:
        if application.name == "nightjar":
            check_policy_settings(application.name, application)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_nightjar_check_takes_every_example(example: Path, tmp_path: Path) -> None:
    file = tmp_path / "rayservice.yaml"
    file.write_text(yaml.safe_dump(release(example).one("RayService")))
    done = subprocess.run([NIGHTJAR, "check", str(file)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_and_numbers_of_vllm_and_ray_pass_through_untouched() -> None:
    kwargs = {
        "max_num_batched_tokens": 1048576,
        "gpu_memory_utilization": 0.92,
        "hf_overrides": {"rope_theta": 10000000},
        "seed": 0,
    }
    options = {"max_ongoing_requests": 2000000, "autoscaling_config": {"min_replicas": 1, "max_replicas": 8}}
    model = {"name": "m", "engineKwargs": kwargs, "deploymentConfig": options, "hungAfterS": 0, "draftOffload": "never"}
    model |= {"modelId": "org/m", "modelSource": "org/M", "routePrefix": "/m", "runtimeEnv": {"env_vars": {"A": "1"}}}
    application = release(values={"models": [model]}).serve_config["applications"][0]
    assert application == {
        "name": "m",
        "import_path": "nightjar.deployments.app:build",
        "route_prefix": "/m",
        "runtime_env": {"env_vars": {"A": "1"}},
        "args": {
            "llm_configs": [
                {
                    "model_loading_config": {"model_id": "org/m", "model_source": "org/M"},
                    "engine_kwargs": kwargs,
                    "deployment_config": options,
                    "hung_after_s": 0,
                    "draft_offload": "never",
                }
            ]
        },
    }


def test_a_pasted_config_is_deployed_as_it_is() -> None:
    pasted = yaml.safe_load((CHART / "examples/own-serve-config.yaml").read_text())["serveConfigV2"]
    assert release(CHART / "examples/own-serve-config.yaml").serve_config == yaml.safe_load(pasted)


def test_the_kill_switch_is_the_deployments_own_and_changes_no_args() -> None:
    model = {"name": "m", "modelSource": "smollm2-135m"}
    without, with_switch = (
        release(values={"models": [model | extra]}).serve_config["applications"][0] for extra in ({}, {"forceOff": True})
    )
    assert with_switch.pop("deployments") == [{"name": "LLM", "user_config": {"mode": "off"}}]
    assert with_switch == without


def test_mode_off_without_quotes_is_still_off() -> None:
    from nightjar.policy.settings import parse_operator_settings

    policy = release(values={"policy": {"settings": {"mode": False}}}).serve_config["applications"][-1]
    assert str(parse_operator_settings(policy["deployments"][0]["user_config"]).mode) == "off"


def test_without_the_policy_app_the_models_are_served_alone() -> None:
    applications = release(values={"policy": {"enabled": False}}).serve_config["applications"]
    assert [application["name"] for application in applications] == ["smollm2"]
