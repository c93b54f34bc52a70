"""The edge to Grafana's HTTP API, over the grafana-api library: a URL and a token in, records or one clear line out.

Fails as `GrafanaError`, whose message is what the operator reads. Data sources are addressed by uid through the library's session:
its own calls use numeric ids, which Grafana deprecated in 9.0 and turned off in 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit

from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace
from pydantic import SecretStr

from nightjar.cluster.api.http_client import LOOPBACK_HOSTS
from nightjar.cluster.dashboards.panels import Json

TIMEOUT_S: Final = 10.0
MOST_ANNOTATIONS: Final = 50_000
"""Asked for at once; Grafana gives 100 unless told."""


class GrafanaError(Exception):
    """A call that did not do what it should. The message is one line for the operator."""


class GrafanaServer:
    """A Grafana behind `url`, a path included if it is served under one. Fulfils provisioning.Grafana."""

    def __init__(self, url: str, token: SecretStr, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        parts = checked_address("--url", self._url)
        self._face = GrafanaFace(
            auth=token.get_secret_value(),
            host=parts.netloc,
            protocol=parts.scheme,
            url_path_prefix=f"{parts.path.lstrip('/')}/" if parts.path.strip("/") else "",
            timeout=timeout_s,
        )
        self._face.api.s.trust_env = parts.hostname not in LOOPBACK_HOSTS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._face.api.s.close()

    def folder(self, uid: str) -> Json | None:
        """See provisioning.Grafana."""
        return self._found(lambda: self._face.folder.get_folder(uid))

    def create_folder(self, uid: str, title: str) -> None:
        """See provisioning.Grafana."""
        self._call(lambda: self._face.folder.create_folder(title, uid))

    def data_source(self, uid: str) -> Json | None:
        """See provisioning.Grafana."""
        return self._found(lambda: self._face.api.GET(f"/datasources/uid/{uid}"))

    def create_data_source(self, data_source: Json) -> None:
        """See provisioning.Grafana."""
        self._call(lambda: self._face.datasource.create_datasource(data_source))

    def update_data_source(self, uid: str, data_source: Json) -> None:
        """See provisioning.Grafana."""
        self._call(lambda: self._face.api.PUT(f"/datasources/uid/{uid}", json=data_source))

    def dashboard(self, uid: str) -> Json | None:
        """See provisioning.Grafana."""
        return self._found(lambda: self._face.dashboard.get_dashboard(uid))

    def save_dashboard(self, request: Json) -> None:
        """See provisioning.Grafana."""
        self._call(lambda: self._face.dashboard.update_dashboard(request))

    def annotations(self, start_ms: int, end_ms: int, tag: str) -> Sequence[Json]:
        """See provisioning.Grafana."""
        answer = self._answer(lambda: self._face.annotations.get_annotation(start_ms, end_ms, tags=[tag], limit=MOST_ANNOTATIONS))
        if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
            raise GrafanaError(f"{self._url}: the answer is no list of annotations; is this Grafana?")
        if len(answer) >= MOST_ANNOTATIONS:
            raise GrafanaError(f"{self._url}: holds {MOST_ANNOTATIONS} annotations or more of this time; delete some, or give less")
        return answer

    def add_annotation(self, start_ms: int, end_ms: int, tags: Sequence[str], text: str) -> None:
        """See provisioning.Grafana."""
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
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.username is None and parts.port != 0:
            return parts
    except ValueError:
        pass
    shown = url.rpartition("@")[2]
    raise GrafanaError(f"{option}: {shown!r} is not an address such as https://grafana.example.com, without user and password")


class _NotFoundError(GrafanaError):
    """The answer was 404."""


def _refusal(status_code: int, answer: object) -> str:
    said = str(answer.get("message") or "") if isinstance(answer, dict) else str(answer)
    hint = {401: "the token is none that this Grafana knows", 403: "the token's role may not do this"}
    words = [" ".join(said.split())[:200], hint.get(status_code, "")]
    return f"{': '.join(filter(None, words)) or 'refused'} (HTTP {status_code})"
