"""Prometheus' own rule tester, in virtual time, and for it the series of a release's cluster, by minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from nightjar.cluster.dashboards.rules import rule_file
from nightjar.cluster.serve_config import POLICY_NAME

PROMTOOL: Final = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool: Final = pytest.mark.skipif(not PROMTOOL, reason="promtool, a Debian package of its own, is absent")

Span = tuple[int, int, float]
"""First minute, last minute, value."""


class Cluster:
    """The Ray cluster of a release, and its series."""

    def __init__(self, name: str, namespace: str = "llm", job: str = "nightjar") -> None:
        self.labels = f'namespace="{namespace}", job="{job}", ray_io_cluster="{name}"'
        self.series: dict[str, str] = {}

    def policy(self, *spans: Span) -> Cluster:
        """The policy's gauge."""
        return self._add("ray_nightjar_policy_decision_age_seconds", 'WorkerId="p"', spans)

    def replica(self, *spans: Span, application: str = "chat", replica: str = "r", settings_age_s: float = 1.0) -> Cluster:
        """What a replica of ours exports, and what Serve says of it while it runs."""
        ours = f'application="{application}", deployment="LLM", model_name="m", engine="0", ReplicaId="{replica}", group_id="g"'
        self._add("ray_nightjar_replica_info", ours, spans)
        self._add("ray_nightjar_settings_age_seconds", ours, [(first, last, settings_age_s) for first, last, _ in spans])
        return self.running(*spans, application=application, replica=replica)

    def running(self, *spans: Span, application: str = "chat", deployment: str = "LLM", replica: str = "r") -> Cluster:
        """A replica that passes Serve's health checks."""
        labels = f'application="{application}", deployment="{deployment}", replica="{replica}"'
        return self._add("ray_serve_deployment_replica_healthy", labels, spans)

    def wanted(self, *spans: Span, application: str = "chat", deployment: str = "LLM") -> Cluster:
        """Replicas that Serve wants, of a deployment that there is."""
        labels = f'application="{application}", deployment="{deployment}"'
        self._add("ray_serve_deployment_status", labels, [(first, last, 6) for first, last, _ in spans])
        return self._add("ray_serve_autoscaling_target_replicas", labels, spans)

    def status(self, *spans: Span, application: str = "chat") -> Cluster:
        """Serve's status of an application: 1 could not be deployed, 2 unhealthy, 5 deploying, 6 running."""
        return self._add("ray_serve_application_status", f'application="{application}"', spans)

    def policy_application(self, status: float, last: int) -> Cluster:
        """Serve's status of the policy's application, which stays while no policy runs."""
        return self.status((0, last, status), application=POLICY_NAME)

    def _add(self, name: str, labels: str, spans: Iterable[Span]) -> Cluster:
        self.series[f"{name}{{{self.labels}, {labels}}}"] = _samples(spans)
        return self


def _samples(spans: Iterable[Span]) -> str:
    """Spans in promtool's notation, minute by minute, with nothing between them and an end that Prometheus notices."""
    parts, minute = [], 0
    for first, last, value in spans:
        parts += ["_"] * (first - minute) + [f"{value:g}x{last - first}"] + ["stale"]
        minute = last + 2
    return " ".join(parts)


def firing(at_minutes: Iterable[int], clusters: Sequence[Cluster], expected: int, which: str, folder: Path, rules: str = "") -> str:
    """promtool's complaint where the number of firing alerts of a selector is another than expected at one of these minutes.

    `rules` is another rule file than ours.
    """
    expression = f'count(ALERTS{{alertstate="firing"{which}}}) or vector(0)'
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for cluster in clusters for name, values in cluster.series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": float(expected)}]}
            for minute in at_minutes
        ],
    }
    return complaints(folder, rules or rule_file(), [test])


def complaints(folder: Path, rules: str, tests: list[dict[str, Any]]) -> str:
    """What promtool says against it; empty where everything is as expected."""
    (folder / "rules.yaml").write_text(rules)
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    assert PROMTOOL
    command = [PROMTOOL, "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def metrics_complaints(page: str) -> str:
    """What promtool says against the form of a page of metrics; its advice on names (exit code 3) is left out."""
    assert PROMTOOL
    command = [PROMTOOL, "check", "metrics"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=600, check=False)
    return "" if done.returncode in {0, 3} else done.stdout + done.stderr


def expecting(expression: str, minute: int, value: float, series: dict[str, str], interval: str = "1m") -> dict[str, Any]:
    """One case of promtool's: series in, the value of an expression without labels out."""
    return {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": value}]}],
    }


def without_an_answer(queries: Sequence[str], rules: str, series: dict[str, str], folder: Path) -> str:
    """promtool's complaint where a query finds nothing after ten minutes of these series, a sample each 15 s."""
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    groups = [*yaml.safe_load(rules)["groups"], {"name": "queries", "rules": recorded}]
    asked = [expecting(f"count(query:{number}) > bool 0", 10, 1.0, series, interval="15s") for number in range(len(queries))]
    at_once = asked[0] | {"promql_expr_test": [case for test in asked for case in test["promql_expr_test"]]}
    return complaints(folder, yaml.safe_dump({"groups": groups}), [at_once])
