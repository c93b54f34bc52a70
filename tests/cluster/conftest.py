"""What tests of the commands share: an environment of their own, and answers in place of the network."""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
import pytest

from tests.cluster import protocol
from tests.cluster.over_http import over_http

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests, and lines that do not break."""
    for name in list(os.environ):
        if name.startswith("NIGHTJAR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(params=["actor", "http"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas reach a `running_service` as the actor's do, and over HTTP."""
    monkeypatch.setattr(protocol, "each_way", {"actor": protocol.directly, "http": over_http}[request.param])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], list[httpx.Request]]:
    """Lets the command talk to a handler instead of the network; returns the requests it will have sent."""

    def install(handler: Handler) -> list[httpx.Request]:
        requests: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            return handler(request)

        client_class = httpx.Client
        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(httpx, "Client", lambda **options: client_class(**{**options, "transport": transport}))
        return requests

    return install
