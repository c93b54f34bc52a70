"""Reports over HTTP: the side of a server whose policy runs elsewhere (exchange_route.py is the policy's).

One connection that is kept, one call at a time. Fails as `OperationError`, soon and in words, whatever the other end does: nobody
there, no answer in time, a refusal, an answer that is none. Nothing is sent past a redirect or through a proxy, which would read
the token. The token is read at the first call, and anew after one that was refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import httpx
from pydantic import SecretStr

from nightjar.cluster.api.access import EXCHANGE_TOKEN_VARIABLE, TokenError, exchange_token
from nightjar.cluster.api.http_client import ROUTE_PREFIX, address_of, refusal
from nightjar.cluster.api.operations import OperationError
from nightjar.policy.wire.record import MAX_RECORD_BYTES, WireError, without_credentials
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply

PATH: Final = "/exchange"
"""Below the policy's prefix."""
MEDIA_TYPE: Final = "application/msgpack"
"""No page of a browser sends it to another site unasked, so that none reports to a policy on its own machine."""
CONNECT_TIMEOUT_S: Final = 5.0
TOKEN_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


def check_address(url: str) -> None:
    """Raises OperationError for what is no address of a policy, or holds a password: a token comes from the environment."""
    if address_of(url).username is not None:
        words = f"url: {without_credentials(url)}: no user and password here, the token is that of {EXCHANGE_TOKEN_VARIABLE}"
        raise OperationError(HTTPStatus.BAD_REQUEST, words)


class HttpPolicy:
    """The policy behind `url`, for one event loop. Every call raises OperationError, and nothing else, where it fails.

    Making one raises OperationError as `check_address` does.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Callable[[], SecretStr | None] = exchange_token,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_address(url)
        self._url = url.rstrip("/")  # as messages show it
        self._address = f"{self._url}{ROUTE_PREFIX}{PATH}"
        self._token = token
        self._headers: dict[str, str] | None = None
        self._client = httpx.AsyncClient(
            # with a transport of its own httpx takes no proxy from the environment
            transport=transport or httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None)),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            headers={"Accept-Encoding": "identity"},  # what is packed small may be large
        )

    def start(self) -> None:
        """Nothing: the policy runs already."""

    def stop(self) -> None:
        """Nothing: the connection ends with this process."""

    async def close(self) -> None:
        """Hang up, where the process goes on."""
        await self._client.aclose()

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news. The policy parks the call for up to `exchange_period_s`: `timeout_s` must be well above."""
        body = await self._send("POST", timeout_s, {"Content-Type": MEDIA_TYPE}, content=report.to_wire())
        try:
            return ExchangeReply.from_wire(body)
        except WireError as error:
            raise self._something_else(error) from error

    async def starting_mode(self, replica_id: str, application: str, timeout_s: float) -> str:
        """The mode that a replica gets that starts now."""
        body = await self._send("GET", timeout_s, {}, params={"replica": replica_id, "application": application})
        try:
            return str(json.loads(body)["mode"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._something_else(error) from error

    async def _send(self, method: str, timeout_s: float, headers: Mapping[str, str], **request: Any) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                code, body = await self._answer(method, {**headers, **self._credentials()}, request)
        except TimeoutError as error:
            raise OperationError(HTTPStatus.GATEWAY_TIMEOUT, f"{self._url} did not answer within {timeout_s:g} s") from error
        except TokenError as error:
            raise OperationError(HTTPStatus.UNAUTHORIZED, str(error)) from error
        except Exception as error:
            words = f"nothing answers at {self._url} ({type(error).__name__}: {error})"
            raise OperationError(HTTPStatus.SERVICE_UNAVAILABLE, words) from error
        if code in TOKEN_REFUSED:
            self._headers = None
        if code == HTTPStatus.NOT_FOUND:
            raise OperationError(code, f"{self._address} answered 404: no policy there takes reports")
        if code != HTTPStatus.OK:
            raise OperationError(code, f"{self._url}: {refusal(self._address, code, body)}")
        return body

    async def _answer(self, method: str, headers: Mapping[str, str], request: Mapping[str, Any]) -> tuple[int, bytes]:
        body = bytearray()
        async with self._client.stream(method, self._address, headers=headers, **request) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_RECORD_BYTES:
                    break
        return response.status_code, bytes(body)

    def _credentials(self) -> dict[str, str]:
        if self._headers is None:
            token = self._token()
            self._headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        return self._headers

    def _something_else(self, error: Exception) -> OperationError:
        return OperationError(HTTPStatus.BAD_GATEWAY, f"{self._url} answered with something else: {error}")
