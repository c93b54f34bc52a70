"""Rules and dashboards of plain vLLM servers: they ask for what such a server's own page has, and alerts fire by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.panels import Query
from nightjar.cluster.dashboards.rules import ALERTS, RECORDINGS
from nightjar.cluster.dashboards.without_ray import PLAIN_DASHBOARDS, plain_rule_file
from tests.cluster.dashboards.exported_names import FAMILIES, LABELS, VLLM_OWN_SERIES
from tests.cluster.dashboards.promql_names import labels_of, series_of
from tests.cluster.dashboards.promtool import complaints, expecting, needs_promtool, without_an_answer
from tests.cluster.dashboards.test_alerts import SCENARIOS, of_a_replica_that_steps, with_nothing_chosen

OWN: Final = {family.exported_name.removeprefix("ray_") for family in FAMILIES}
ON_THE_PAGE: Final = OWN | VLLM_OWN_SERIES | {recording.name for recording in RECORDINGS} | {"ALERTS"}
RULES: Final = [rule for group in yaml.safe_load(plain_rule_file())["groups"] for rule in group["rules"]]
QUERIES: Final = [query for dashboard in PLAIN_DASHBOARDS for query in dashboard.queries]
OF_SERVE: Final = {"NightjarMetricsAbsent", "NightjarNoReplica", "NightjarApplicationUnhealthy", "NightjarReplicasPending"}
"""About a Ray cluster and what Serve says of it."""

each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.expression[:60])


def on_a_page(series: dict[str, str]) -> dict[str, str]:
    """The same series as a server has them that is scraped at r:8000: vLLM's know no replica there, and nothing a cluster."""

    def renamed(name: str) -> str:
        name = re.sub(r'(, )?(WorkerId|ray_io_cluster)="\w+"', "", name).replace("{, ", "{")
        if name.startswith("ray_vllm_"):
            return name.replace("ray_vllm_", "vllm:").replace('ReplicaId="r"', 'job="vllm", instance="r:8000"')
        return name.removeprefix("ray_").replace("{", '{job="vllm", instance="r:8000"' + (", " if "{}" not in name else ""))

    return {renamed(name): values for name, values in series.items()}


def test_a_scrape_of_a_server_has_these_names() -> None:
    with_ray = {
        'ray_vllm_x{engine="0", ReplicaId="r", WorkerId="w", ray_io_cluster="c"}': "1",
        'ray_nightjar_y{WorkerId="p", ray_io_cluster="c", group_id="g"}': "1",
    }
    assert set(on_a_page(with_ray)) == {
        'vllm:x{engine="0", job="vllm", instance="r:8000"}',
        'nightjar_y{job="vllm", instance="r:8000", group_id="g"}',
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_asks_for_what_a_servers_page_has(rule: dict[str, str]) -> None:
    assert series_of(rule["expr"]) <= ON_THE_PAGE
    assert labels_of(rule["expr"]) <= LABELS - {"ray_io_cluster", "ReplicaId"} | {"instance"}


@each_query
def test_a_query_asks_for_what_a_servers_page_has_and_its_legend_names_what_it_keeps(query: Query) -> None:
    assert series_of(query.expression) <= ON_THE_PAGE
    assert labels_of(query.expression) <= LABELS - {"ray_io_cluster", "ReplicaId"} | {"instance"}
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels_of(query.expression)


def test_every_alert_is_there_but_those_about_a_ray_cluster() -> None:
    assert {rule["alert"] for rule in RULES if "alert" in rule} == {alert.name for alert in ALERTS} - OF_SERVE
    assert [rule["record"] for rule in RULES if "record" in rule] == [recording.name for recording in RECORDINGS]


def test_both_kinds_of_dashboards_fit_into_one_grafana_and_show_the_same_but_what_serve_counts() -> None:
    assert {board.uid for board in PLAIN_DASHBOARDS}.isdisjoint(board.uid for board in DASHBOARDS)
    for plain, board in zip(PLAIN_DASHBOARDS, DASHBOARDS, strict=True):
        titles = [[panel.title for row in shown.rows for panel in row.panels] for shown in (board, plain)]
        assert set(titles[0]) - set(titles[1]) <= {"Failed requests", "Replicas wanted and running"}
        assert {variable.label for variable in plain.variables} >= {"Job", "Application", "Group"}


@needs_promtool
def test_an_alert_fires_by_a_servers_own_names_when_it_should_and_only_then(tmp_path: Path) -> None:
    cases = [
        expecting(
            f'count(ALERTS{{alertname="{scenario.alert}", alertstate="firing"}}) or vector(0)',
            scenario.minute,
            float(scenario.fires),
            on_a_page(scenario.series),
        )
        for scenario in SCENARIOS
        if scenario.alert not in OF_SERVE
    ]
    assert complaints(tmp_path, plain_rule_file(), cases) == ""


@needs_promtool
def test_every_query_gives_something_by_a_servers_own_names(tmp_path: Path) -> None:
    queries = [with_nothing_chosen(query.expression) for query in QUERIES]
    assert without_an_answer(queries, plain_rule_file(), on_a_page(of_a_replica_that_steps()), tmp_path) == ""
