"""A Grafana in this process: the few calls of its HTTP API that a push makes, as Grafana documents them, and no others.

From the pages "Folder", "Data source", "Dashboard" and "Annotations HTTP API" of Grafana's documentation.
It refuses bodies with fields that those pages do not know, and gives ids, versions and defaults of its own, as Grafana does.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs

TOKEN: Final = "glsa_secret"
MAX_UID: Final = 40

FOLDER_FIELDS: Final = {"uid", "title", "parentUid"}
DATA_SOURCE_FIELDS: Final = {
    *("uid", "name", "type", "access", "url", "basicAuth", "basicAuthUser", "database", "user", "isDefault", "withCredentials"),
    *("jsonData", "secureJsonData", "version"),
}
ANNOTATION_FIELDS: Final = {"dashboardId", "dashboardUID", "panelId", "time", "timeEnd", "tags", "text"}
ANNOTATION_FILTERS: Final = {
    "from",
    "to",
    "userId",
    "alertId",
    "dashboardId",
    "dashboardUID",
    "panelId",
    "limit",
    "tags",
    "type",
    "matchAny",
}
SAVE_FIELDS: Final = {"dashboard", "folderUid", "folderId", "message", "overwrite"}

Body = dict[str, Any]
Answer = tuple[int, object]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that arrived."""

    method: str
    path: str
    body: Body | None


@dataclass
class FakeGrafana:
    """What it stores, and what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    folders: dict[str, Body] = field(default_factory=dict)
    data_sources: dict[str, Body] = field(default_factory=dict)
    dashboards: dict[str, Body] = field(default_factory=dict)
    annotations: list[Body] = field(default_factory=list)

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(request.method, request.path) for request in self.requests if request.method != "GET"]

    def answer(self, request: Request, headers: Message) -> Answer:
        self.requests.append(request)
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        for method, pattern, call in self._calls:
            if method == request.method and (match := re.fullmatch(pattern, request.path)):
                return call(request.body or {}, *match.groups())
        return 404, {"message": f"no such call: {request.method} {request.path}"}

    @property
    def _calls(self) -> tuple[tuple[str, str, Callable[..., Answer]], ...]:
        return (
            ("GET", "/api/folders/([^/]+)", lambda _, uid: _stored(self.folders, uid, "folder not found")),
            ("POST", "/api/folders", self._create_folder),
            ("GET", "/api/datasources/uid/([^/]+)", lambda _, uid: _stored(self.data_sources, uid, "Data source not found")),
            ("POST", "/api/datasources", self._create_data_source),
            ("PUT", "/api/datasources/uid/([^/]+)", self._update_data_source),
            ("GET", "/api/dashboards/uid/([^/]+)", lambda _, uid: _stored(self.dashboards, uid, "Dashboard not found")),
            ("POST", "/api/dashboards/db", self._save_dashboard),
            ("GET", r"/api/annotations\?(.*)", self._find_annotations),
            ("POST", "/api/annotations", self._create_annotation),
        )

    def _find_annotations(self, _: Body, query: str) -> Answer:
        asked = parse_qs(query, strict_parsing=True)
        if unknown := asked.keys() - ANNOTATION_FILTERS:
            return 400, {"message": f"unknown filters {sorted(unknown)}"}
        start_ms, end_ms = int(asked["from"][0]), int(asked["to"][0])
        found = [
            one
            for one in self.annotations
            if set(asked["tags"]) <= set(one["tags"]) and one["time"] <= end_ms and one["timeEnd"] >= start_ms
        ]
        newest_first = sorted(found, key=lambda one: -int(one["timeEnd"]))
        return 200, newest_first[: int(asked.get("limit", ["100"])[0])]

    def _create_annotation(self, body: Body) -> Answer:
        if problem := _problem(body, ANNOTATION_FIELDS, {"text"}):
            return 400, {"message": problem}
        number = len(self.annotations) + 1
        given = {name: value for name, value in body.items() if value is not None}
        defaults: Body = {"dashboardId": 0, "dashboardUID": "", "panelId": 0, "alertId": 0, "timeEnd": body.get("time"), "tags": []}
        self.annotations.append({**defaults, **given, "id": number})
        return 200, {"message": "Annotation added", "id": number}

    def _create_folder(self, body: Body) -> Answer:
        if problem := _problem(body, FOLDER_FIELDS, {"title"}):
            return 400, {"message": problem}
        if body["uid"] in self.folders:
            return 409, {"message": "a folder with the same uid already exists"}
        self.folders[body["uid"]] = {**body, "id": len(self.folders) + 1, "version": 1, "canSave": True}
        return 200, self.folders[body["uid"]]

    def _create_data_source(self, body: Body) -> Answer:
        if problem := _problem(body, DATA_SOURCE_FIELDS, {"name", "type", "access"}):
            return 400, {"message": problem}
        if any(stored["name"] == body["name"] for stored in self.data_sources.values()):
            return 409, {"message": "data source with the same name already exists"}
        return self._store_data_source(body["uid"], body, len(self.data_sources) + 1, "Datasource added")

    def _update_data_source(self, body: Body, uid: str) -> Answer:
        if problem := _problem(body, DATA_SOURCE_FIELDS, {"name", "type", "access"}):
            return 400, {"message": problem}
        if uid not in self.data_sources:
            return 404, {"message": "Data source not found"}
        return self._store_data_source(uid, body, self.data_sources[uid]["id"], "Datasource updated")

    def _store_data_source(self, uid: str, body: Body, number: int, message: str) -> Answer:
        defaults = {"isDefault": False, "basicAuth": False, "jsonData": {}, "readOnly": False, "orgId": 1, "secureJsonFields": {}}
        self.data_sources[uid] = {**defaults, **body, "id": number, "version": body.get("version", 0) + 1}
        return 200, {"datasource": self.data_sources[uid], "id": number, "message": message, "name": body["name"]}

    def _save_dashboard(self, body: Body) -> Answer:
        if problem := _problem(body, SAVE_FIELDS, {"dashboard"}) or _problem(body["dashboard"], None, {"title"}):
            return 400, {"message": problem}
        uid, stored = body["dashboard"]["uid"], self.dashboards.get(body["dashboard"]["uid"])
        if body.get("folderUid") not in self.folders:
            return 400, {"message": "folder not found"}
        if stored is not None and not body.get("overwrite"):
            return 412, {"message": "A dashboard with the same uid already exists", "status": "name-exists"}
        number = stored["dashboard"]["id"] if stored else len(self.dashboards) + 1
        version = stored["dashboard"]["version"] + 1 if stored else 1
        document = {**body["dashboard"], "id": number, "version": version, "weekStart": ""}
        self.dashboards[uid] = {"dashboard": document, "meta": {"folderUid": body["folderUid"], "isStarred": False, "slug": uid}}
        return 200, {"id": number, "uid": uid, "status": "success", "version": version, "slug": uid, "url": f"/d/{uid}/{uid}"}


@contextmanager
def serving(answer: Callable[[Request, Message], Answer]) -> Iterator[str]:
    """Serve on a free port of this machine; the address."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answered = answer(Request(self.command, self.path, body), self.headers)
            content = answered.encode() if isinstance(answered, str) else json.dumps(answered).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815 - names that the base class calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running_grafana() -> Iterator[FakeGrafana]:
    """A Grafana that holds nothing yet."""
    grafana = FakeGrafana()
    with serving(grafana.answer) as url:
        grafana.url = url
        yield grafana


def _stored(things: dict[str, Body], uid: str, message: str) -> Answer:
    return (200, things[uid]) if uid in things else (404, {"message": message})


def _problem(body: Body, known: set[str] | None, needed: set[str]) -> str:
    if known is not None and body.keys() - known:
        return f"unknown fields {sorted(body.keys() - known)}"
    if missing := {name for name in needed if not body.get(name)}:
        return f"missing fields {sorted(missing)}"
    return f"uid is longer than {MAX_UID}" if len(str(body.get("uid", ""))) > MAX_UID else ""
