"""Broken values are refused before anything is installed, and the message says which and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helm.rendering import CHART, ROOT, needs_helm, notes_of, refusal, release

pytestmark = needs_helm
MODEL = {"name": "m", "modelSource": "org/m"}
WITH_DEFAULTS = ("image", "policy", "head", "public", "networkPolicy", "monitoring", "loadTest", "helmTest")
LOOPBACK = "{{http_options: {{host: {host}}}, applications: []}}"
GROUP = {"groupName": "g", "minReplicas": 1, "maxReplicas": 1, "resources": {"limits": {"nvidia.com/gpu": 2}}}
FOUR = GROUP | {"resources": {"limits": {"nvidia.com/gpu": 4}}}
ON_H100 = MODEL | {
    "acceleratorType": "H100",
    "engineKwargs": {"tensor_parallel_size": 4},
    "deploymentConfig": {"num_replicas": 3},
}
ASKS = """\
applications:
- {name: mine, import_path: 'ray.serve.llm:build_openai_app', args: {llm_configs: [other.yaml, {accelerator_type: L40S}]}}
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modles": []}, "additional properties 'modles' not allowed"),
        ({"models": [MODEL | {"engine_kwargs": {}}]}, "at '/models/0': additional properties 'engine_kwargs' not allowed"),
        ({"policy": {"settings": {"mode": "on"}}}, "at '/policy/settings/mode'"),
        ({"policy": {"settings": {"max_restart_share": 2}}}, "at '/policy/settings/max_restart_share': maximum: got 2, want 1"),
        ({"policy": {"settings": {"restart_share": 0.1}}}, "additional properties 'restart_share' not allowed"),
        ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match pattern"),
        ({"upgradeStrategy": {"type": "Rolling"}}, "at '/upgradeStrategy/type': value must be one of 'None', 'NewCluster'"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "invalid propertyName 'app.kubernetes.io/name'"),
        ({"podDisruptionBudget": {"workers": {"minAvailable": "50%"}}}, "minAvailable': got string, want integer"),
        ({"podSecurityContext": {"runAsNonroot": True}}, "additional properties 'runAsNonroot' not allowed"),
        ({"workerGroups": [GROUP | {"resources": {"limits": {"memory": "6GB"}}}]}, "limits/memory': '6GB' does not match"),
        ({"workerGroups": [{"groupName": "g"}]}, "missing properties 'minReplicas', 'maxReplicas', 'resources'"),
        ({"models": []}, "nothing to serve: name at least one of models, or paste a Serve config into serveConfigV2"),
        ({"serveConfigV2": "applications: []"}, "models and serveConfigV2 are both set"),
        ({"models": [], "serveConfigV2": "aplications: []"}, "serveConfigV2 is not a Serve config"),
        (
            {"models": [], "serveConfigV2": LOOPBACK.format(host="127.0.0.1")},
            'serveConfigV2: http_options.host "127.0.0.1" listens for the pod itself alone',
        ),
        ({"models": [], "serveConfigV2": LOOPBACK.format(host="localhost")}, 'http_options.host "localhost" listens for'),
        ({"models": [], "serveConfigV2": LOOPBACK.format(host="'::1'")}, 'http_options.host "::1" listens for'),
        (
            {"models": [MODEL | {"deploymentConfig": {"name": "x"}}]},
            'deploymentConfig.name "x": the deployment is always called LLM',
        ),
        (
            {"models": [MODEL | {"deploymentConfig": {"graceful_shutdown_timeout_s": 170}}]},
            "but a worker pod ends them after 170, which is terminationGracePeriodSeconds less ten for Ray itself: raise",
        ),
        ({"terminationGracePeriodSeconds": 60}, "a replica that goes has 120 s for its requests"),
        (
            {"models": [MODEL], "workerGroups": [GROUP]},
            "models: m: workerGroups have GPUs, but its replicas reserve none of them",
        ),
        (
            {"models": [MODEL | {"deploymentConfig": {"ray_actor_options": {"num_cpus": 4}}}], "workerGroups": [GROUP]},
            "name acceleratorType (Ray's name of the GPU), or deploymentConfig.ray_actor_options.num_gpus",
        ),
        (
            {
                "models": [MODEL | {"acceleratorType": "H100"}],
                "workerGroups": [GROUP | {"acceleratorType": "L40S"}],
                "autoscaler": {"enabled": True},
            },
            'models: m: no worker group has the acceleratorType "H100": Ray\'s autoscaler knows of a group what the chart',
        ),
        (
            {"workerGroups": [GROUP | {"acceleratorType": "L40S", "rayStartParams": {"resources": "{}"}}]},
            "workerGroups: g: acceleratorType and rayStartParams.resources are both set",
        ),
        (
            {
                "models": [MODEL | {"acceleratorType": "H100", "deploymentConfig": {"num_replicas": 3}}],
                "workerGroups": [GROUP],
            },
            "models: m: 3 replicas of 1 GPUs of type H100 each, and the pods of workerGroups have room for 2: the others",
        ),
        ({"models": [MODEL, MODEL]}, 'models: the name "m" is taken'),
        ({"models": [MODEL | {"name": "nightjar"}]}, 'the name "nightjar" is taken'),
        (
            {"models": [MODEL, MODEL | {"name": "n"}]},
            'models: n: the routePrefix "/" is taken; give each model its own, for example /n',
        ),
        (
            {"models": [MODEL | {"engineKwargs": {"model": "x"}}]},
            "engineKwargs.model and engineKwargs.served_model_name are set by",
        ),
        (
            {"models": [MODEL | {"acceleratorType": "H100", "engineKwargs": {"tensor_parallel_size": 4}}], "workerGroups": [GROUP]},
            "models: m: one replica needs 4 GPUs in one pod",
        ),
        (
            {
                "models": [ON_H100 | {"engineKwargs": {"tensor_parallel_size": 2, "data_parallel_size": 4}}],
                "workerGroups": [GROUP],
            },
            "models: m: one replica needs 8 GPUs in one pod",
        ),
        (
            {
                "models": [ON_H100],
                "workerGroups": [GROUP | {"minReplicas": 2, "maxReplicas": 2, "resources": {"limits": {"amd.com/gpu": 6}}}],
            },
            "models: m: 3 replicas of 4 GPUs of type H100 each, and the pods of workerGroups have room for 2: the others",
        ),
        (
            {
                "models": [ON_H100],
                "workerGroups": [
                    FOUR | {"groupName": "h", "acceleratorType": "H100"},
                    FOUR | {"minReplicas": 40, "maxReplicas": 40, "acceleratorType": "L4"},
                ],
            },
            "models: m: 3 replicas of 4 GPUs of type H100 each, and the pods of workerGroups have room for 1",
        ),
        (
            {
                "models": [
                    ON_H100 | {"deploymentConfig": {"num_replicas": 1}},
                    ON_H100 | {"name": "n", "routePrefix": "/n", "deploymentConfig": {"num_replicas": 1}},
                ],
                "workerGroups": [FOUR],
            },
            "models: all their replicas together need 8 GPUs, and workerGroups have 4 at most",
        ),
        (
            {"models": [], "serveConfigV2": ASKS, "workerGroups": [FOUR | {"minReplicas": 0}], "autoscaler": {"enabled": True}},
            'serveConfigV2: mine: no worker group has the accelerator_type "L40S": Ray\'s autoscaler knows of a group',
        ),
        ({"fullnameOverride": "", "nameOverride": "My_App"}, 'called "llm-My_App", which KubeRay refuses: it takes small letters'),
        (
            {"workerGroups": [GROUP | {"acceleratorType": "H100", "groupOverrides": {"resources": {"GPU": "2"}}}]},
            "workerGroups: g: groupOverrides.resources and rayStartParams.resources are both there",
        ),
        (
            {"workerGroups": [GROUP | {"groupOverrides": {"priority": 2}}]},
            "workerGroups: g: groupOverrides.priority is for Ray's autoscaler, and KubeRay refuses it without",
        ),
        ({"workerGroups": [GROUP | {"minReplicas": 3}]}, "workerGroups: g: minReplicas 3 is above maxReplicas 1"),
        ({"workerGroups": [GROUP | {"maxReplicas": 4}]}, "workerGroups: g: from 1 to 4 pods needs autoscaler.enabled"),
        ({"workerGroups": [GROUP, GROUP]}, 'workerGroups: the groupName "g" is taken'),
        ({"gcsFaultTolerance": {"backend": "redis"}}, "gcsFaultTolerance: backend redis needs redis.address"),
        ({"gcsFaultTolerance": {"backend": "rocksdb"}}, "backend rocksdb needs storage.claimName or storage.size"),
        (
            {"gcsFaultTolerance": {"backend": "rocksdb", "storage": {"size": "1Gi"}, "externalStorageNamespace": "x"}},
            "externalStorageNamespace belongs to backend redis; KubeRay refuses it with rocksdb",
        ),
        (
            {"gcsFaultTolerance": {"backend": "rocksdb", "storage": {"claimName": "mine", "size": "1Gi"}}},
            "storage.claimName is a claim of yours",
        ),
        ({"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}, "needs clusterUpgradeOptions"),
        (
            {
                "upgradeStrategy": {
                    "type": "NewClusterWithIncrementalUpgrade",
                    "clusterUpgradeOptions": {"gatewayClassName": "istio", "stepSizePercent": 20, "intervalSeconds": 60},
                }
            },
            "helm test and the load test would ask nobody; set serviceUrl to the Gateway's address",
        ),
        ({"upgradeStrategy": {"serviceUrl": "http://mine"}}, "serviceUrl belongs to NewClusterWithIncrementalUpgrade"),
        (
            {"upgradeStrategy": {"type": "NewCluster"}, "gcsFaultTolerance": {"externalStorageNamespace": "x"}},
            "externalStorageNamespace would be shared by the old and the new cluster",
        ),
        ({"monitoring": {"dashboards": {"label": {}}}}, "at '/monitoring/dashboards': additional properties 'label' not allowed"),
        (
            {"loadTest": {"enabled": True, "regime": "low:7000@2,high:600.5@2..20", "deadlineS": 7200}},
            "the regime lasts 7600.5 s, and its Jobs are ended deadlineS = 7200 after the models are waited for: raise deadlineS",
        ),
        ({"networkPolicy": {"nodeLocalDns": "169.254.20.10"}}, "at '/networkPolicy/nodeLocalDns'"),
        ({"loadTest": {"enabled": True, "workers": 0}}, "at '/loadTest/workers': minimum: got 0, want 1"),
    ],
)
def test_a_broken_value_is_named_and_explained(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values=values)


@pytest.mark.parametrize("name", ["1llm", "my.llm"])
def test_a_release_name_that_kuberay_refuses_is_refused_in_words(name: str) -> None:
    assert f'the RayService would be called "{name}-nightjar", which KubeRay refuses' in refusal(name=name)
    assert release(name=name, values={"fullnameOverride": "llm"}).one("RayService")["metadata"]["name"] == "llm"


@pytest.mark.parametrize("least", [0, 1])
def test_a_type_that_a_started_pod_may_have_or_a_group_names_is_no_reason_to_refuse(least: int) -> None:
    named = {} if least else {"rayStartParams": {"resources": "'{\"accelerator_type:L40S\": 1}'"}}
    values = {"models": [], "serveConfigV2": ASKS, "autoscaler": {"enabled": True}}
    release(values=values | {"workerGroups": [FOUR | {"minReplicas": least, "maxReplicas": 4} | named]})


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_beside_gpus_a_number_of_them_is_as_good_as_their_type(num_gpus: int) -> None:
    model = MODEL | {"deploymentConfig": {"ray_actor_options": {"num_gpus": num_gpus}}}
    (application, _) = release(values={"models": [model], "workerGroups": [GROUP]}).serve_config["applications"]
    (entry,) = application["args"]["llm_configs"]
    assert entry["deployment_config"] == {"ray_actor_options": {"num_gpus": num_gpus}}


def test_our_own_serve_files_may_be_pasted_but_the_one_for_this_machine() -> None:
    for file in sorted((ROOT / "cluster/configs").glob("*.yaml")):
        values = {"models": [], "serveConfigV2": file.read_text()}
        if file.name == "local-cpu.yaml":
            assert "http_options.host" in refusal(values=values)
        else:
            release(values=values)


def test_a_chart_above_ours_may_use_it_as_a_dependency(tmp_path: Path) -> None:
    above = tmp_path / "above"
    (above / "charts").mkdir(parents=True)
    (above / "Chart.yaml").write_text("{apiVersion: v2, name: above, version: 0.1.0}")
    (above / "charts/nightjar").symlink_to(CHART)
    assert release(chart=above, values={"global": {"x": 1}, "nightjar": {"rayVersion": "2.60.1"}}).cluster["rayVersion"] == "2.60.1"


@pytest.mark.parametrize(
    ("section", "key"),
    [*(("", name) for name in WITH_DEFAULTS), ("policy", "journal"), ("public", "ingress"), ("podDisruptionBudget", "workers")],
)
def test_a_section_without_a_value_loses_its_defaults_and_is_named(section: str, key: str) -> None:
    values = {section: {key: None}} if section else {key: None}
    assert f"at '{f'/{section}' if section else ''}': missing property '{key}'" in refusal(values=values)


def test_a_key_without_a_value_is_an_empty_map_or_list() -> None:
    public = {
        "ingress": {"enabled": True, "hosts": ["a.example.com"]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "a"}]},
    }
    monitoring = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
    null = {
        "commonAnnotations": None,
        "upgradeStrategy": {"serviceUrl": None},
        "head": {"rayStartParams": None},
        "gcsFaultTolerance": {"storage": None},
        "public": {"paths": None, **{way: {**given, "annotations": None} for way, given in public.items()}},
        "monitoring": monitoring | {"prometheusRule": {"enabled": True, "alerts": None, "additionalGroups": None}},
    }
    assert release(values=null).manifests == release(values={"public": public, "monitoring": monitoring}).manifests
    assert "The policy's mode is shadow" in notes_of("--set", "policy.settings=null,monitoring.dashboards.annotations=null")
