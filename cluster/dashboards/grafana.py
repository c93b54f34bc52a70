"""What `nightjar dashboards push` does to a Grafana: a folder, a data source if asked for, the dashboards, and annotations.

Looks before it writes, so a second push changes nothing. What Grafana adds to what it was sent (ids, versions, defaults) is no
difference; what a person changed in a dashboard is, and is overwritten: the code is where dashboards are edited.

Over the grafana-api library. Fails as `GrafanaError`, whose message is what the operator reads. Data sources are addressed by uid
through the library's session: its own calls use numeric ids, which Grafana deprecated in 9.0 and turned off in 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import SplitResult

from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace
from pydantic import SecretStr

from nightjar.cluster.api.http_client import LOOPBACK_HOSTS
from nightjar.cluster.dashboards.annotations import Annotation
from nightjar.cluster.dashboards.panels import TAG, Dashboard, Json, dashboard_json
from nightjar.policy.wire.record import web_address

TIMEOUT_S: Final = 10.0
MOST_ANNOTATIONS: Final = 50_000
"""Asked for at once; Grafana gives 100 unless told."""
FOLDER_UID: Final = "nightjar"
FOLDER_TITLE: Final = "Nightjar"
DATA_SOURCE_UID: Final = "nightjar-prometheus"
KEPT: Final = ("basicAuth", "basicAuthUser", "database", "isDefault", "jsonData", "user", "version", "withCredentials")
"""What a person decides of a data source; an update that did not name it would reset it. Secrets stay by themselves."""
MESSAGE: Final = "nightjar dashboards push"
"""What Grafana's version history says of a change."""


class GrafanaError(Exception):
    """A call that did not do what it should. The message is one line for the operator."""


class _NotFoundError(GrafanaError):
    """The answer was 404."""


class GrafanaServer:
    """A Grafana behind `url`, a path included if it is served under one. Every call may raise GrafanaError."""

    def __init__(self, url: str, token: SecretStr) -> None:
        self._url = url.rstrip("/")
        parts = checked_address("--url", self._url)
        self._face = GrafanaFace(
            auth=token.get_secret_value(),
            host=parts.netloc,
            protocol=parts.scheme,
            url_path_prefix=f"{parts.path.lstrip('/')}/" if parts.path.strip("/") else "",
            timeout=TIMEOUT_S,
        )
        self._face.api.s.trust_env = parts.hostname not in LOOPBACK_HOSTS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._face.api.s.close()

    def folder(self, uid: str) -> Json | None:
        """The folder; None where there is none."""
        return self._found(lambda: self._face.folder.get_folder(uid))

    def create_folder(self, uid: str, title: str) -> None:
        """Make a folder at the top level."""
        self._call(lambda: self._face.folder.create_folder(title, uid))

    def data_source(self, uid: str) -> Json | None:
        """The data source; None where there is none."""
        return self._found(lambda: self._face.api.GET(f"/datasources/uid/{uid}"))

    def create_data_source(self, data_source: Json) -> None:
        """Make a data source; its uid is in it."""
        self._call(lambda: self._face.datasource.create_datasource(data_source))

    def update_data_source(self, uid: str, data_source: Json) -> None:
        """Replace a data source."""
        self._call(lambda: self._face.api.PUT(f"/datasources/uid/{uid}", json=data_source))

    def dashboard(self, uid: str) -> Json | None:
        """The dashboard as `dashboard`, and where it is as `meta`; None where there is none."""
        return self._found(lambda: self._face.dashboard.get_dashboard(uid))

    def save_dashboard(self, request: Json) -> None:
        """Make or replace a dashboard."""
        self._call(lambda: self._face.dashboard.update_dashboard(request))

    def annotations(self, start_ms: int, end_ms: int, tag: str) -> Sequence[Json]:
        """Annotations that carry a tag and touch this time."""
        answer = self._answer(lambda: self._face.annotations.get_annotation(start_ms, end_ms, tags=[tag], limit=MOST_ANNOTATIONS))
        if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
            raise GrafanaError(f"{self._url}: the answer is no list of annotations; is this Grafana?")
        if len(answer) >= MOST_ANNOTATIONS:
            raise GrafanaError(f"{self._url}: holds {MOST_ANNOTATIONS} annotations or more of this time; delete some, or give less")
        return answer

    def add_annotation(self, start_ms: int, end_ms: int, tags: Sequence[str], text: str) -> None:
        """Make an annotation of the whole organisation; a moment where it ends as it starts."""
        self._call(lambda: self._face.annotations.add_annotation(time_from=start_ms, time_to=end_ms, tags=list(tags), text=text))

    def _found(self, call: Callable[[], Any]) -> Json | None:
        """What a GET gives; None for 404."""
        try:
            return self._call(call)
        except _NotFoundError:
            return None

    def _call(self, call: Callable[[], Any]) -> Json:
        """The answer as an object."""
        answer = self._answer(call)
        if not isinstance(answer, dict):
            raise GrafanaError(f"{self._url}: the answer is no JSON object; is this Grafana?")
        return answer

    def _answer(self, call: Callable[[], Any]) -> object:
        """The library's own errors, and those of requests (which are OSErrors), become GrafanaError."""
        try:
            return call()
        except GrafanaException as error:
            kind = _NotFoundError if error.status_code == 404 else GrafanaError
            raise kind(f"{self._url}: {_refusal(error.status_code, error.response)}") from error
        except ValueError as error:
            raise GrafanaError(f"{self._url}: the answer is no JSON; is this Grafana?") from error
        except OSError as error:
            words = f"nothing answers at {self._url} ({type(error).__name__})"
            raise GrafanaError(f"{words}; is Grafana there, and is --url right?") from error


def checked_address(option: str, url: str) -> SplitResult:
    """A web address in its parts. Raises GrafanaError where it is none, or holds a password, which the message does not repeat."""
    address = web_address(url)
    if address is not None and address.username is None:
        return address
    shown = url.rpartition("@")[2]
    raise GrafanaError(f"{option}: {shown!r} is not an address such as https://grafana.example.com, without user and password")


def _refusal(status_code: int, answer: object) -> str:
    said = str(answer.get("message") or "") if isinstance(answer, dict) else str(answer)
    hint = {401: "the token is none that this Grafana knows", 403: "the token's role may not do this"}
    words = [" ".join(said.split())[:200], hint.get(status_code, "")]
    return f"{': '.join(filter(None, words)) or 'refused'} (HTTP {status_code})"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one thing."""

    kind: Literal["folder", "data source", "dashboard", "annotation"]
    name: str
    outcome: Literal["created", "updated", "unchanged"]


def push(grafana: GrafanaServer, dashboards: Sequence[Dashboard], prometheus_url: str = "") -> Iterator[Change]:
    """Bring a Grafana to what the code says, and tell each thing when it is done. Without a URL no data source is touched."""
    yield _push_folder(grafana)
    if prometheus_url:
        yield _push_data_source(grafana, prometheus_url)
    for dashboard in dashboards:
        yield _push_dashboard(grafana, dashboard)


def annotate(grafana: GrafanaServer, annotations: Sequence[Annotation]) -> Iterator[Change]:
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


def _push_folder(grafana: GrafanaServer) -> Change:
    """A folder that somebody renamed keeps its name."""
    if grafana.folder(FOLDER_UID) is not None:
        return Change("folder", FOLDER_TITLE, "unchanged")
    grafana.create_folder(FOLDER_UID, FOLDER_TITLE)
    return Change("folder", FOLDER_TITLE, "created")


def _push_data_source(grafana: GrafanaServer, prometheus_url: str) -> Change:
    wanted = data_source_json(prometheus_url)
    stored = grafana.data_source(DATA_SOURCE_UID)
    if stored is None:
        grafana.create_data_source(wanted)
        return Change("data source", DATA_SOURCE_UID, "created")
    if holds(stored, wanted):
        return Change("data source", DATA_SOURCE_UID, "unchanged")
    grafana.update_data_source(DATA_SOURCE_UID, {**{name: stored[name] for name in KEPT if name in stored}, **wanted})
    return Change("data source", DATA_SOURCE_UID, "updated")


def _push_dashboard(grafana: GrafanaServer, dashboard: Dashboard) -> Change:
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
