"""The runbook's kubectl commands: what they name is what the chart renders for a release called nightjar."""

from __future__ import annotations

import re
from typing import Final

from tests.helm.rendering import ALL_ON, ROOT, needs_helm, release

pytestmark = needs_helm
TEXT: Final = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")


def test_services_containers_and_labels_are_those_of_the_release() -> None:
    rendered = release(*ALL_ON, name="nightjar")
    name = rendered.one("RayService")["metadata"]["name"]
    pods = rendered.ray_pods().values()
    assert set(re.findall(r"service/(\S+)", TEXT)) == {f"{name}-head-svc"}, "KubeRay names the head's service so"
    assert set(re.findall(r"--container (\S+)", TEXT)) == {pod["spec"]["containers"][0]["name"] for pod in pods}
    for selector in set(re.findall(r"--selector (\S+)", TEXT)):
        wanted = dict(label.split("=") for label in selector.split(","))
        assert any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods), selector


def test_the_metrics_port_that_is_asked_is_the_heads() -> None:
    ports = {port["name"]: port["containerPort"] for port in release().ray_pods()["head"]["spec"]["containers"][0]["ports"]}
    assert set(re.findall(r"127\.0\.0\.1:(\d+)/metrics", TEXT)) == {str(ports["metrics"])}
