"""The Prometheus rules: what they name exists, what they say leads somewhere. No Prometheus evaluates them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from nightjar.cluster.cli import COMMANDS
from nightjar.cluster.dashboards.rules import ALERTS, RECORDINGS, RUNBOOK, Alert, Recording, rule_file
from tests.cluster.dashboards.exported_names import LABELS, SERIES
from tests.cluster.dashboards.promql_names import labels_of, series_of

RUNBOOK_TEXT: Final = (Path(__file__).parents[3] / RUNBOOK).read_text(encoding="utf-8")
MONITORING_TEXT: Final = (Path(__file__).parents[3] / "docs/monitoring.md").read_text(encoding="utf-8")
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


def test_clusters_are_told_apart_in_every_rule() -> None:
    unaware = [rule.name for rule in RULES if not any("ray_io_cluster" in expression for expression in _resolved(rule.expression))]
    assert unaware == []


def test_monitoring_page_lists_what_is_recorded() -> None:
    assert re.findall(r"^\| `(\S+:\S+)` \|", MONITORING_TEXT, re.MULTILINE) == [recording.name for recording in RECORDINGS]
