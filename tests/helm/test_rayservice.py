"""The RayService: valid for KubeRay, safe by default, and the same cluster until a value says otherwise."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.helm.rendering import ALL_ON, CHART, EXAMPLES, ROOT, needs_helm, release

pytestmark = needs_helm
CRD = Path(os.environ.get("NIGHTJAR_TEST_DATA") or ROOT.parent / "shared/data") / "kuberay_rayservice_crd.yaml"
PACKS = "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"
LONGEST_NAME = 47
KUBERAY_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}


def closed(schema: Any) -> Any:
    """The schema with every object closed that names its fields, as the API server's pruning takes it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    inner = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner["additionalProperties"] = False
    return inner


@cache
def rayservice_validator() -> Draft202012Validator:
    if not CRD.is_file():
        pytest.skip(f"{CRD} is absent: NIGHTJAR_TEST_DATA names the folder with KubeRay's RayService CRD")
    document = yaml.load(CRD.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in document["spec"]["versions"] if version["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def problems(rayservice: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in rayservice_validator().iter_errors(rayservice)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_rayservice_without_a_field_that_kuberay_does_not_know(example: Path) -> None:
    assert problems(release(example).one("RayService")) == []


def test_a_name_of_digits_is_a_text() -> None:
    values = {
        "serviceAccountName": "1",
        "modelStore": {"existingClaim": "2", "subPath": "2024-12-02"},
        "huggingFace": {"existingSecret": "3", "secretKey": "4"},
        "policy": {"existingTokenSecret": "5", "tokenSecretKey": "6", "journal": {"existingClaim": "7"}},
        "rayAuth": {"existingSecret": "8"},
        "head": {"priorityClassName": "9"},
        "gcsFaultTolerance": {"backend": "redis", "redis": {"address": "redis:6379", "existingSecret": "10", "secretKey": "11"}},
    }
    assert problems(release(values=values).one("RayService")) == []


def test_the_closed_schema_finds_a_misspelt_field_and_a_missing_one() -> None:
    rayservice = release().one("RayService")
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    del group["maxReplicas"]
    group["minReplica"] = 1
    found = " ".join(problems(rayservice))
    assert "'maxReplicas' is a required property" in found
    assert "'minReplica' was unexpected" in found


def test_a_long_release_name_still_gives_names_that_kuberay_and_kubernetes_take() -> None:
    rendered = release(*ALL_ON, name="a-release-name-of-fifty-three-characters-in-the-whole")
    assert len(rendered.one("RayService")["metadata"]["name"]) <= LONGEST_NAME
    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in rendered.manifests)


def test_a_new_chart_version_alone_is_no_new_cluster() -> None:
    text = json.dumps(release(*ALL_ON).cluster)
    assert "helm.sh/chart" not in text
    assert "app.kubernetes.io/version" not in text
    assert "checksum" not in text


def test_ray_pods_leave_the_labels_by_which_kuberay_finds_them_to_kuberay() -> None:
    for template in release(*ALL_ON).ray_pods().values():
        assert not KUBERAY_LABELS & set(template["metadata"]["labels"])
        assert template["metadata"]["labels"]["cost-centre"] == "4711"


def test_the_same_values_render_the_same_bytes() -> None:
    assert release(*ALL_ON) == release(*ALL_ON)


@pytest.mark.checkout
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_pod_is_restricted_and_writes_to_emptydirs_only(example: Path) -> None:
    for spec in release(example).pod_specs():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_autoscaler_is_as_restricted_as_the_pod_that_it_joins_and_gets_a_token() -> None:
    rendered = release(CHART / "examples/gpu.yaml")
    options = rendered.cluster["autoscalerOptions"]
    head = rendered.ray_pods()["head"]["spec"]
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    assert {mount["name"] for mount in options["volumeMounts"]} <= {volume["name"] for volume in head["volumes"]}
    assert "automountServiceAccountToken" not in head
    assert rendered.ray_pods()["h100"]["spec"]["automountServiceAccountToken"] is False


def test_the_head_offers_ray_neither_cpu_nor_gpu_and_serves_no_request() -> None:
    rendered = release(values={"head": {"rayStartParams": {"log-color": "false"}}})
    parameters = rendered.cluster["headGroupSpec"]["rayStartParams"]
    assert parameters == {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0", "log-color": "false"}
    assert rendered.one("RayService")["spec"]["excludeHeadPodFromServeSvc"] is True


def test_secrets_are_named_and_never_rendered() -> None:
    values = {"huggingFace": {"existingSecret": "hub", "secretKey": "hub-token"}, "policy": {"existingTokenSecret": "api"}}
    rendered = release(values=values)
    assert rendered.all("Secret") == []
    for template in rendered.ray_pods().values():
        (container,) = template["spec"]["containers"]
        environment = {variable["name"]: variable for variable in container["env"]}
        assert environment["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "hub-token"}}
        assert environment["NIGHTJAR_API_TOKEN_FILE"]["value"] == "/etc/nightjar/api-token/token"
        secret = next(volume["secret"] for volume in template["spec"]["volumes"] if volume["name"] == "api-token")
        assert secret == {"secretName": "api", "items": [{"key": "token", "path": "token"}], "defaultMode": 0o440}


def environment_of(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def test_by_default_nobody_may_read_what_the_policy_tells_and_the_notes_say_how_to_open_it() -> None:
    rendered = release()
    for template in rendered.ray_pods().values():
        environment = environment_of(template)
        assert environment["NIGHTJAR_API_READ_ACCESS"] == "token"
        assert "NIGHTJAR_API_READ_TOKEN_FILE" not in environment


def test_a_readers_secret_is_mounted_and_an_open_service_says_so() -> None:
    values = {"policy": {"existingReadTokenSecret": "readers", "readTokenSecretKey": "key"}}
    for template in release(values=values).ray_pods().values():
        assert environment_of(template)["NIGHTJAR_API_READ_TOKEN_FILE"] == "/etc/nightjar/api-read-token/token"
        secret = next(volume["secret"] for volume in template["spec"]["volumes"] if volume["name"] == "api-read-token")
        assert secret == {"secretName": "readers", "items": [{"key": "key", "path": "token"}], "defaultMode": 0o440}
    for template in release(values={"policy": {"readAccess": "open"}}).ray_pods().values():
        assert environment_of(template)["NIGHTJAR_API_READ_ACCESS"] == "open"


def test_servers_without_ray_may_report_where_their_tokens_secret_is_named() -> None:
    values = {"policy": {"existingExchangeTokenSecret": "reporters"}}
    for template in release(values=values).ray_pods().values():
        assert environment_of(template)["NIGHTJAR_EXCHANGE_TOKEN_FILE"] == "/etc/nightjar/exchange-token/token"
        secret = next(volume["secret"] for volume in template["spec"]["volumes"] if volume["name"] == "exchange-token")
        assert secret == {"secretName": "reporters", "items": [{"key": "token", "path": "token"}], "defaultMode": 0o440}
    for template in release().ray_pods().values():
        assert "NIGHTJAR_EXCHANGE_TOKEN_FILE" not in environment_of(template)


def test_models_of_a_claim_are_read_by_head_and_workers_without_the_hub() -> None:
    values = {"modelStore": {"existingClaim": "models", "subPath": "v1"}, "huggingFace": {"offline": True}}
    for template in release(values=values).ray_pods().values():
        (container,) = template["spec"]["containers"]
        assert {"name": "NIGHTJAR_MODELS", "value": "/models"} in container["env"]
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
        assert {"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "v1"} in container["volumeMounts"]


def test_a_claim_that_may_be_written_also_keeps_the_hubs_downloads() -> None:
    values = {"modelStore": {"existingClaim": "models", "readOnly": False}}
    (container,) = release(values=values).ray_pods()["cpu"]["spec"]["containers"]
    assert {"name": "HF_HOME", "value": "/models/huggingface"} in container["env"]


def test_the_journal_lies_on_a_claim_in_a_folder_for_each_ray_cluster_and_takes_what_is_chosen() -> None:
    values = {"policy": {"journal": {"existingClaim": "records", "sizeMiB": 2048}}}
    pods = release(values=values).ray_pods()
    (container,) = pods["head"]["spec"]["containers"]
    assert {"name": "NIGHTJAR_JOURNAL_DIR", "value": "/nightjar-journal/$(NIGHTJAR_RAY_CLUSTER)"} in container["env"]
    assert {"name": "NIGHTJAR_JOURNAL_MIB", "value": "2048"} in container["env"]
    assert {"name": "journal", "mountPath": "/nightjar-journal"} in container["volumeMounts"]
    assert {"name": "journal", "persistentVolumeClaim": {"claimName": "records"}} in pods["head"]["spec"]["volumes"]
    names = [variable["name"] for variable in container["env"]]
    assert names.index("NIGHTJAR_RAY_CLUSTER") < names.index("NIGHTJAR_JOURNAL_DIR"), "Kubernetes replaces only what stands before"
    assert "journal" not in json.dumps(pods["cpu"]).lower()


def test_the_journals_defaults_leave_a_running_cluster_as_it_is() -> None:
    assert "JOURNAL" not in json.dumps(release().cluster)


def test_a_digest_replaces_the_tag() -> None:
    digest = f"sha256:{'a' * 64}"
    values = {"image": {"repository": "registry.example.com/nightjar", "tag": "1.0", "digest": digest}}
    for template in release(values=values).ray_pods().values():
        assert template["spec"]["containers"][0]["image"] == f"registry.example.com/nightjar@{digest}"


def test_kuberays_own_probes_stay_unless_a_value_replaces_them() -> None:
    (container,) = release().ray_pods()["cpu"]["spec"]["containers"]
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & set(container)
    probe = {"tcpSocket": {"port": 8000}, "failureThreshold": 60}
    (container,) = release(values={"head": {"startupProbe": probe}}).ray_pods()["head"]["spec"]["containers"]
    assert container["startupProbe"] == probe


def test_redis_keeps_the_clusters_state_with_the_password_by_reference() -> None:
    redis = {"address": "redis:6379", "username": "ray", "existingSecret": "redis", "secretKey": "password"}
    cluster = release(values={"gcsFaultTolerance": {"backend": "redis", "redis": redis}}).cluster
    assert cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisUsername": {"value": "ray"},
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }


def test_rays_own_authentication_is_on_unless_somebody_turns_it_off() -> None:
    assert release().cluster["authOptions"] == {"mode": "token"}
    assert release(values={"rayAuth": {"existingSecret": "ray"}}).cluster["authOptions"]["secretName"] == "ray"
    assert release(values={"rayAuth": {"mode": "disabled"}}).cluster["authOptions"] == {"mode": "disabled"}


def test_a_cluster_change_starts_no_second_cluster_by_default() -> None:
    assert release().one("RayService")["spec"]["upgradeStrategy"] == {"type": "None"}


@pytest.mark.parametrize(("values", "packs"), [({}, []), ({"env": [{"name": PACKS, "value": "0"}]}, ["0"])])
def test_replicas_are_packed_where_pods_have_gpus_unless_the_user_says_otherwise(values: dict[str, Any], packs: list[str]) -> None:
    for pod in release(CHART / "examples/gpu.yaml", values=values).ray_pods().values():
        environment = pod["spec"]["containers"][0]["env"]
        assert [variable["value"] for variable in environment if variable["name"] == PACKS] == (packs or ["1"])
    for pod in release(values=values).ray_pods().values():
        environment = pod["spec"]["containers"][0]["env"]
        assert [variable["value"] for variable in environment if variable["name"] == PACKS] == packs


def test_neither_ray_nor_vllm_reports_usage_unless_somebody_says_so() -> None:
    off = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    for pod in release().ray_pods().values():
        assert environment_of(pod).items() >= off.items()
    for pod in release(values={"usageStatistics": True}).ray_pods().values():
        assert not environment_of(pod).keys() & off.keys()
    for pod in release(values={"env": [{"name": "VLLM_NO_USAGE_STATS", "value": "0"}]}).ray_pods().values():
        named = [variable["name"] for variable in pod["spec"]["containers"][0]["env"]]
        assert named.count("VLLM_NO_USAGE_STATS") == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_ray_pod_asks_its_node_for_the_disk_that_its_emptydirs_take(example: Path) -> None:
    for pod in release(example).ray_pods().values():
        assert "ephemeral-storage" in pod["spec"]["containers"][0]["resources"]["requests"]


def test_a_groups_own_request_for_disk_stays_and_none_is_made_where_nobody_wants_one() -> None:
    def asked(values: dict[str, Any]) -> list[Any]:
        pods = release(values=values).ray_pods().values()
        return [pod["spec"]["containers"][0]["resources"]["requests"].get("ephemeral-storage") for pod in pods]

    own = {"requests": {"cpu": "2", "ephemeral-storage": "90Gi"}}
    assert asked({"workerGroups": [{"groupName": "g", "minReplicas": 1, "maxReplicas": 1, "resources": own}]}) == ["4Gi", "90Gi"]
    assert asked({"scratch": {"request": ""}}) == [None, None]


def test_rays_ports_may_be_encrypted_by_kuberays_mutual_tls() -> None:
    rayservice = release(values={"rayClusterOverrides": {"tlsOptions": {"enabled": True}}}).one("RayService")
    assert rayservice["spec"]["rayClusterConfig"]["tlsOptions"] == {"enabled": True}
    assert problems(rayservice) == []


def test_state_in_rocksdb_is_what_kuberay_takes() -> None:
    fault = {"backend": "rocksdb", "storage": {"size": "10Gi", "deletionPolicy": "Retain"}}
    rayservice = release(values={"gcsFaultTolerance": fault}).one("RayService")
    assert rayservice["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == fault
    assert problems(rayservice) == []


@pytest.mark.parametrize("place", ["docs/kubernetes.md", "helm/nightjar/README.md"])
def test_what_kuberay_ignores_in_a_running_cluster_is_said(place: str) -> None:
    """`GenerateHashWithoutReplicasAndWorkersToDelete` of KubeRay 1.6 and 1.7 leaves these out of what it compares."""
    words = " ".join((ROOT / place).read_text(encoding="utf-8").split())
    assert re.search(r"tolerations`? alone", words)
    assert "GCSFaultToleranceEmbeddedStorage" in words
    assert "RayClusterMTLS" in words
