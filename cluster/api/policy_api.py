"""The operator's HTTP API as a plain ASGI app: what the fleet does, and the mode that an operator wants.

Its routes are those of operations.py. It knows the policy actor only as a `Policy`, so that it is tested without Ray, and it
decides nothing: whether a mode can be set is the actor's word. Reading is open to whoever reaches the service, unless readers
need a token: as a bearer, or as the password that a browser asks for. `GET /health` is always open and says nothing but whether the
actor answers. Writing needs the bearer token; without one configured the API is read-only. A token is looked at before anything
else.

Whoever asks how often, the actor is asked for its health and its status once a second at most: its one thread decides, and a write
waits behind what it is asked. Fails with one line of `detail`: 401 wrong token, 403 read-only or closed, 404 no such replica, 413
and 422 a bad body (field, value, what is allowed), 503 where the actor does not answer (serving goes on); never with another 5xx,
whatever is sent.

Its page shows what `GET status` gives, and can do nothing else. Replica ids and reasons are untrusted; the page shows them as
text, and should it ever fail to, the Content-Security-Policy still lets no script or style run but the file's own, named by their
hashes, and nothing speak to another origin. A page that is missing, or holds not exactly one style and one script, fails at import.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from nightjar.cluster.api.access import require_reader, require_writer
from nightjar.cluster.api.operations import OPERATIONS, STARTING_MODE, STATUS, Answer, Operation, OperationError, P, Route, refused
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES

MAX_BODY_BYTES: Final = 16_384
MAX_BODY_DEPTH: Final = 8
"""Of objects and lists within each other. What is deeper cannot be handed to the actor's process."""
KEPT_S: Final = 1.0
"""How long an answer of health or status is given again before the actor is asked anew."""
STALE_S: Final = 10.0
"""How old an answer may be that is given while a new one is under way: readers who wait would be in a write's way."""
PAGE: Final = (Path(__file__).parent / "page" / "index.html").read_text(encoding="utf-8")
EXAMPLE_BODY: Final = '{"mode": "auto"}'


T = TypeVar("T")


class Policy(Protocol):
    """What does operations: the actor's client (client.py), or the service itself (policy_service.py)."""

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        """Raises OperationError, with code 503 where the actor does not answer."""
        ...


def create_policy_api(
    policy: Policy, token: Callable[[], SecretStr | None], readers: Callable[[], tuple[SecretStr, ...] | None] = lambda: None
) -> FastAPI:
    """The API. `token` is called on every write, `readers` on every read (None: anybody may).

    Either may raise TokenError, which leaves the API read-only, or closed.
    """
    api = FastAPI(title="Nightjar policy", openapi_url=None, redirect_slashes=False)  # whose query may be no text
    health, status = Kept(lambda: policy.call(STARTING_MODE, "", "")), Kept(lambda: _body(policy, STATUS))

    async def may_read(request: Request) -> None:
        require_reader(request.headers.get("Authorization", ""), readers)

    async def may_write(request: Request) -> None:
        require_writer(request.headers.get("Authorization", ""), token)

    for path in ("/", ""):  # behind a route prefix also without the slash
        api.add_api_route(path, status_page, methods=["GET"], response_class=Response, dependencies=[Depends(may_read)])

    @api.get("/health")
    async def is_healthy() -> JSONResponse:
        """Whether the policy actor answers, and no more: `{"policy": "answers"}`.

        The answer may be a second old, or ten while the actor is busy.
        """
        await health()
        return JSONResponse({"policy": "answers"})

    for operation in OPERATIONS:
        if (route := operation.route) is not None:
            api.add_api_route(
                route.path,
                _endpoint(policy, operation, route, status),
                methods=[route.method],
                name=operation.name,
                description=cleandoc(route.description or ""),
                dependencies=[Depends(may_read if route.method == "GET" else may_write)],
                openapi_extra={"parameters": [route.query.described()] if route.query and route.query.description else []},
            )
    _answer_errors(api)
    return api


def _endpoint(
    policy: Policy, operation: Operation[..., Any], route: Route, kept_status: Kept[bytes]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if operation is STATUS:
            return Response(await kept_status(), media_type="application/json")
        arguments = await _arguments(request, route)
        try:
            return Response(await _body(policy, operation, *arguments), media_type="application/json")
        finally:
            if route.method == "POST":  # no status from before it is given again
                kept_status.forget()

    return endpoint


async def _arguments(request: Request, route: Route) -> list[object]:
    """What was sent, in the order of the operation's arguments. Raises OperationError."""
    arguments: list[object] = []
    if route.body == "object":
        arguments.append(await read_object(request))
    elif route.body == "file":
        arguments.append(await read_body(request, MAX_FILE_BYTES))
    if route.query is not None:
        query, name = request.query_params, route.query.name
        arguments.append(query.getlist(name) if route.query.is_list else query.get(name, ""))
    return arguments


async def _body(policy: Policy, operation: Operation[..., Any], *arguments: object) -> bytes:
    return operation.to_body(await policy.call(operation, *arguments))


class Kept(Generic[T]):
    """What `ask` answers or raises, asked once for all who want it, at most every KEPT_S.

    Who asks while a new answer has been under way for KEPT_S gets the one before, up to STALE_S old, and waits on only where there
    is none. On the event loop's clock. A caller that hangs up ends nothing for the others.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking: asyncio.Future[T] | None = None
        self._asked_at_s = 0.0
        self._answered: asyncio.Future[T] | None = None
        self._answered_at_s = 0.0

    async def __call__(self) -> T:
        """The answer, or what was raised."""
        loop = asyncio.get_running_loop()
        if self._asking is None and self._answered is not None and loop.time() < self._answered_at_s + KEPT_S:
            return self._answered.result()
        if self._asking is None:
            self._asking, self._asked_at_s = asyncio.ensure_future(self._ask()), loop.time()
            self._asking.add_done_callback(self._note_end)
        asking = self._asking
        await asyncio.wait({asking}, timeout=max(self._asked_at_s + KEPT_S - loop.time(), 0.0))
        if not asking.done() and self._answered is not None and loop.time() < self._answered_at_s + STALE_S:
            return self._answered.result()
        return await asyncio.shield(asking)

    def forget(self) -> None:
        """The next one who wants it asks anew: what is known, or under way, may be from before a change."""
        self._asking = self._answered = None

    def _note_end(self, asked: asyncio.Future[T]) -> None:
        if not asked.cancelled():
            asked.exception()  # nobody may be left to look at it
        if asked is self._asking:
            self._asking, self._answered = None, None if asked.cancelled() else asked
            self._answered_at_s = asked.get_loop().time()


def _answer_errors(api: FastAPI) -> None:
    @api.exception_handler(OperationError)
    async def answer_error(request: Request, error: OperationError) -> JSONResponse:
        words, headers = str(error), dict[str, str]()
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            words = f"the policy actor does not answer ({error}); replicas keep serving with their last settings, try again"
            headers["Retry-After"] = "2"
        elif error.code == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Basic realm="nightjar", charset="UTF-8", Bearer' if request.method == "GET" else "Bearer"
        detail = words.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be sent
        return JSONResponse({"detail": detail}, status_code=error.code, headers=headers)

    @api.exception_handler(ClientDisconnect)
    async def answer_nobody(_: Request, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"detail": "body: the client hung up before its end"}, status_code=400)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body. Raises OperationError 413 as soon as it is longer than `most_bytes`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise OperationError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: more than the {most_bytes} bytes allowed")
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises OperationError: 413 as soon as it is longer than MAX_BODY_BYTES, 422 if it is none, or deeper than MAX_BODY_DEPTH.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refused(f"body: not JSON ({error}); expected an object such as {EXAMPLE_BODY}") from error
    if not isinstance(values, dict):
        raise refused(f"body: {type(values).__name__} (value {body[:80].decode(errors='replace')!r}), expected an object")
    if _is_deeper(values, MAX_BODY_DEPTH):
        raise refused(f"body: objects within more than {MAX_BODY_DEPTH} others, allowed are at most {MAX_BODY_DEPTH}")
    return values


def _is_deeper(value: object, most: int) -> bool:
    """Whether there are more than `most` objects and lists within each other. Without recursion: `value` is untrusted.

    >>> _is_deeper({"a": [1]}, 2), _is_deeper({"a": [{}]}, 2)
    (False, True)
    """
    level: list[object] = [value]
    for _ in range(most):
        level = [inner for one in level for inner in _inside(one)]
    return any(isinstance(one, dict | list) for one in level)


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


async def status_page() -> Response:
    """The operator's page: what status shows, live in a browser."""
    return Response(PAGE, media_type="text/html", headers=HEADERS)


def security_policy(page: str) -> str:
    """The Content-Security-Policy under which `page` runs its own style and script and nothing else.

    Raises ValueError where it does not hold exactly one of each.

    >>> security_policy("<style></style><script>").partition(";")
    Traceback (most recent call last):
        ...
    ValueError: the page holds 0 <script> elements, exactly one is allowed
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(page, 'script')}",
            f"style-src {_source(page, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _source(page: str, element: str) -> str:
    contents = re.findall(f"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
    if len(contents) != 1:
        raise ValueError(f"the page holds {len(contents)} <{element}> elements, exactly one is allowed")
    digest = hashlib.sha256(contents[0].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": security_policy(PAGE),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
