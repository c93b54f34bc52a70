"""The operator's HTTP API as a plain ASGI app: what the fleet does, and the mode that an operator wants.

It knows the policy actor only through `PolicyPort`, so that it is tested without Ray, and it decides nothing: whether a
mode can be set is the actor's word. Reading is open to whoever reaches the service, unless readers need a token: as a bearer, or as
the password that a browser asks for. `GET /health` is always open and says nothing but whether the actor answers. Writing needs the
bearer token; without one configured the API is read-only. A token is looked at before anything else.

Whoever asks how often, the actor is asked for its health and its status once a second at most: its one thread decides, and a write
waits behind what it is asked. Fails with one line of `detail`: 401 wrong token, 403 read-only or closed, 404 no such replica, 413
and 422 a bad body (field, value, what is allowed), 503 where the actor does not answer (serving goes on); never with another 5xx,
whatever is sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from nightjar.cluster.api_token import READ_TOKEN_VARIABLE, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, TokenError, is_token
from nightjar.cluster.learned_file import MAX_FILE_BYTES
from nightjar.cluster.status_page import status_page
from nightjar.policy.wire.status import FleetStatus

MAX_BODY_BYTES: Final = 16_384
MAX_BODY_DEPTH: Final = 8
"""Of objects and lists within each other. What is deeper cannot be handed to the actor's process."""
KEPT_S: Final = 1.0
"""How long an answer of health or status is given again before the actor is asked anew."""
STALE_S: Final = 10.0
"""How old an answer may be that is given while a new one is under way: readers who wait would be in a write's way."""
REPLICA_WORDS: Final = "A replica's id as in status, or a part of it that no other has."
EXAMPLE_BODY: Final = '{"mode": "auto"}'


T = TypeVar("T")


class PolicyUnreachableError(Exception):
    """The policy actor did not answer; the message says how the attempt ended."""


class PolicyPort(Protocol):
    """What the API needs of the policy. Every method raises PolicyUnreachableError where the actor does not answer."""

    async def ping(self) -> None:
        """Returns where the actor answers. Costs it nothing."""
        ...

    async def status(self) -> FleetStatus:
        """The fleet as the policy sees it. Costs it a tenth of a second for 1,000 replicas."""
        ...

    async def explain(self, replica: str) -> Mapping[str, object]:
        """Why one replica's K is what it is, under `explanation`; no replica of that name is answered under `error`."""
        ...

    async def set_mode(self, override: Mapping[str, object]) -> Mapping[str, object]:
        """Set or take back an override: {mode, scope, name, for_s, reason}. A refusal is answered under `error`."""
        ...

    async def freeze(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Begin, prolong or end a freeze: {frozen, for_s, reason}. A refusal is answered under `error`."""
        ...

    async def canary(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Begin, end or promote a canary (canarying.CanaryRequest). A refusal is answered under `error`."""
        ...

    async def learned(self) -> bytes:
        """What the fleet has learned, as a file (learned_file.py)."""
        ...

    async def import_learned(self, content: bytes, group_ids: Sequence[str]) -> Mapping[str, object]:
        """Give the fleet the groups of such a file, or those named. A refusal is answered under `error`."""
        ...


class ApiError(Exception):
    """An answer other than success: HTTP status and one line for the operator."""

    def __init__(self, status_code: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.detail = detail
        self.headers = headers


def anybody() -> None:
    """Readers who need no token."""
    return


def create_policy_api(
    policy: PolicyPort, token: Callable[[], SecretStr | None], readers: Callable[[], tuple[SecretStr, ...] | None] = anybody
) -> FastAPI:
    """The API. `token` is called on every write, `readers` on every read (None: anybody may).

    Either may raise TokenError, which leaves the API read-only, or closed.
    """
    api = FastAPI(title="Nightjar policy", openapi_url=None, redirect_slashes=False)  # whose query may be no text

    health, status = Kept(lambda: _ping(policy)), Kept(lambda: _encoded_status(policy))
    _answer_errors(api)
    _add_reads(api, policy, readers, health, status)
    _add_writes(api, policy, token, status)
    return api


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


async def _ping(policy: PolicyPort) -> None:
    await policy.ping()


async def _encoded_status(policy: PolicyPort) -> bytes:
    return (await policy.status()).model_dump_json(exclude_none=True).encode()


def _answer_errors(api: FastAPI) -> None:
    @api.exception_handler(ApiError)
    async def answer_error(_: Request, error: ApiError) -> JSONResponse:
        detail = error.detail.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be sent
        return JSONResponse({"detail": detail}, status_code=error.status_code, headers=error.headers)

    @api.exception_handler(ClientDisconnect)
    async def answer_nobody(_: Request, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"detail": "body: the client hung up before its end"}, status_code=400)

    @api.exception_handler(PolicyUnreachableError)
    async def answer_unreachable(_: Request, error: PolicyUnreachableError) -> JSONResponse:
        detail = f"the policy actor does not answer ({error}); replicas keep serving with their last settings, try again"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "2"})


def _add_reads(
    api: FastAPI,
    policy: PolicyPort,
    readers: Callable[[], tuple[SecretStr, ...] | None],
    kept_health: Kept[None],
    kept_status: Kept[bytes],
) -> None:
    async def may_read(request: Request) -> None:
        require_reader(request, readers)

    reading = [Depends(may_read)]
    for path in ("/", ""):  # behind a route prefix also without the slash
        api.add_api_route(path, status_page, methods=["GET"], response_class=Response, dependencies=reading)

    @api.get("/health")
    async def health() -> JSONResponse:
        """Whether the policy actor answers, and no more: `{"policy": "answers"}`.

        The answer may be a second old, or ten while the actor is busy.
        """
        await kept_health()
        return JSONResponse({"policy": "answers"})

    @api.get("/status", dependencies=reading)
    async def status() -> Response:
        """The fleet as the policy sees it: what `nightjar status -o json` prints (`policy/wire/status.py`).

        It may be a second old, or ten while the actor is busy, but not older than what was last written.
        """
        return Response(await kept_status(), media_type="application/json")

    @api.get("/explain", dependencies=reading)
    async def explain(replica: Annotated[str, Query(description=REPLICA_WORDS)] = "") -> JSONResponse:
        """Why one replica's K is what it is: what `nightjar explain -o json` prints (`policy/wire/explanation.py`)."""
        return JSONResponse(accepted(await policy.explain(replica), 404).get("explanation"))

    @api.get("/learned", dependencies=reading)
    async def learned() -> Response:
        """What the fleet has learned, as a file that `nightjar import` and `seed_from` take."""
        return Response(await policy.learned(), media_type="application/json")


def _add_writes(api: FastAPI, policy: PolicyPort, token: Callable[[], SecretStr | None], kept_status: Kept[bytes]) -> None:
    async def written(answer: Awaitable[Mapping[str, object]]) -> Mapping[str, object]:
        """The policy's answer to a write, after which no status from before it is given again."""
        try:
            return accepted(await answer, 422)
        finally:
            kept_status.forget()

    @api.post("/mode")
    async def mode(request: Request) -> JSONResponse:
        """Override the mode of the fleet, an application or a replica; what `nightjar mode` sends.

        The body is a JSON object: `mode` (`auto`, `shadow`, `off`, `pin=K`, or `default` to take an override back), and if wanted
        `scope` (`fleet`, `application`, `replica`), `name`, `for_s`, `max_step_ms` and `reason`; for the fleet with `auto` or
        `shadow` also `planner` (who decides in place of the settings' one), and with any mode `learned`: `reset` has every planner
        begin anew, `keep` is the default. The answer holds the `override`, and what it `outlives`: the loss of the `head` node, an
        `upgrade` that runs both clusters.
        """
        require_token(request, token)
        answer = await written(policy.set_mode(await read_object(request)))
        return JSONResponse({name: answer[name] for name in ("override", "outlives") if name in answer})

    @api.post("/freeze")
    async def freeze(request: Request) -> JSONResponse:
        """Freeze the fleet, or end that; what `nightjar freeze` sends.

        The body is a JSON object: `frozen` (true begins or prolongs, false ends), and if wanted `for_s` and `reason`. While it
        lasts there is no new plan, measurement or lease; modes, limits, guard and kill switch act. The answer holds the `freeze`,
        and what it `outlives`, as with a mode.
        """
        require_token(request, token)
        answer = await written(policy.freeze(await read_object(request)))
        return JSONResponse({name: answer[name] for name in ("freeze", "outlives") if name in answer})

    @api.post("/canary")
    async def canary(request: Request) -> JSONResponse:
        """Let some replicas try a mode or settings, end that, or promote it; what `nightjar canary` sends.

        The body is a JSON object: `do` (`begin`, `end`, `promote`), and with `begin` what is tried (`mode`, `max_step_ms`,
        `settings`), by whom (`share`, `application`), and if wanted `for_s`, `block_s` and `reason`. The answer holds the `canary`.
        """
        require_token(request, token)
        answer = await written(policy.canary(await read_object(request)))
        return JSONResponse({"canary": answer.get("canary")})

    @api.post("/learned")
    async def import_learned(request: Request) -> JSONResponse:
        """Give the fleet what another has learned; what `nightjar import` sends.

        The body is the file. `group` in the query, repeatable, names groups of it; all without. The answer holds the `groups`.
        """
        require_token(request, token)
        content = await read_body(request, MAX_FILE_BYTES)
        answer = await written(policy.import_learned(content, request.query_params.getlist("group")))
        return JSONResponse({"groups": answer.get("groups")})


def accepted(answer: Mapping[str, object], refused_as: int) -> Mapping[str, object]:
    """The policy's answer. Raises ApiError with the HTTP status `refused_as` where it names an error."""
    if answer.get("error"):
        raise ApiError(refused_as, str(answer["error"]))
    return answer


def require_token(request: Request, token: Callable[[], SecretStr | None]) -> None:
    """Raises ApiError 403 where no usable token is configured, 401 where the request does not present it."""
    try:
        expected = token()
    except TokenError as error:
        raise ApiError(403, f"read-only: {error}") from error
    if expected is None:
        variables = f"{TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
        at_home = f"under `nightjar run`: end it, export {TOKEN_VARIABLE}, start it again"
        raise ApiError(403, f"read-only: no API token is configured; start the policy app with {variables} set ({at_home})")
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not is_token(presented.strip(), expected):
        how = f"`nightjar` sends its {TOKEN_VARIABLE}, others send Authorization: Bearer TOKEN"
        problem = "wrong token" if presented else f"a token is needed: {how}"
        raise ApiError(401, problem, {"WWW-Authenticate": "Bearer"})


def require_reader(request: Request, readers: Callable[[], tuple[SecretStr, ...] | None]) -> None:
    """Raises ApiError 403 where readers need a token and there is no usable one, 401 where the request does not present one."""
    try:
        allowed = readers()
    except TokenError as error:
        raise ApiError(403, f"closed: {error}") from error
    if allowed is None:
        return
    if not allowed:
        raise ApiError(
            403, f"closed: readers need a token and none is configured; start the policy app with {READ_TOKEN_VARIABLE} set"
        )
    presented = _presented(request.headers.get("Authorization", ""))
    if not any([is_token(presented, token) for token in allowed]):  # noqa: C419 - all are compared, in the same time
        problem = "wrong token" if presented else "a token is needed (Authorization: Bearer TOKEN, or as the password of any user)"
        raise ApiError(401, problem, {"WWW-Authenticate": 'Basic realm="nightjar", charset="UTF-8", Bearer'})


def _presented(authorization: str) -> str:
    """The token of a bearer, or the password that a browser sends; empty where there is none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # what is no base64, what is no ASCII, and a password that is no UTF-8
        return ""


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body. Raises ApiError 413 as soon as it is longer than `most_bytes`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise ApiError(413, f"body: more than the {most_bytes} bytes allowed")
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object. Raises ApiError: 413 as soon as it is longer than MAX_BODY_BYTES, 422 if it is none, or
    deeper than MAX_BODY_DEPTH.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(422, f"body: not JSON ({error}); expected an object such as {EXAMPLE_BODY}") from error
    if not isinstance(values, dict):
        raise ApiError(422, f"body: {type(values).__name__} (value {body[:80].decode(errors='replace')!r}), expected an object")
    if _is_deeper(values, MAX_BODY_DEPTH):
        raise ApiError(422, f"body: objects within more than {MAX_BODY_DEPTH} others, allowed are at most {MAX_BODY_DEPTH}")
    return values


def _is_deeper(value: object, most: int) -> bool:
    """Whether there are more than `most` objects and lists within each other. Without recursion: `value` may be a stranger's.

    >>> _is_deeper({"a": [1]}, 2), _is_deeper({"a": [{}]}, 2)
    (False, True)
    """
    level: list[object] = [value]
    for _ in range(most):
        level = [inner for one in level for inner in _inside(one)]
    return any(isinstance(one, dict | list) for one in level)


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
