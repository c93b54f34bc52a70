"""What outsiders may call: the OpenAI routes of each model, and nothing else of the service."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.helm.rendering import needs_helm, refusal, release

pytestmark = needs_helm
MODELS = [{"name": "one", "modelSource": "org/one"}, {"name": "two", "modelSource": "org/two", "routePrefix": "/two"}]
INGRESS = {"enabled": True, "className": "nginx", "hosts": ["llm.example.com"], "annotations": {"a": "b"}}
ROUTE = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"], "timeouts": {"request": "600s"}}
OWN = {"models": [], "serveConfigV2": "applications: []"}
BY_STEPS = {
    "autoscaler": {"enabled": True},
    "upgradeStrategy": {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": "istio",
            "intervalSeconds": 30,
            "maxSurgePercent": 100,
            "stepSizePercent": 10,
        },
    },
}


def test_by_default_nothing_leads_from_outside_to_the_service() -> None:
    rendered = release()
    assert not rendered.all("Ingress")
    assert not rendered.all("HTTPRoute")


def test_a_wildcard_host_and_a_path_with_signs_of_yaml_are_texts() -> None:
    public = {"ingress": INGRESS | {"hosts": ["*.example.com"]}, "httpRoute": ROUTE, "paths": ["/a,b/v1", "/{team}"]}
    rendered = release(values={"models": MODELS, "public": public})
    (rule,) = rendered.one("Ingress")["spec"]["rules"]
    assert rule["host"] == "*.example.com"
    assert [path["path"] for path in rule["http"]["paths"]] == ["/a,b/v1", "/{team}"]
    (rule,) = rendered.one("HTTPRoute")["spec"]["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/a,b/v1", "/{team}"]


def test_an_ingress_lets_v1_of_each_model_through_and_nothing_else() -> None:
    ingress = release(values={"models": MODELS, "public": {"ingress": INGRESS}, "commonAnnotations": {"team": "x"}}).one("Ingress")
    kubernetes_validate.validate(ingress, "1.36", strict=True)
    (rule,) = ingress["spec"]["rules"]
    backend = {"service": {"name": "llm-nightjar-serve-svc", "port": {"number": 8000}}}
    assert rule["http"]["paths"] == [{"path": path, "pathType": "Prefix", "backend": backend} for path in ("/v1", "/two/v1")]
    assert ingress["metadata"]["annotations"] == {"a": "b", "team": "x"}
    assert "defaultBackend" not in ingress["spec"]


def test_a_route_of_the_gateway_api_lets_the_same_through() -> None:
    route = release(values={"models": MODELS, "public": {"httpRoute": ROUTE}}).one("HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["parentRefs"] == [{"name": "public"}]
    (rule,) = route["spec"]["rules"]
    assert [match["path"] for match in rule["matches"]] == [{"type": "PathPrefix", "value": path} for path in ("/v1", "/two/v1")]
    assert rule["backendRefs"] == [{"name": "llm-nightjar-serve-svc", "port": 8000}]
    assert rule["timeouts"] == {"request": "600s"}


def test_the_paths_of_an_own_serve_config_are_those_that_are_named() -> None:
    ingress = release(values=OWN | {"public": {"paths": ["/chat/v1"], "ingress": INGRESS}}).one("Ingress")
    assert [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]] == ["/chat/v1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"public": {"ingress": {"enabled": True}}}, "public.ingress: hosts is empty"),
        ({"public": {"httpRoute": {"enabled": True}}}, "public.httpRoute: parentRefs is empty"),
        (OWN | {"public": {"httpRoute": ROUTE}}, "public.httpRoute: the chart does not know the routes of serveConfigV2"),
        (BY_STEPS | {"public": {"ingress": INGRESS}}, "KubeRay makes the HTTPRoute itself, for every path"),
        ({"public": {"paths": ["v1"]}}, "at '/public/paths/0'"),
    ],
)
def test_what_would_lead_nowhere_or_everywhere_is_refused(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values=values)
