"""Nightjar's HTTP API as the load room uses it: read the fleet's status, set a mode, take out and put back what was learned.

Fails with ServiceError, one line that says what was asked and what came back; nothing is retried here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx
from pydantic import ValidationError

from nightjar.policy.wire.record import describe_validation_error
from nightjar.policy.wire.status import FleetStatus

TIMEOUT_S: Final = 5.0


class ServiceError(Exception):
    """The API did not answer as it should."""


@dataclass(frozen=True, slots=True)
class ServiceApi:
    """A running system's API. Close it, or use it as a context."""

    client: httpx.Client

    @classmethod
    def at(cls, url: str, token: str) -> Self:
        """The API at `url`, writing with `token`. Proxies of the environment are not used."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return cls(httpx.Client(base_url=f"{url}/nightjar", headers=headers, timeout=TIMEOUT_S, trust_env=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()

    def status(self) -> FleetStatus:
        """What `GET /nightjar/status` says now. Raises ServiceError."""
        response = self._send("GET", "/status")
        try:
            return FleetStatus.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(f"GET /nightjar/status did not answer with a status: {describe_validation_error(error)}") from error

    def send_mode(self, request: Mapping[str, Any]) -> None:
        """The body of POST /nightjar/mode as it is. Raises ServiceError."""
        self._send("POST", "/mode", json=dict(request))

    def learned(self) -> bytes:
        """What the fleet has learned, as a file. Raises ServiceError."""
        return self._send("GET", "/learned").content

    def import_learned(self, content: bytes) -> None:
        """Give the fleet what such a file holds. Raises ServiceError."""
        self._send("POST", "/learned", content=content)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self.client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ServiceError(f"{method} /nightjar{path}: {type(error).__name__} {error}".rstrip()) from error
        if response.is_error:
            raise ServiceError(f"{method} /nightjar{path}: HTTP {response.status_code} {response.text[:200]}")
        return response
