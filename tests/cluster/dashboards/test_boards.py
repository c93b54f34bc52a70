"""The dashboards: what they query exists, also with nothing chosen and before anything was counted. No Grafana draws them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from helm.monitoring_files import FOLDER, OF_CHART, generated, main, stale_files
from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.overview import OVERVIEW
from nightjar.cluster.dashboards.panels import Dashboard, Query, dashboard_json
from nightjar.cluster.dashboards.promql import WINDOW
from tests.cluster.dashboards.exported_names import (
    LABELS,
    SERIES,
    SERVE_COUNTERS,
    SERVE_GAUGES,
    SERVE_HISTOGRAMS,
    SERVE_LABELS,
    VLLM_COUNTERS,
    VLLM_GAUGES,
    VLLM_HISTOGRAMS,
)
from tests.cluster.dashboards.promql_names import labels_of, series_of

QUERIES: Final = [query for dashboard in DASHBOARDS for query in dashboard.queries]

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.expression[:60])


def panels_of(dashboard: Dashboard) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(json.dumps(dashboard_json(dashboard)))["panels"]
    return panels


def test_the_charts_files_are_what_the_code_says() -> None:
    assert [path.name for path in stale_files(FOLDER)] == [], "run `make docs`"
    folders = [FOLDER / OF_CHART / name for name in ("rules", "dashboards")]
    written = {path for path in generated(FOLDER) if path.parent in folders}
    assert {path for folder in folders for path in folder.iterdir()} == written


def test_a_stale_file_fails_the_check_and_is_written_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helm.monitoring_files.FOLDER", tmp_path)
    assert main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main([]) == 0
    assert main(["--check"]) == 0


@each_query
def test_every_series_and_label_of_a_query_exists(query: Query) -> None:
    assert series_of(query.expression)
    assert series_of(query.expression) <= SERIES
    assert labels_of(query.expression) <= LABELS


@each_query
def test_a_legend_names_labels_that_its_expression_keeps(query: Query) -> None:
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels_of(query.expression)


@each_query
def test_rates_are_over_a_window_that_fits_the_zoom(query: Query) -> None:
    assert set(re.findall(r"\[([^\]]*)\]", query.expression)) <= {WINDOW}


@each_query
def test_what_vllm_has_not_counted_yet_is_zero(query: Query) -> None:
    counters = {f"ray_{name.replace(':', '_')}_total" for name in VLLM_COUNTERS}
    if series_of(query.expression) & counters:
        assert " or " in query.expression


@each_query
def test_vllms_series_are_joined_with_the_replicas_that_are_chosen(query: Query) -> None:
    """They know neither application nor group."""
    of_vllm = {series for series in series_of(query.expression) if series.startswith("ray_vllm_")}
    for series in of_vllm:
        assert re.search(rf"{series}(\{{[^}}]*\}})?(\[[^\]]*\]\))? \* on \(.*ReplicaId\) group_left", query.expression)


@each_dashboard
def test_every_variable_that_is_used_is_offered_and_starts_with_all(dashboard: Dashboard) -> None:
    document = dashboard_json(dashboard)
    assert isinstance(document["templating"], dict)
    data_source, *choices = document["templating"]["list"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(document["panels"]))) - {WINDOW.lstrip("$")}
    assert used == {data_source["name"], *(choice["name"] for choice in choices)}
    for choice in choices:
        assert choice["includeAll"]
        assert choice["allValue"] == ".*"
        assert choice["current"]["value"] == ["$__all"]
        assert labels_of(choice["definition"]) <= LABELS


@each_dashboard
def test_panels_lie_on_the_grid_and_not_over_each_other(dashboard: Dashboard) -> None:
    panels = panels_of(dashboard)
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    for place in (panel["gridPos"] for panel in panels):
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


@each_dashboard
def test_panels_have_words_queries_and_the_chosen_data_source(dashboard: Dashboard) -> None:
    for panel in panels_of(dashboard):
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in [panel, *panel["targets"]]} == {"${datasource}"}


def test_dashboards_are_told_apart_by_uids_that_grafana_takes() -> None:
    uids = [dashboard.uid for dashboard in DASHBOARDS]
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"[a-z-]{1,40}", uid) for uid in uids)


def test_vllm_exports_the_names_that_are_used() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    folder = Path(found.origin).parent / "v1"
    source = "".join((folder / name).read_text(encoding="utf-8") for name in ("metrics/loggers.py", "spec_decode/metrics.py"))
    assert [name for name in VLLM_COUNTERS | VLLM_GAUGES | VLLM_HISTOGRAMS if f'"{name}"' not in source] == []


def test_serve_exports_the_names_and_labels_that_are_used() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("Ray is not installed")
    source = "".join(path.read_text(encoding="utf-8") for path in (Path(found.origin).parent / "serve/_private").glob("*.py"))
    source = source.replace("{protocol_name}", "http")
    assert [name for name in SERVE_COUNTERS | SERVE_GAUGES | SERVE_HISTOGRAMS | SERVE_LABELS if f'"{name}"' not in source] == []


@pytest.mark.parametrize("topic", ["Failed requests", "End-to-end latency", "Replicas wanted and running", "Firing alerts"])
def test_the_overview_answers_what_an_operator_asks_first(topic: str) -> None:
    assert topic in {panel["title"] for panel in panels_of(OVERVIEW)}
