"""`nightjar dashboards push` against a Grafana that takes only what Grafana's HTTP API documents. No real Grafana took it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nightjar.cluster.cli import app
from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.overview import OVERVIEW
from nightjar.cluster.dashboards.panels import dashboard_json
from nightjar.cluster.dashboards.without_ray import PLAIN_DASHBOARDS
from tests.cluster.dashboards.fake_grafana import TOKEN, FakeGrafana, running_grafana, serving

EVERYTHING = [
    ("POST", "/api/folders"),
    ("POST", "/api/datasources"),
    ("POST", "/api/dashboards/db"),
    ("POST", "/api/dashboards/db"),
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NIGHTJAR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTJAR_GRAFANA_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running_grafana() as running:
        yield running


def push(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["dashboards", "push", "--url", url, *arguments])


def pushed(grafana: FakeGrafana, *arguments: str) -> list[str]:
    """Push and give the outcome of each thing."""
    done = push(grafana.url, "--prometheus", "http://prometheus:9090/", "-o", "json", *arguments)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line)["outcome"] for line in done.stdout.splitlines()]


def refused(done: Result) -> str:
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert TOKEN not in done.stderr + done.stdout
    return done.stderr


def test_a_first_push_creates_folder_data_source_and_dashboards(grafana: FakeGrafana) -> None:
    assert pushed(grafana) == ["created"] * 4
    assert grafana.writes == EVERYTHING
    assert grafana.folders["nightjar"]["title"] == "Nightjar"
    source = grafana.data_sources["nightjar-prometheus"]
    assert (source["type"], source["access"], source["url"]) == ("prometheus", "proxy", "http://prometheus:9090")
    assert grafana.dashboards.keys() == {dashboard.uid for dashboard in DASHBOARDS}
    stored = grafana.dashboards[OVERVIEW.uid]
    assert stored["meta"]["folderUid"] == "nightjar"
    assert dashboard_json(OVERVIEW).items() <= stored["dashboard"].items()


def test_dashboards_of_plain_servers_are_pushed_beside_those_of_a_cluster(grafana: FakeGrafana) -> None:
    pushed(grafana)
    assert pushed(grafana, "--without-ray") == ["unchanged", "unchanged", "created", "created"]
    assert grafana.dashboards.keys() == {dashboard.uid for dashboard in (*DASHBOARDS, *PLAIN_DASHBOARDS)}
    assert "ray_" not in json.dumps(grafana.dashboards[PLAIN_DASHBOARDS[0].uid]["dashboard"])


def test_a_second_push_writes_nothing(grafana: FakeGrafana) -> None:
    pushed(grafana)
    grafana.requests.clear()
    assert pushed(grafana) == ["unchanged"] * 4
    assert grafana.writes == []


def test_without_a_prometheus_no_data_source_is_asked_for(grafana: FakeGrafana) -> None:
    shown = push(grafana.url)
    assert shown.stdout.splitlines() == [
        "created   folder Nightjar",
        "created   dashboard Nightjar: overview",
        "created   dashboard Nightjar: one replica",
    ]
    assert not any("datasources" in request.path for request in grafana.requests)


def rename_a_panel(grafana: FakeGrafana) -> None:
    grafana.dashboards[OVERVIEW.uid]["dashboard"]["panels"][1]["title"] = "Mine"


def drop_a_panel(grafana: FakeGrafana) -> None:
    grafana.dashboards[OVERVIEW.uid]["dashboard"]["panels"].pop()


def move_it(grafana: FakeGrafana) -> None:
    grafana.dashboards[OVERVIEW.uid]["meta"]["folderUid"] = "elsewhere"


@pytest.mark.parametrize("change", [rename_a_panel, drop_a_panel, move_it])
def test_a_dashboard_that_somebody_changed_is_brought_back(grafana: FakeGrafana, change: Callable[[FakeGrafana], Any]) -> None:
    pushed(grafana)
    change(grafana)
    assert pushed(grafana) == ["unchanged", "unchanged", "updated", "unchanged"]
    assert pushed(grafana) == ["unchanged"] * 4
    assert grafana.dashboards[OVERVIEW.uid]["dashboard"]["version"] == 2


def test_another_prometheus_changes_the_address_and_nothing_that_somebody_set(grafana: FakeGrafana) -> None:
    pushed(grafana)
    grafana.data_sources["nightjar-prometheus"] |= {"isDefault": True, "jsonData": {"timeInterval": "15s"}}
    assert pushed(grafana, "--prometheus", "https://other") == ["unchanged", "updated", "unchanged", "unchanged"]
    source = grafana.data_sources["nightjar-prometheus"]
    assert (source["url"], source["isDefault"], source["jsonData"]) == ("https://other", True, {"timeInterval": "15s"})


def test_a_folder_that_somebody_renamed_keeps_its_name(grafana: FakeGrafana) -> None:
    pushed(grafana)
    grafana.folders["nightjar"]["title"] = "LLM serving"
    assert pushed(grafana) == ["unchanged"] * 4


def test_a_grafana_below_a_path_is_reached(grafana: FakeGrafana) -> None:
    with serving(lambda request, headers: (401, {"message": request.path})) as url:
        assert "/monitoring/grafana/api/folders/nightjar" in refused(push(f"{url}/monitoring/grafana/"))


def test_the_token_comes_from_a_file_too(grafana: FakeGrafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTJAR_GRAFANA_TOKEN")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("NIGHTJAR_GRAFANA_TOKEN_FILE", str(tmp_path / "token"))
    assert pushed(grafana) == ["created"] * 4


def test_no_token_is_one_line_that_names_the_variables(grafana: FakeGrafana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTJAR_GRAFANA_TOKEN")
    assert "NIGHTJAR_GRAFANA_TOKEN_FILE" in refused(push(grafana.url))
    assert grafana.requests == []


def test_a_token_that_grafana_does_not_know_is_one_line(grafana: FakeGrafana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_GRAFANA_TOKEN", "stale")
    line = refused(push(grafana.url))
    assert "401" in line
    assert "token" in line
    assert "stale" not in line


def test_a_role_that_may_not_write_is_one_line() -> None:
    def may_read(request: Any, headers: Any) -> tuple[int, object]:
        return (404, {"message": "not found"}) if request.method == "GET" else (403, {"message": "no\nright"})

    with serving(may_read) as url:
        assert "no right: the token's role" in refused(push(url))


def test_nothing_that_answers_is_one_line_naming_the_url() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert f"nothing answers at {url}" in refused(push(url))


@pytest.mark.parametrize("answer", ["<html>", ["a", "list"]])
def test_something_else_that_answers_is_one_line(answer: object) -> None:
    with serving(lambda request, headers: (200, answer)) as url:
        assert "is this Grafana?" in refused(push(url))


@pytest.mark.parametrize("url", ["grafana:3000", "ftp://grafana", f"http://admin:{TOKEN}@grafana"])
def test_an_address_that_is_none_is_refused_before_a_call_and_without_its_password(url: str) -> None:
    assert "--url: " in refused(push(url))


@pytest.mark.parametrize("address", ["prometheus:9090", f"http://admin:{TOKEN}@prometheus"])
def test_a_prometheus_without_an_address_is_refused_before_anything_is_written(grafana: FakeGrafana, address: str) -> None:
    assert "--prometheus: " in refused(push(grafana.url, "--prometheus", address))
    assert grafana.requests == []
