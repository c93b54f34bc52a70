"""Nightjar's HTTP API as the load room calls it: the command line's client, without proxies and with less patience."""

from __future__ import annotations

from typing import Final

import httpx
from pydantic import SecretStr

from nightjar.cluster.http_client import HttpClient

TIMEOUT_S: Final = 5.0


def service_api(url: str, token: str) -> HttpClient:
    """The API of a running system, writing with `token`. Close it, or use it as a context. Raises OperationError."""
    transport = httpx.HTTPTransport()  # of its own: httpx then takes no proxy from the environment
    return HttpClient(url, token=SecretStr(token) if token else None, timeout_s=TIMEOUT_S, transport=transport)
