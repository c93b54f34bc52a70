"""The Serve config inside the RayService: our Serve YAML's shape, and vLLM's and Ray's names untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.rendering import CHART, EXAMPLES, ROOT, needs_helm, release

pytestmark = needs_helm
NIGHTJAR = str(Path(sys.executable).with_name("nightjar"))
LOCAL_CPU = ROOT / "cluster/configs/local-cpu.yaml"

DRAINS = "graceful_shutdown_timeout_s"


def entry_of(application: dict[str, Any]) -> dict[str, Any]:
    """Its model, with the options that stand beside `args` put back into it."""
    (entry,) = application["args"]["llm_configs"]
    (options,) = application.get("deployments") or [{"name": "LLM"}]
    options = {name: value for name, value in options.items() if name not in {"name", DRAINS}}
    return {**entry, "deployment_config": {**entry["deployment_config"], **options}}


def test_the_cpu_example_deploys_what_our_own_serve_yaml_deploys_on_cores_that_nobody_pins() -> None:
    model, policy = yaml.safe_load(LOCAL_CPU.read_text())["applications"]
    rendered = release(CHART / "examples/cpu.yaml").serve_config
    assert rendered["applications"][1:] == [policy]
    assert entry_of(rendered["applications"][0]) == entry_of(model)
    for field in ("name", "import_path", "route_prefix"):
        assert rendered["applications"][0][field] == model[field]
    assert rendered["http_options"] == {"host": "0.0.0.0", "port": 8000}
    for application in (rendered["applications"][0], release().serve_config["applications"][0]):
        assert application["runtime_env"] == {"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_rays_own_schema_takes_every_example(example: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    schema.ServeDeploySchema.model_validate(release(example).serve_config)


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
    actor = {"ray_actor_options": {"num_cpus": 4, "resources": {"a": 0.5}}}
    model = {"name": "m", "engineKwargs": kwargs, "deploymentConfig": options | actor, "hungAfterS": 0, "draftOffload": "never"}
    model |= {"requireSteering": True, "graphTiers": [0, 2], "headLogSteps": 16, "without": ["heads"], "extraRoutes": ["/metrics"]}
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
                    "deployment_config": actor,
                    "hung_after_s": 0,
                    "require_steering": True,
                    "graph_tiers": [0, 2],
                    "head_log_steps": 16,
                    "without": ["heads"],
                    "extra_routes": ["/metrics"],
                    "draft_offload": "never",
                }
            ]
        },
        "deployments": [{"name": "LLM", DRAINS: 120, **options}],
    }


IN_PLACE: dict[str, tuple[Any, Any]] = {
    "num_replicas": (2, 3),
    "autoscaling_config": ({"max_replicas": 3}, {"min_replicas": 2, "max_replicas": 4, "target_ongoing_requests": 9}),
    "max_ongoing_requests": (88, 99),
    "max_queued_requests": (8, 9),
    "backpressure_config": ({"status_code": 503}, {"status_code": 429}),
    "health_check_period_s": (5.5, 6.5),
    "health_check_timeout_s": (50.5, 60.5),
    "graceful_shutdown_wait_loop_s": (1.5, 2.5),
    "graceful_shutdown_timeout_s": (88.5, 99.5),
    "rolling_update_percentage": (0.4, 0.5),
    "max_surge_percent": (50, 100),
}


def code_version(options: dict[str, Any]) -> str:
    """Serve replaces all replicas of an application when this changes."""
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    values = {"models": [{"name": "m", "modelSource": "org/m", "deploymentConfig": options}]}
    application = ServeApplicationSchema.model_validate(release(values=values).serve_config["applications"][0])
    return str(get_app_code_version(application))


@pytest.mark.parametrize("option", IN_PLACE)
def test_what_serve_can_change_in_place_replaces_no_replica(option: str) -> None:
    pytest.importorskip("ray.serve")
    before, after = IN_PLACE[option]
    assert code_version({option: before}) == code_version({option: after})


@pytest.mark.parametrize(
    "options",
    [
        {"ray_actor_options": {"num_cpus": 2}},
        {"max_replicas_per_node": 1},
        {"user_config": {"mode": "shadow"}},
        {"autoscaling_config": {"max_replicas": 2}},  # Serve counts whether there is one
    ],
)
def test_other_options_are_told_as_replacing_all_replicas_and_do(options: dict[str, Any]) -> None:
    pytest.importorskip("ray.serve")
    assert code_version(options) != code_version({})


def test_a_pasted_config_is_deployed_as_it_is() -> None:
    pasted = yaml.safe_load((CHART / "examples/own-serve-config.yaml").read_text())["serveConfigV2"]
    assert release(CHART / "examples/own-serve-config.yaml").serve_config == yaml.safe_load(pasted)


@pytest.mark.parametrize(
    ("options", "pod", "seconds"), [({}, {}, 120), ({DRAINS: 300}, {"terminationGracePeriodSeconds": 400}, 300)]
)
def test_a_replica_that_goes_has_time_for_the_requests_that_it_answers_and_its_pod_has_more(
    options: dict[str, Any], pod: dict[str, Any], seconds: int
) -> None:
    rendered = release(values={"models": [{"name": "m", "modelSource": "org/m", "deploymentConfig": options}], **pod})
    assert rendered.serve_config["applications"][0]["deployments"] == [{"name": "LLM", DRAINS: seconds}]
    for template in rendered.ray_pods().values():
        assert template["spec"]["terminationGracePeriodSeconds"] > seconds
    assert rendered.one("RayService")["spec"]["rayClusterDeletionDelaySeconds"] > 120


def test_the_kill_switch_is_the_deployments_own_and_changes_no_args() -> None:
    model = {"name": "m", "modelSource": "smollm2-135m"}
    without, with_switch = (
        release(values={"models": [model | extra]}).serve_config["applications"][0] for extra in ({}, {"forceOff": True})
    )
    assert with_switch.pop("deployments") == [{"name": "LLM", DRAINS: 120, "user_config": {"mode": "off"}}]
    del without["deployments"]
    assert with_switch == without


def test_the_kill_switch_stands_beside_the_options_that_are_there() -> None:
    model = {"name": "m", "modelSource": "smollm2-135m", "forceOff": True, "deploymentConfig": {"num_replicas": 2}}
    application = release(values={"models": [model]}).serve_config["applications"][0]
    assert application["deployments"] == [{"name": "LLM", DRAINS: 120, "num_replicas": 2, "user_config": {"mode": "off"}}]


def test_mode_off_without_quotes_is_still_off() -> None:
    from nightjar.policy.wire.operator import parse_operator_settings

    policy = release(values={"policy": {"settings": {"mode": False}}}).serve_config["applications"][-1]
    assert str(parse_operator_settings(policy["deployments"][0]["user_config"]).mode) == "off"


def test_without_the_policy_app_the_models_are_served_alone() -> None:
    applications = release(values={"policy": {"enabled": False}}).serve_config["applications"]
    assert [application["name"] for application in applications] == ["smollm2"]
