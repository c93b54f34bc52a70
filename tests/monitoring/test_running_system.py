"""Two replicas under a short load, scraped by a real Prometheus: every rule and every panel finds what it asks for.

No real Grafana is here: what a dashboard asks is asked in its place, with nothing chosen at its top.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.cluster.cli import app
from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.panels import Dashboard, Panel, Query
from nightjar.cluster.dashboards.promql import WINDOW
from nightjar.cluster.dashboards.rules import ALERTS, RECORDINGS, Alert, Recording
from tests.cluster.dashboards.fake_grafana import TOKEN, running_grafana
from tests.cluster.dashboards.promql_names import series_of
from tests.deployments import serving
from tests.monitoring.prometheus import CLUSTER, PROMTOOL, RULES, Prometheus, running_prometheus

pytestmark = pytest.mark.filterwarnings("ignore")

MODES = ("pin=3", "off", "pin=2", "auto")
"""In turns, so that several K and restarts are counted."""
MODE_S = 12.0
USERS = 4
SETTLED_S = 90.0
"""Ray's agents export every ten seconds, and `rate` needs two of them."""


@pytest.fixture(scope="module")
def system() -> Iterator[serving.ServeCluster]:
    """Two steered replicas."""
    with serving.serve_cluster(with_metrics=True) as cluster:
        cluster.deploy(serving.application("chat", num_replicas=2))
        yield cluster


@pytest.fixture(scope="module")
def prometheus(system: serving.ServeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped the system under load for a while, and goes on; the load is over."""
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), serving.metrics_address()) as server:
        _load(system)
        serving.until(
            lambda: all(server.query(recording.name) for recording in RECORDINGS),
            within_s=SETTLED_S,
            what="every recorded series",
        )
        yield server


def _load(system: serving.ServeCluster) -> None:
    over = threading.Event()

    def user(number: int) -> int:
        answered = 0
        with system.http("chat") as client:
            while not over.is_set():
                question = f"Tell me {number + answered} things about rain."
                body = {"model": "chat", "messages": [{"role": "user", "content": question}], "max_tokens": 40}
                serving.post(client, body)
                answered += 1
        return answered

    with ThreadPoolExecutor(USERS) as pool:
        users = [pool.submit(user, number) for number in range(USERS)]
        try:
            for mode in MODES:
                serving.set_fleet_mode(mode)
                _fail_once(system)
                time.sleep(MODE_S)
        finally:
            over.set()
        assert all(each.result() > 0 for each in users)


def _fail_once(system: serving.ServeCluster) -> None:
    with system.http("chat") as client:
        answer = client.post("/v1/chat/completions", json={"model": "no-such-model", "messages": []})
    assert 400 <= answer.status_code < 500


def test_the_node_is_scraped_without_an_error(prometheus: Prometheus) -> None:
    (target,) = prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_a_recorded_series_is_there_and_keeps_its_cluster(recording: Recording, prometheus: Prometheus) -> None:
    found = prometheus.query(recording.name)
    assert found
    assert {sample.labels["ray_io_cluster"] for sample in found} == {CLUSTER}
    assert any(math.isfinite(sample.value) for sample in found)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_is_evaluated_and_everything_that_it_looks_at_is_there(alert: Alert, prometheus: Prometheus) -> None:
    (rule,) = (rule for rule in prometheus.rules() if rule["name"] == alert.name)
    assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
    for series in series_of(alert.expression):
        assert prometheus.query(f"last_over_time({series}[5m])"), f"nobody exports {series}"


def test_no_warning_fires_over_a_healthy_system(prometheus: Prometheus) -> None:
    firing = prometheus.query('ALERTS{alertstate="firing", severity="warning"}')
    assert [sample.labels["alertname"] for sample in firing] == []


@pytest.mark.parametrize(
    ("dashboard", "panel", "query"),
    [
        pytest.param(board, panel, query, id=f"{board.uid}: {panel.title}: {query.legend}")
        for board in DASHBOARDS
        for row in board.rows
        for panel in row.panels
        for query in panel.queries
    ],
)
def test_a_query_of_a_panel_gives_a_number(dashboard: Dashboard, panel: Panel, query: Query, prometheus: Prometheus) -> None:
    chosen = query.expression.replace(WINDOW, "3m")
    for variable in dashboard.variables:
        chosen = chosen.replace(f"${variable.name}", ".*")
    assert "$" not in chosen, f"{panel.title} asks for a variable that {dashboard.title} does not have"
    found = prometheus.query(chosen)
    assert found, chosen
    assert any(math.isfinite(sample.value) for sample in found), found


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_what_can_be_chosen_at_the_top_is_there(dashboard: Dashboard, prometheus: Prometheus) -> None:
    for variable in dashboard.variables:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.query)
        assert match, variable.query
        selector, label = match.groups()
        assert prometheus.label_values(label, re.sub(r"\$\w+", ".*", selector)), variable.query


def test_promtool_finds_nothing_wrong_with_the_rules_that_are_committed() -> None:
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, "check", "rules", "--lint=all", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_assess_reads_what_ray_exports_of_real_engines(prometheus: Prometheus) -> None:
    done = CliRunner().invoke(app, ["assess", "--prometheus", prometheus.url, "--hours", "0.5", "-o", "json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["engines"] == 2
    assert found["busy_hours"] > 0.0
    assert any(one["num_speculative_tokens"] > 0 for row in found["batches"] for one in row["ran"])
    assert 0.0 < found["acceptance"][1] < found["acceptance"][0] < 1.0


def test_dashboards_and_restarts_are_pushed_once_and_a_second_push_writes_nothing(prometheus: Prometheus, tmp_path: Path) -> None:
    load = tmp_path / "rows.jsonl"
    load.write_text(json.dumps({"phase": "quiet", "start_s": time.time()}) + "\n")
    journal = serving.fleet_status().policy.journal_path
    with running_grafana() as grafana:
        command = ["dashboards", "push", "--url", grafana.url, "--prometheus", prometheus.url, "-o", "json"]
        command += ["--journal", journal, "--load", str(load)]
        outcomes = []
        for _ in range(2):
            done = CliRunner().invoke(app, command, env={"NIGHTJAR_GRAFANA_TOKEN": TOKEN})
            assert done.exit_code == 0, done.stderr
            outcomes.append({json.loads(line)["outcome"] for line in done.stdout.splitlines()})
            if not outcomes[1:]:
                grafana.requests.clear()
        assert outcomes == [{"created"}, {"unchanged"}]
        assert grafana.writes == []
        (source,) = grafana.data_sources.values()
        assert httpx.get(f"{source['url']}/-/ready", timeout=10, trust_env=False).status_code == 200
