"""Rules and dashboards: whatever lies in the chart's folders, and a clear word where nothing does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from nightjar.cluster.dashboards.promql import ANY_RELEASE
from nightjar.cluster.serve_config import POLICY_IMPORT_PATH, POLICY_NAME
from tests.cluster.dashboards.promtool import Cluster, firing, needs_promtool
from tests.helm.rendering import CHART, Release, needs_helm, refusal, release

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


def monitored(alerts: dict[str, Any] | None = None, job: str = "") -> dict[str, Any]:
    """Values with rules and dashboards."""
    rule = {"enabled": True, "alerts": alerts or {}}
    return {"monitoring": {"job": job, "prometheusRule": rule, "dashboards": {"enabled": True}}}


def rules_of(rendered: Release) -> list[dict[str, Any]]:
    return [rule for group in rendered.one("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def alerts_of(rendered: Release) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules_of(rendered) if "alert" in rule}


def uids_of(rendered: Release) -> set[str]:
    return {json.loads(text)["uid"] for config in rendered.all("ConfigMap") for text in config["data"].values()}


def test_two_releases_in_one_prometheus_and_one_grafana_have_no_rule_and_no_uid_in_common() -> None:
    one, two = release(values=monitored(), name="one"), release(values=monitored(), name="two")
    expressions = [{rule["expr"] for rule in rules_of(rendered)} for rendered in (one, two)]
    assert expressions[0] & expressions[1] == set()
    assert uids_of(one) & uids_of(two) == set()
    assert all(len(uid) <= 40 for uid in uids_of(one))


def test_rules_and_dashboards_of_a_release_select_its_own_series_alone() -> None:
    rendered = release(values=monitored(), name="one")
    texts = [rule["expr"] for rule in rules_of(rendered)]
    texts += [text for config in rendered.all("ConfigMap") for text in config["data"].values()]
    assert all('namespace="serving", job="one"' in text.replace('\\"', '"') for text in texts)
    assert not any(ANY_RELEASE in text.replace('\\"', '"') for text in texts)


def test_a_job_of_another_name_than_the_releases_is_looked_for() -> None:
    rendered = release(values=monitored(job="my-podmonitor"), name="one")
    assert all('job="my-podmonitor"' in rule["expr"] for rule in rules_of(rendered))


def test_a_single_alert_can_be_dropped_and_another_have_its_own_number_duration_and_severity() -> None:
    changed = {
        "NightjarOnlyObserving": {"enabled": False},
        "NightjarPolicySilent": {"threshold": 120, "for": "5m", "severity": "page"},
        "NightjarKvPressureWithDraftResident": {"threshold": 0.95},
    }
    before, after = alerts_of(release(values=monitored())), alerts_of(release(values=monitored(changed)))
    assert before.keys() - after.keys() == {"NightjarOnlyObserving"}
    silent = after["NightjarPolicySilent"]
    assert silent["expr"] == before["NightjarPolicySilent"]["expr"].replace("> 60 #", "> 120 #")
    assert (silent["for"], silent["labels"]) == ("5m", {"severity": "page"})
    pressure = "NightjarKvPressureWithDraftResident"
    assert after[pressure]["expr"] == before[pressure]["expr"].replace("> 0.9 #", "> 0.95 #")
    others = before.keys() - changed.keys()
    assert {name: after[name] for name in others} == {name: before[name] for name in others}


def test_the_policys_application_is_called_what_the_alerts_know_a_release_by() -> None:
    (policy,) = [each for each in release().serve_config["applications"] if each["import_path"] == POLICY_IMPORT_PATH]
    assert policy["name"] == POLICY_NAME


@pytest.mark.parametrize(
    ("alerts", "message"),
    [
        ({"NightjarSilent": {"enabled": False}}, "there is no alert NightjarSilent; there are NightjarAcceptanceCollapse,"),
        ({"NightjarNoReplica": {"threshold": 2}}, "NightjarNoReplica.threshold: 2; this alert has no number"),
        ({"NightjarNoReplica": {"for": "2 hours"}}, "'2 hours' does not match pattern"),
        ({"NightjarNoReplica": {"after": "2h"}}, "additional properties 'after' not allowed"),
    ],
    ids=["an unknown alert", "a number where there is none", "no duration", "an unknown field"],
)
def test_what_cannot_be_changed_of_an_alert_is_refused_in_words(alerts: dict[str, Any], message: str) -> None:
    assert message in refusal(values=monitored(alerts))


@needs_promtool
def test_with_the_rules_of_two_releases_an_alert_of_one_fires_once_and_a_release_that_is_not_scraped_is_named(
    tmp_path: Path,
) -> None:
    groups = [
        {**group, "name": f"{name}.{group['name']}"}
        for name in ("one", "two", "three")
        for group in release(values=monitored(), name=name).one("PrometheusRule")["spec"]["groups"]
    ]
    rules = yaml.safe_dump({"groups": groups})
    well, cut_off = (Cluster("c", namespace="serving", job=job) for job in ("one", "two"))
    for cluster in (well, cut_off):
        cluster.policy((0, 300, 1)).wanted((0, 300, 1)).status((0, 300, 6))
    well.replica((0, 300, 1))
    cut_off.replica((0, 300, 1), settings_age_s=90)
    for which, expected in {
        ', alertname="NightjarPolicySilent", namespace="serving", job="two"': 1,
        ', alertname="NightjarMetricsAbsent", namespace="serving", job="three"': 1,
        "": 2,
    }.items():
        assert firing((60, 200), [well, cut_off], expected, which, tmp_path, rules) == ""


WITHOUT_A_NAMED_POLICY: Final = {
    "policy.enabled is false": {"policy": {"enabled": False}},
    "a Serve config of one's own": {"models": [], "serveConfigV2": "applications: []"},
}


@needs_promtool
@pytest.mark.parametrize("values", WITHOUT_A_NAMED_POLICY.values(), ids=WITHOUT_A_NAMED_POLICY)
def test_a_release_without_a_policys_application_of_the_charts_name_wants_no_policy_within_a_day(
    values: dict[str, Any], tmp_path: Path
) -> None:
    groups = release(values={**monitored(), **values}, name="one").one("PrometheusRule")["spec"]["groups"]
    rules, day = yaml.safe_dump({"groups": groups}), 24 * 60
    unbuilt = Cluster("c", namespace="serving", job="one").status((0, 60, 1))
    assert firing((15,), [unbuilt], 1, ', alertname="NightjarApplicationUnhealthy"', tmp_path, rules) == ""
    assert firing((15,), [unbuilt], 1, "", tmp_path, rules) == ""
    idle = Cluster("c", namespace="serving", job="one").policy((0, 70, 1)).replica((0, 60, 1)).status((0, day + 200, 5))
    idle.wanted((0, 60, 1), (62, day + 100, 0), (day + 102, day + 200, 2))
    assert firing((day + 95,), [idle], 0, "", tmp_path, rules) == ""
    assert firing((day + 160,), [idle], 1, ', alertname="NightjarReplicasPending"', tmp_path, rules) == ""


@needs_promtool
def test_what_another_release_runs_is_no_matter_of_a_release_without_a_policys_application(tmp_path: Path) -> None:
    groups = release(values={**monitored(), "policy": {"enabled": False}}, name="one").one("PrometheusRule")["spec"]["groups"]
    other = Cluster("d", namespace="serving", job="two").status((0, 300, 1))
    mine = (
        Cluster("c", namespace="serving", job="one")
        .policy((0, 300, 1))
        .replica((0, 300, 1))
        .wanted((0, 300, 1))
        .status((0, 300, 6))
    )
    assert firing((60,), [mine, other], 0, "", tmp_path, yaml.safe_dump({"groups": groups})) == ""
