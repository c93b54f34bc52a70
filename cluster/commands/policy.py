"""`nightjar policy`: one policy for several servers of `nightjar serve`, as a process of its own, where there is no Ray.

The service of the policy actor on one event loop; its API, page and metrics on one port, and `/nightjar/exchange`, to which the
servers report. Requests to models never come here. It holds its state folder: where another process does, it waits for
TAKE_WITHIN_S, since that one may be about to end, and then ends in words. One that finds its folder taken grants no restarts from
then on, and ends. Fails closed on what is wrong with its options, before anything starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr

from nightjar.cluster.api.access import EXCHANGE_TOKEN_VARIABLE, TokenError, configured_token, exchange_token, reader_tokens
from nightjar.cluster.api.exchange_route import MOST_CALLS, add_exchange, is_loopback
from nightjar.cluster.api.http_client import ROUTE_PREFIX
from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.cluster.commands.options import fail, settings_of
from nightjar.cluster.service.folder_policy import begun_policy
from nightjar.cluster.service.garbage import collect_seldom
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.state_folder import StateFolder, StateFolderError
from nightjar.cluster.telemetry.logs import log_plain_tracebacks
from nightjar.cluster.telemetry.prometheus import PrometheusPage
from nightjar.policy.wire.operator import SettingsError

DEFAULT_PORT: Final = 8470
TAKE_WITHIN_S: Final = 30.0
"""As long as Kubernetes lets a pod end."""
TAKE_PERIOD_S: Final = 0.5
KEPT_OPEN_S: Final = 30
"""A connection between two reports: longer than a server keeps it (httpx: 5 s), so that none reports into one that is closed."""
ANSWERED_WITHIN_S: Final = 2
"""Parked calls at the end of this process."""
OTHER_FILES: Final = 200
"""Which a process has open beside the connections of servers: readers', journal, state."""

log = structlog.get_logger(__name__)

app = typer.Typer()


@app.command()
def policy(
    state: Annotated[
        Path,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Where it keeps what it learned and what was set by hand; in a pod, a volume.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option("--host", help=f"Address to listen on; beyond this machine it needs {EXCHANGE_TOKEN_VARIABLE}.")
    ] = "127.0.0.1",
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings", metavar="FILE", help="YAML with settings, as in a Serve file's user_config.", show_default="mode: shadow"
        ),
    ] = None,
) -> None:
    """Run one policy for all servers that are started with `nightjar serve --nightjar-policy http://HOST:PORT`. Needs no Ray.

    They learn together and share its budget of restarts, and serve on without it. `status`, `watch`, `mode`, `explain` and the page
    find it at its address, Prometheus at /metrics. One process holds DIR: a second one waits half a minute for it, then ends.
    """
    try:
        values = settings_of("--settings", settings) if settings is not None else {}
        if exchange_token() is None and not is_loopback(host):
            fail(f"--host {host}: whoever reaches it could report; set {EXCHANGE_TOKEN_VARIABLE} (or ..._FILE) here and there")
        log_plain_tracebacks()
        lost = asyncio.run(serve(state, values, host, port))
    except (SettingsError, TokenError, StateFolderError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"--host {host} --port {port}: cannot listen there ({error})")
    if lost:
        fail(lost)


async def serve(folder: Path, settings: Mapping[str, object], host: str, port: int) -> str:
    """Until a signal; or why another policy holds the folder. Raises StateFolderError, and OSError for an address."""
    store = await taken(folder)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(address[:2], family=family, backlog=MOST_CALLS)
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    collect_seldom()
    service = await begun_policy(store, settings, PrometheusPage().host({}), lost=lost.set_result)
    application = policy_application(service, exchange_token, is_open=is_loopback(host), most_calls=_room())

    @contextlib.asynccontextmanager
    async def until_the_end(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()
        await service.save()

    application.router.lifespan_context = until_the_end
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_keep_alive=KEPT_OPEN_S,
            timeout_graceful_shutdown=ANSWERED_WITHIN_S,
        )
    )
    lost.add_done_callback(lambda _: setattr(server, "should_exit", True))
    log.info("policy_serves", host=host, port=port, state=str(store.path))
    await server.serve(sockets=[listening])
    return lost.result() if lost.done() else ""


async def taken(folder: Path) -> StateFolder:
    """The folder, once no other process holds it. Raises StateFolderError where one does for TAKE_WITHIN_S."""
    loop, is_said = asyncio.get_running_loop(), False
    ends_s = loop.time() + TAKE_WITHIN_S
    while True:
        try:
            return StateFolder.take(folder)
        except StateFolderError as error:
            if not error.is_held or loop.time() >= ends_s:
                raise
            if not is_said:
                log.warning("state_folder_held", reason=str(error), waits_s=TAKE_WITHIN_S)
            is_said = True
        await asyncio.sleep(TAKE_PERIOD_S)


def policy_application(
    service: PolicyService, token: Callable[[], SecretStr | None], *, is_open: bool, most_calls: int = MOST_CALLS
) -> FastAPI:
    """All that answers on the port: the policy's API with the exchange, and its metrics."""

    async def exchange(payload: bytes) -> bytes:
        return (await service.exchange_report(payload)).to_wire()

    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    api = create_policy_api(service, configured_token, reader_tokens)
    add_exchange(api, service, exchange, token, is_open=is_open, most_calls=most_calls)
    whole = FastAPI(openapi_url=None)
    whole.add_api_route("/metrics", metrics, response_class=Response)
    whole.mount(ROUTE_PREFIX, api)
    return whole


def _room() -> int:
    """How many calls may be parked here: MOST_CALLS, or less where the system lets this process open fewer files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CALLS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most_calls = MOST_CALLS if soft == resource.RLIM_INFINITY else min(MOST_CALLS, soft - OTHER_FILES)
    if most_calls < MOST_CALLS:
        log.warning("few_files", limit=soft, consequence=f"{most_calls} servers may report, not {MOST_CALLS}")
    return most_calls
