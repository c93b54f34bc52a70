"""Objects beside the RayService: valid Kubernetes, standard labels, and absent until asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.helm.rendering import ALL_ON, CHART, EXAMPLES, Release, needs_helm, notes_of, release

pytestmark = needs_helm
KUBERNETES = "1.36"
OWN_KINDS = {"RayService", "PodMonitor", "PrometheusRule"}
STANDARD_LABELS = {f"app.kubernetes.io/{label}" for label in ("name", "instance", "version", "managed-by", "part-of")}


@pytest.fixture(scope="module")
def everything() -> Release:
    return release(*ALL_ON)


@pytest.mark.parametrize("example", [*EXAMPLES, ALL_ON], ids=str)
def test_core_kinds_are_valid_and_pods_of_ray_are_valid_pods(example: Path | tuple[Path, ...]) -> None:
    rendered = release(*(example if isinstance(example, tuple) else (example,)))
    for manifest in rendered.manifests:
        if manifest["kind"] not in OWN_KINDS:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for name, template in rendered.ray_pods().items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_plain_install_is_a_rayservice_and_a_test_pod() -> None:
    assert sorted(manifest["kind"] for manifest in release().manifests) == ["Pod", "RayService"]


def test_every_object_has_the_standard_labels_ours_and_the_namespace(everything: Release) -> None:
    for manifest in everything.manifests:
        assert set(manifest["metadata"]["labels"]) >= STANDARD_LABELS | {"helm.sh/chart", "team"}
        assert manifest["metadata"]["namespace"] == "serving"


def test_the_network_policy_lets_ray_itself_the_operator_clients_and_prometheus_in(everything: Release) -> None:
    policy = everything.one("NetworkPolicy")["spec"]
    ray, clients, operator, prometheus = policy["ingress"]
    assert ray == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in clients["ports"]] == [8000]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}} in clients["from"]
    assert 8265 in [port["port"] for port in operator["ports"]]
    assert 8080 in [port["port"] for port in prometheus["ports"]]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"][-1]["ports"] == [{"port": 6379, "protocol": "TCP"}]
    assert release(values={"networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize(("address", "asked"), [("169.254.20.10/32", True), ("", False)])
def test_where_egress_is_restricted_pods_may_ask_the_nodes_own_dns(address: str, asked: bool) -> None:
    """NodeLocal DNSCache answers on an address of the node, which no selector of namespaces matches."""
    policy = release(*ALL_ON, values={"networkPolicy": {"nodeLocalDns": address}}).one("NetworkPolicy")["spec"]
    (dns,) = (rule for rule in policy["egress"] if {"port": 53, "protocol": "UDP"} in rule.get("ports", []))
    assert ({"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]) is asked
    assert {"namespaceSelector": {}} in dns["to"]


@pytest.mark.parametrize("nobody", [None, []])
@pytest.mark.parametrize(("whom", "port"), [("operator", 8265), ("prometheus", 8080)])
def test_where_nobody_is_named_nobody_is_let_in(whom: str, port: int, nobody: list[Any] | None) -> None:
    policy = release(values={"networkPolicy": {"enabled": True, whom: nobody}}).one("NetworkPolicy")["spec"]
    assert all(rule["from"] for rule in policy["ingress"])
    assert port not in [opened["port"] for rule in policy["ingress"] for opened in rule.get("ports", [])]


def test_without_clients_the_releases_own_pods_are_the_only_ones() -> None:
    _, clients, *_ = release(values={"networkPolicy": {"enabled": True, "clients": None}}).one("NetworkPolicy")["spec"]["ingress"]
    assert [list(peer) for peer in clients["from"]] == [["podSelector"]]
    assert clients["from"][0]["podSelector"]["matchLabels"]


def test_selectors_find_the_pods_that_they_mean(everything: Release) -> None:
    def chosen(selector: dict[str, Any]) -> set[str]:
        components = {value for rule in selector.get("matchExpressions", []) for value in rule["values"]}
        return {
            name
            for name, template in everything.ray_pods().items()
            if selector["matchLabels"].items() <= template["metadata"]["labels"].items()
            and (not components or template["metadata"]["labels"]["app.kubernetes.io/component"] in components)
        }

    head, workers = (budget["spec"] for budget in everything.all("PodDisruptionBudget"))
    assert (chosen(head["selector"]), head["minAvailable"]) == ({"head"}, 1)
    assert (chosen(workers["selector"]), workers["minAvailable"]) == ({"h100"}, 5)
    assert chosen(everything.one("PodMonitor")["spec"]["selector"]) == {"head", "h100"}
    assert chosen(everything.one("NetworkPolicy")["spec"]["podSelector"]) == {"head", "h100"}


def test_the_pod_monitor_names_ports_that_the_pods_have(everything: Release) -> None:
    ports = {port["name"] for template in everything.ray_pods().values() for port in template["spec"]["containers"][0]["ports"]}
    endpoints = everything.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert {endpoint["port"] for endpoint in endpoints} == {"metrics", "as-metrics", "dash-metrics"} <= ports
    assert {endpoint["interval"] for endpoint in endpoints} == {"15s"}


def test_on_gpus_the_notes_say_that_shadow_ends_with_a_new_start() -> None:
    gpu = ("--values", str(CHART / "examples/gpu.yaml"))
    said = "started in shadow only observes, whatever the mode, until it starts anew"
    assert said in notes_of(*gpu)
    assert "models[].runtimeEnv.env_vars" in notes_of(*gpu)
    assert said not in notes_of(*gpu, "--set", "policy.settings.mode=auto")
    assert said not in notes_of()


def test_the_notes_say_what_to_do_next() -> None:
    notes = notes_of("--set", "rayAuth.mode=disabled")
    assert "kubectl --namespace serving wait rayservice/llm-nightjar --for=condition=Ready" in notes
    assert "helm --namespace serving test llm --timeout 1860s" in notes, "helm's own 5 minutes are less than the pod waits"
    assert "port-forward service/llm-nightjar-serve-svc 8000:8000" in notes
    assert "--set policy.settings.mode=auto" in notes
    assert "once you delete the RayCluster" in notes
    assert "WARNING: rayAuth.mode is disabled" in notes
