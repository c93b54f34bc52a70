"""The Prometheus rules: what they name exists, what they say leads somewhere. No Prometheus evaluates them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from nightjar.cluster.cli import COMMANDS
from nightjar.cluster.dashboards.promql import ANY_RELEASE, of_any_release
from nightjar.cluster.dashboards.rules import ALERTS, MODELS, RECORDINGS, RUNBOOK, THRESHOLD, Alert, Recording, rule_file
from nightjar.deployments.llm_config import DEPLOYMENT_NAME
from tests.cluster.dashboards.exported_names import LABELS, SERIES
from tests.cluster.dashboards.promql_names import labels_of, series_of

RUNBOOK_TEXT: Final = (Path(__file__).parents[3] / RUNBOOK).read_text(encoding="utf-8")
MONITORING_TEXT: Final = (Path(__file__).parents[3] / "docs/monitoring.md").read_text(encoding="utf-8")
HOSTED: Final = Path(__file__).parents[3] / "deployments/serve_llm/server.py"
HEADINGS: Final = re.findall(r"^## (.+)$", RUNBOOK_TEXT, re.MULTILINE)
RULES: Final = (*RECORDINGS, *ALERTS)

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


@each_rule
def test_every_series_and_label_of_a_rule_exists(rule: Alert | Recording) -> None:
    assert series_of(rule.expression)
    assert series_of(rule.expression) <= SERIES | {recording.name for recording in RECORDINGS}
    assert labels_of(rule.expression) <= LABELS


@each_alert
def test_an_alert_leads_to_its_paragraph_of_the_runbook(alert: Alert) -> None:
    path, anchor = alert.runbook_url.split("#")
    assert path == RUNBOOK
    assert anchor in {heading.lower() for heading in HEADINGS}


def test_the_runbook_speaks_of_alerts_that_exist_and_in_their_order() -> None:
    assert [alert.name for alert in ALERTS] == HEADINGS


def test_the_runbook_names_commands_that_exist() -> None:
    named = set(re.findall(r"`nightjar ([a-z]+)", RUNBOOK_TEXT))
    assert "status" in named
    assert named <= set(COMMANDS)


@each_alert
def test_a_summary_is_a_sentence_that_names_labels_which_its_expression_keeps(alert: Alert) -> None:
    assert alert.summary.endswith(".")
    named = set(re.findall(r"\$labels\.(\w+)", alert.summary))
    assert named <= {label for expression in _resolved(alert.expression) for label in labels_of(expression)}


def _resolved(expression: str) -> list[str]:
    """The expression, and those of the recorded series that it reads."""
    return [expression, *(recording.expression for recording in RECORDINGS if recording.name in series_of(expression))]


def test_names_are_there_once_and_as_prometheus_wants_them() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\w+:\w+:\w+", recording.name) for recording in RECORDINGS)
    assert all(re.fullmatch(r"Nightjar[A-Za-z]+", alert.name) for alert in ALERTS)


def test_the_rule_file_is_what_prometheus_reads() -> None:
    recording, alerting = yaml.safe_load(rule_file())["groups"]
    assert [rule["record"] for rule in recording["rules"]] == [rule.name for rule in RECORDINGS]
    assert [rule["alert"] for rule in alerting["rules"]] == [alert.name for alert in ALERTS]
    for rule in alerting["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"].keys() == {"severity"}
        assert rule["annotations"].keys() == {"summary", "runbook_url"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])


@each_rule
def test_every_rule_keeps_namespace_and_job(rule: Alert | Recording) -> None:
    kept = [labels_of(expression) for expression in _resolved(rule.expression)]
    assert any({"namespace", "job"} <= labels for labels in kept)


@each_rule
def test_every_selector_can_be_held_to_one_release(rule: Alert | Recording) -> None:
    written = of_any_release(rule.expression)
    held = rf"\b((?:ray_(?!io_)|\w+:\w+:)\w+)({re.escape('{' + ANY_RELEASE)})?"
    selected = re.findall(held, written)
    assert {name for name, _ in selected} == series_of(rule.expression)
    assert all(release for _, release in selected), written


def test_what_can_be_chosen_of_an_alert_is_one_number_behind_a_comparison() -> None:
    marked = [alert for alert in ALERTS if THRESHOLD in alert.expression]
    assert {"NightjarPolicySilent", "NightjarKvPressureWithDraftResident"} <= {alert.name for alert in marked}
    for alert in marked:
        assert re.findall(rf"[<>*] [0-9.]+ {THRESHOLD}$", alert.expression, re.MULTILINE), alert.name
        assert alert.expression.count(THRESHOLD) == 1


def test_deployments_of_ours_go_by_the_names_that_the_rules_look_for() -> None:
    assert re.fullmatch(MODELS, DEPLOYMENT_NAME)
    assert "class LLMServer(" in HOSTED.read_text(encoding="utf-8"), "ray.serve.llm names deployments by it: LLMServer:<model>"
    assert re.fullmatch(MODELS, "LLMServer:chat")


def test_monitoring_page_lists_what_is_recorded() -> None:
    assert re.findall(r"^\| `(\S+:\S+)` \|", MONITORING_TEXT, re.MULTILINE) == [recording.name for recording in RECORDINGS]
