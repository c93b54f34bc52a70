"""A policy service whose replicas reach it over HTTP: the real client, the real routes, and no network between them."""

from __future__ import annotations

from typing import Any, cast

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.cluster.commands.policy import policy_application
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply

URL = "http://policy.example:8470"
TOKEN = SecretStr("s3cret")
EXCHANGE_TIMEOUT_S = 30.0


class _OverHttp:
    """Everything but `exchange` is the service's own."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service
        self._client = client_of(service)

    async def exchange(self, payload: bytes) -> ExchangeReply:
        return await self._client.exchange(LoadReport.from_wire(payload), EXCHANGE_TIMEOUT_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


def client_of(service: PolicyService, token: SecretStr | None = TOKEN) -> HttpPolicy:
    """What a server with this token has."""
    return HttpPolicy(URL, token=lambda: token, transport=httpx.ASGITransport(application_of(service)))


def application_of(service: PolicyService, token: SecretStr = TOKEN) -> FastAPI:
    """What answers at the address of a policy with this token."""
    return policy_application(service, lambda: token, is_open=False)


def over_http(service: PolicyService) -> PolicyService:
    """See protocol.Reached."""
    return cast("PolicyService", _OverHttp(service))
