"""The operator's HTTP API as a plain ASGI app: what the fleet does, and the mode that an operator wants.

It knows the policy actor only through `PolicyPort`, so that it is tested without Ray, and it decides nothing.
Reading is open to whoever reaches the service. Writing needs the bearer token; without one configured the API is
read-only. The token is looked at before the body. Fails with one line of `detail`: 401 wrong token, 403 read-only,
422 a bad value (field, value, what is allowed), 503 where the policy actor does not answer (serving goes on).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Protocol, Self

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from nightjar.cluster.api_token import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, TokenError, is_token
from nightjar.cluster.durations import MAX_DURATION_S
from nightjar.policy.records import MAX_NUM_SPECULATIVE_TOKENS, Mode, to_plain
from nightjar.policy.status import FleetStatus, Scope

MAX_BODY_BYTES: Final = 16_384
DEFAULT_MODE: Final = "default"


class PolicyUnreachableError(Exception):
    """The policy actor did not answer; the message says how the attempt ended."""


class PolicyPort(Protocol):
    """What the API needs of the policy. Every method raises PolicyUnreachableError where the actor does not answer."""

    async def status(self) -> FleetStatus:
        """The fleet as the policy sees it."""
        ...

    async def set_mode(self, override: Mapping[str, object]) -> Mapping[str, object]:
        """Set or remove an override; a refusal is answered under `error`."""
        ...


class ModeRequest(BaseModel):
    """Body of `POST /mode`: what somebody wants by hand, for whom and for how long."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    mode: str = Field(description="auto, shadow, off or pin=K; default takes back the override of this scope and name.")
    scope: Scope = Field(default="fleet", description="Whom it concerns. The most specific override wins.")
    name: Annotated[str, Field(max_length=256)] = Field(default="", description="Name of the application, id of the replica.")
    for_s: float | None = Field(
        default=None, gt=0, le=MAX_DURATION_S, description="Seconds until it expires; null: until taken back."
    )
    reason: Annotated[str, Field(max_length=1024)] = Field(default="", description="Shown in status.")

    @field_validator("mode")
    @classmethod
    def _is_a_mode(cls, value: str) -> str:
        if value == DEFAULT_MODE:
            return value
        try:
            return str(Mode.parse(value))
        except ValidationError:
            allowed = f"auto, shadow, off, default, pin=K with K from 0 to {MAX_NUM_SPECULATIVE_TOKENS}"
            raise ValueError(f"allowed are {allowed}") from None

    @model_validator(mode="after")
    def _name_fits_the_scope(self) -> Self:
        if self.scope == "fleet" and self.name:
            raise ValueError(f"name: scope fleet has no name (value {self.name[:80]!r}); give scope application or replica")
        if self.scope != "fleet" and not self.name:
            raise ValueError(f"name: scope {self.scope} needs the name of one {self.scope} (value '')")
        return self


MODE_REQUEST_BODY: Final = {"required": True, "content": {"application/json": {"schema": ModeRequest.model_json_schema()}}}


class ApiError(Exception):
    """An answer other than success: HTTP status and one line for the operator."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.detail = detail


def create_policy_api(policy: PolicyPort, token: Callable[[], SecretStr | None]) -> FastAPI:
    """The API. `token` is called on every write and may raise TokenError, which leaves the API read-only."""
    api = FastAPI(title="Nightjar policy", docs_url=None, redoc_url=None)

    @api.exception_handler(ApiError)
    async def answer_error(_: Request, error: ApiError) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else None
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=headers)

    @api.exception_handler(PolicyUnreachableError)
    async def answer_unreachable(_: Request, error: PolicyUnreachableError) -> JSONResponse:
        detail = f"the policy actor does not answer ({error}); replicas keep serving with their last settings, try again"
        return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "2"})

    @api.get("/status")
    async def status() -> JSONResponse:
        return JSONResponse(to_plain(await policy.status()))

    @api.post("/mode", openapi_extra={"requestBody": MODE_REQUEST_BODY})
    async def mode(request: Request) -> JSONResponse:
        require_token(request, token)
        wanted = parse_mode_request(await read_body(request))
        answer = await policy.set_mode(wanted.model_dump())
        if answer.get("error"):
            raise ApiError(422, str(answer["error"]))
        return JSONResponse(dict(answer))

    return api


def require_token(request: Request, token: Callable[[], SecretStr | None]) -> None:
    """Raises ApiError 403 where no token is configured, 401 where the request does not present it."""
    try:
        expected = token()
    except TokenError as error:
        raise ApiError(403, f"read-only: {error}") from error
    if expected is None:
        raise ApiError(
            403, f"read-only: no API token is configured; start the policy app with {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE} set"
        )
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented:
        raise ApiError(401, "a bearer token is needed: Authorization: Bearer <token>")
    if not is_token(presented.strip(), expected):
        raise ApiError(401, "wrong token")


async def read_body(request: Request) -> bytes:
    """The request's body. Raises ApiError 413 as soon as it is longer than MAX_BODY_BYTES."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"body: more than {MAX_BODY_BYTES} bytes")
    return body


def parse_mode_request(body: bytes) -> ModeRequest:
    """Raises ApiError 422 with every problem on one line: field, value and what is allowed."""
    try:
        values: Any = json.loads(body)
    except ValueError as error:
        raise ApiError(422, f"body: not JSON ({error})") from error
    try:
        return ModeRequest.model_validate(values)
    except ValidationError as error:
        raise ApiError(422, "; ".join(_problem(detail) for detail in error.errors(include_url=False))) from error


def _problem(detail: Mapping[str, Any]) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in detail["loc"])
    if not field:
        return message if detail["type"] == "value_error" else f"body: {message} (value {str(detail['input'])[:80]!r})"
    if detail["type"] == "extra_forbidden":
        message = f"no such field; allowed are {', '.join(ModeRequest.model_fields)}"
    if detail["type"] == "missing":
        return f"{field}: required; allowed are auto, shadow, off, default, pin=K"
    return f"{field}: {message} (value {str(detail['input'])[:80]!r})"
