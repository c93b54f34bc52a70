"""A Prometheus server of a test's own: its configuration, its process, and questions to its HTTP API (/api/v1)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.deployments.serving import until
from tests.ports import free_port

PROMETHEUS: Final = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
PROMTOOL: Final = os.environ.get("PROMTOOL") or shutil.which("promtool")
RULES: Final = Path(__file__).parents[2] / "helm/nightjar/files/rules/nightjar.yaml"
CLUSTER: Final = "here"
"""What KubeRay's PodMonitor would write into `ray_io_cluster`."""
EVERY: Final = "2s"


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer, at one time."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str) -> list[Sample]:
        """What an expression gives now. An expression that it refuses fails the test in its own words."""
        result = self._get("query", query=expression)["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in result]

    def label_values(self, label: str, selector: str) -> list[str]:
        """Values of a label over the series that match, as Grafana's `label_values` asks for them."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with how its last evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, and how that goes."""
        targets: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return targets

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30, trust_env=False)
        if answer.status_code != 200:
            pytest.fail(f"{path} {parameters}: {answer.text}")
        return answer.json()["data"]


@contextlib.contextmanager
def running_prometheus(folder: Path, scraped: str = "") -> Iterator[Prometheus]:
    """Scrapes one address (none where it is empty) every other second, evaluates our rules, and keeps its data in `folder`/data."""
    assert PROMETHEUS, "no prometheus on the path: run `make monitoring`"
    configuration = {
        "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "ray",
                "static_configs": [{"targets": [scraped] if scraped else [], "labels": {"ray_io_cluster": CLUSTER}}],
            },
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = [PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        until(lambda: _is_ready(f"http://{address}/-/ready", process, folder / "log"), within_s=60, what="Prometheus is ready")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    return False
