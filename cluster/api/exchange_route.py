"""Reports over HTTP: the policy's side of the exchange with servers that know it by an address (exchange_client.py is theirs).

`POST /exchange` carries what the actor's call carries: a LoadReport up, an ExchangeReply down, each as its msgpack, and the answer
waits for news as long as there. `GET /exchange` tells the mode in which an engine starts. Both ask for a token of their own before
they look at anything else. A process holds a bounded number of calls; the next one is told to come again. Whatever is refused is
one line of `detail` and changes nothing: 401 and 403 the token, 413, 415 and 422 the body, 503 no room, or no policy.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr

from nightjar.cluster.api.access import require_reporter
from nightjar.cluster.api.exchange_client import MEDIA_TYPE, PATH
from nightjar.cluster.api.operations import STARTING_MODE, OperationError, refused
from nightjar.cluster.api.policy_api import Policy, read_body
from nightjar.policy.wire.record import MAX_RECORD_BYTES, WireError

MOST_CALLS: Final = 2000
"""Parked calls of one process: twice the replicas that one policy carries at its default periods (docs/scale.md)."""
COME_AGAIN_S: Final = 5
LOG_PERIOD_S: Final = 60.0
"""Between two lines that say that there is no room."""

Exchange = Callable[[bytes], Awaitable[bytes]]
"""Report in, reply out. Raises WireError for bytes that are no report, OperationError 503 where the policy does not answer."""

log = structlog.get_logger(__name__)


def add_exchange(
    api: FastAPI,
    policy: Policy,
    exchange: Exchange,
    token: Callable[[], SecretStr | None],
    *,
    is_open: bool = False,
    most_calls: int = MOST_CALLS,
) -> None:
    """Put both routes into the policy's API. `token` is called on each request; where `is_open`, it may give none."""
    calls, told_s = 0, float("-inf")

    def may_report(request: Request) -> None:
        require_reporter(request.headers.get("Authorization", ""), token, is_open=is_open)

    async def take(request: Request) -> Response:
        """Take a server's report and answer with the settings that are news to it, or without any after its period.

        The body is a LoadReport, the answer an ExchangeReply, each as msgpack (`policy/wire/`): what `nightjar serve` sends.
        """
        nonlocal calls, told_s
        may_report(request)
        if calls >= most_calls:
            now_s = asyncio.get_running_loop().time()
            if now_s >= told_s + LOG_PERIOD_S:
                told_s = now_s
                log.warning("exchange_full", calls=calls, consequence="further servers keep their settings and come again")
            return _full(most_calls)
        calls += 1
        try:
            return Response(await exchange(await _report(request)), media_type=MEDIA_TYPE)
        except WireError as error:
            raise refused(f"body: {error}") from error
        finally:
            calls -= 1

    async def starting_mode(request: Request) -> Response:
        """The mode that a server of this `replica` and `application` gets if it starts now: `{"mode": "auto"}`."""
        may_report(request)
        asked = request.query_params
        return JSONResponse({"mode": await policy.call(STARTING_MODE, asked.get("replica", ""), asked.get("application", ""))})

    api.add_api_route(PATH, take, methods=["POST"], response_class=Response)
    api.add_api_route(PATH, starting_mode, methods=["GET"], response_class=Response)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server that listens at `host`.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "policy.example")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _report(request: Request) -> bytes:
    sent = request.headers.get("Content-Type", "")
    if sent != MEDIA_TYPE:
        raise OperationError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type: {sent[:80]!r}, a report is {MEDIA_TYPE}")
    return await read_body(request, MAX_RECORD_BYTES)


def _full(most_calls: int) -> Response:
    detail = f"this policy holds {most_calls} calls, which is all it holds; keep your settings and come again in {COME_AGAIN_S} s"
    return JSONResponse({"detail": detail}, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(COME_AGAIN_S)})
