"""Rules and dashboards: whatever lies in the chart's folders, and a clear word where nothing does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helm.rendering import CHART, needs_helm, refusal, release

pytestmark = needs_helm
RULES = {
    "groups": [
        {"name": "scraped", "rules": [{"alert": "Down", "expr": "up == 0", "annotations": {"summary": "{{ $labels.instance }}"}}]}
    ]
}
DASHBOARD = {"uid": "ours", "title": "{{ not a template }}", "panels": []}


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """The chart without any rule or dashboard."""
    copy = tmp_path / "nightjar"
    shutil.copytree(CHART, copy, ignore=lambda folder, names: {"rules", "dashboards"} & set(names))
    return copy


def test_rule_files_become_one_prometheus_rule_with_their_templates_untouched(chart: Path) -> None:
    (chart / "files/rules").mkdir()
    (chart / "files/rules/ours.yaml").write_text(yaml.safe_dump(RULES))
    own = {"name": "theirs", "rules": [{"record": "a", "expr": "sum(up)"}]}
    values = {"monitoring": {"prometheusRule": {"enabled": True, "labels": {"release": "p"}, "additionalGroups": [own]}}}
    rule = release(chart=chart, values=values).one("PrometheusRule")
    assert rule["spec"]["groups"] == [own, *RULES["groups"]]
    assert rule["metadata"]["labels"]["release"] == "p"


def test_each_dashboard_file_becomes_a_config_map_for_the_sidecar(chart: Path) -> None:
    (chart / "files/dashboards").mkdir()
    for name in ("overview", "one_replica"):
        (chart / f"files/dashboards/{name}.json").write_text(json.dumps(DASHBOARD, indent=2))
    maps = release(chart=chart, values={"monitoring": {"dashboards": {"enabled": True}}}).all("ConfigMap")
    assert [config["metadata"]["name"] for config in maps] == ["llm-nightjar-one-replica", "llm-nightjar-overview"]
    assert json.loads(maps[1]["data"]["overview.json"]) == DASHBOARD
    assert maps[1]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert maps[1]["metadata"]["annotations"]["grafana_folder"] == "Nightjar"


@pytest.mark.parametrize(("what", "message"), [("prometheusRule", "there is no rule"), ("dashboards", "there is no dashboard")])
def test_turning_on_what_the_chart_does_not_hold_is_refused(chart: Path, what: str, message: str) -> None:
    assert message in refusal(chart=chart, values={"monitoring": {what: {"enabled": True}}})


def test_the_charts_own_alerts_lead_to_where_the_runbook_is_read() -> None:
    values = {"monitoring": {"prometheusRule": {"enabled": True, "runbookUrl": "https://wiki.example.com/runbook"}}}
    _, alerts = release(values=values).one("PrometheusRule")["spec"]["groups"]
    for alert in alerts["rules"]:
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example.com/runbook#{alert['alert'].lower()}"
        assert "{{ " in alert["annotations"]["summary"], "Prometheus' own templates are left to it"


def test_the_charts_own_dashboards_are_valid_config_maps() -> None:
    maps = release(values={"monitoring": {"dashboards": {"enabled": True}}}).all("ConfigMap")
    assert [config["metadata"]["name"] for config in maps] == ["llm-nightjar-overview", "llm-nightjar-replica"]
    for config in maps:
        ((_, text),) = config["data"].items()
        assert json.loads(text)["uid"].startswith("nightjar-")
