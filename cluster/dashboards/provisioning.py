"""What `nightjar dashboards push` does to a Grafana: a folder, a data source if asked for, the dashboards, and annotations.

Looks before it writes, so a second push changes nothing. What Grafana adds to what it was sent (ids, versions, defaults) is no
difference; what a person changed in a dashboard is, and is overwritten: the code is where dashboards are edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from nightjar.cluster.dashboards.annotations import Annotation
from nightjar.cluster.dashboards.panels import TAG, Dashboard, Json, dashboard_json

FOLDER_UID: Final = "nightjar"
FOLDER_TITLE: Final = "Nightjar"
DATA_SOURCE_UID: Final = "nightjar-prometheus"
KEPT: Final = ("basicAuth", "basicAuthUser", "database", "isDefault", "jsonData", "user", "version", "withCredentials")
"""What a person decides of a data source; an update that did not name it would reset it. Secrets stay by themselves."""
MESSAGE: Final = "nightjar dashboards push"
"""What Grafana's version history says of a change."""


class Grafana(Protocol):
    """What a push needs of a Grafana. Every call may raise grafana.GrafanaError; what is asked for by uid may be absent: None."""

    def folder(self, uid: str) -> Json | None:
        """The folder."""

    def create_folder(self, uid: str, title: str) -> None:
        """Make a folder at the top level."""

    def data_source(self, uid: str) -> Json | None:
        """The data source."""

    def create_data_source(self, data_source: Json) -> None:
        """Make a data source; its uid is in it."""

    def update_data_source(self, uid: str, data_source: Json) -> None:
        """Replace a data source."""

    def dashboard(self, uid: str) -> Json | None:
        """The dashboard as `dashboard`, and where it is as `meta`."""

    def save_dashboard(self, request: Json) -> None:
        """Make or replace a dashboard."""

    def annotations(self, start_ms: int, end_ms: int, tag: str) -> Sequence[Json]:
        """Annotations that carry a tag and touch this time."""

    def add_annotation(self, start_ms: int, end_ms: int, tags: Sequence[str], text: str) -> None:
        """Make an annotation of the whole organisation; a moment where it ends as it starts."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one thing."""

    kind: Literal["folder", "data source", "dashboard", "annotation"]
    name: str
    outcome: Literal["created", "updated", "unchanged"]


def push(grafana: Grafana, dashboards: Sequence[Dashboard], prometheus_url: str = "") -> Iterator[Change]:
    """Bring a Grafana to what the code says, and tell each thing when it is done. Without a URL no data source is touched."""
    yield _push_folder(grafana)
    if prometheus_url:
        yield _push_data_source(grafana, prometheus_url)
    for dashboard in dashboards:
        yield _push_dashboard(grafana, dashboard)


def annotate(grafana: Grafana, annotations: Sequence[Annotation]) -> Iterator[Change]:
    """Write what is not there yet. What was written before stays, also where its journal is gone."""
    if not annotations:
        return
    start_ms, end_ms = min(one.start_ms for one in annotations), max(one.end_ms for one in annotations)
    stored = {
        (one.get("text"), one.get("time"), one.get("timeEnd") or one.get("time"))
        for one in grafana.annotations(start_ms, end_ms, TAG)
    }
    for one in annotations:
        if (one.text, one.start_ms, one.end_ms) in stored:
            yield Change("annotation", one.text, "unchanged")
        else:
            grafana.add_annotation(one.start_ms, one.end_ms, one.tags, one.text)
            yield Change("annotation", one.text, "created")


def _push_folder(grafana: Grafana) -> Change:
    """A folder that somebody renamed keeps its name."""
    if grafana.folder(FOLDER_UID) is not None:
        return Change("folder", FOLDER_TITLE, "unchanged")
    grafana.create_folder(FOLDER_UID, FOLDER_TITLE)
    return Change("folder", FOLDER_TITLE, "created")


def _push_data_source(grafana: Grafana, prometheus_url: str) -> Change:
    wanted = data_source_json(prometheus_url)
    stored = grafana.data_source(DATA_SOURCE_UID)
    if stored is None:
        grafana.create_data_source(wanted)
        return Change("data source", DATA_SOURCE_UID, "created")
    if holds(stored, wanted):
        return Change("data source", DATA_SOURCE_UID, "unchanged")
    grafana.update_data_source(DATA_SOURCE_UID, {**{name: stored[name] for name in KEPT if name in stored}, **wanted})
    return Change("data source", DATA_SOURCE_UID, "updated")


def _push_dashboard(grafana: Grafana, dashboard: Dashboard) -> Change:
    wanted = dashboard_json(dashboard)
    stored = grafana.dashboard(dashboard.uid)
    if stored is not None and holds(stored, {"dashboard": wanted, "meta": {"folderUid": FOLDER_UID}}):
        return Change("dashboard", dashboard.title, "unchanged")
    grafana.save_dashboard({"dashboard": {"id": None, **wanted}, "folderUid": FOLDER_UID, "message": MESSAGE, "overwrite": True})
    return Change("dashboard", dashboard.title, "created" if stored is None else "updated")


def data_source_json(prometheus_url: str) -> Json:
    """A Prometheus that Grafana's server asks, not the browser."""
    return {
        "uid": DATA_SOURCE_UID,
        "name": DATA_SOURCE_UID,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url.rstrip("/"),
    }


def holds(stored: object, wanted: object) -> bool:
    """Whether everything that is wanted is stored; what objects hold beyond it does not matter.

    >>> holds({"id": 7, "tags": ["a"]}, {"tags": ["a"]}), holds({"tags": ["a", "b"]}, {"tags": ["a"]})
    (True, False)
    """
    if isinstance(wanted, Mapping):
        return isinstance(stored, Mapping) and all(name in stored and holds(stored[name], value) for name, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(stored, list) and len(stored) == len(wanted) and all(map(holds, stored, wanted))
    return stored == wanted
