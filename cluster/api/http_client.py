"""The command line's side of the HTTP API: one call, one answer or one clear line.

Fails as `OperationError`, whose message is what the operator reads: nothing answers at the URL, something else than Nightjar
answers, or the API's own line for a wrong token, a read-only API or a bad value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import SplitResult

import httpx
from pydantic import SecretStr

from nightjar.cluster.api.operations import Answer, Operation, OperationError, P, Route
from nightjar.policy.wire.record import web_address, without_credentials

DEFAULT_URL: Final = "http://127.0.0.1:8000"
"""Of Serve's own default port."""
ROUTE_PREFIX: Final = "/nightjar"
TIMEOUT_S: Final = 15.0
"""Above what the API itself waits for the policy actor (client.OPERATOR_TIMEOUT_S): its answer says more than a timeout."""
LOOPBACK_HOSTS: Final = {"localhost", "127.0.0.1", "::1"}


class HttpClient:
    """Speaks to the policy app behind `url`, the address of the Serve proxy without the route prefix."""

    def __init__(
        self,
        url: str,
        *,
        token: SecretStr | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        address = address_of(url)
        self._url = without_credentials(url.rstrip("/"))  # as messages show it
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/") + ROUTE_PREFIX,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            trust_env=address.hostname not in LOOPBACK_HOSTS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        """Have an operation done that has a route. Raises OperationError."""
        route = operation.route
        if route is None:
            raise TypeError(f"{operation.name} has no route")
        response = self._send(route.method, route.path, **_options(route, arguments))
        try:
            return operation.from_body(response.content)
        except ValueError as error:
            raise OperationError(HTTPStatus.BAD_GATEWAY, f"{self._url}: {error}") from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **request)
        except httpx.TimeoutException as error:
            doubt = "" if method == "GET" else "; it may be in force all the same, `nightjar status` tells"
            raise OperationError(
                HTTPStatus.GATEWAY_TIMEOUT, f"{self._url} did not answer within {self._client.timeout.read:g} s{doubt}"
            ) from error
        except UnicodeEncodeError as error:
            raise OperationError(HTTPStatus.BAD_REQUEST, f"{error.object[:80]!r} cannot be sent: it is no text in UTF-8") from error
        except httpx.HTTPError as error:
            words = f"nothing answers at {self._url} ({error}); is Nightjar running, and is --url right?"
            raise OperationError(HTTPStatus.SERVICE_UNAVAILABLE, words) from error
        if not response.is_success:
            words = refusal(str(response.request.url), response.status_code, response.content)
            raise OperationError(response.status_code, words)
        return response


def address_of(url: str) -> SplitResult:
    """The parts of a policy's address. Raises OperationError for what is none."""
    try:
        httpx.URL(url)
        address = web_address(url)
    except httpx.InvalidURL:  # a line end behind it, a name that no host can have
        address = None
    if address is None:
        shown = without_credentials(repr(url))
        raise OperationError(HTTPStatus.BAD_REQUEST, f"url: {shown} is not an address such as {DEFAULT_URL}")
    return address


def refusal(url: str, code: int, body: bytes) -> str:
    """What the API says of a request that it refused; that there is none, where it did not answer."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{without_credentials(url)} answered {code}: no Nightjar policy app there (it is expected under {ROUTE_PREFIX})"
    return f"{detail} (HTTP {code})"


def _options(route: Route, arguments: Sequence[object]) -> dict[str, Any]:
    """Of httpx's request. An object goes out whatever is in it, as nan: what is wrong with it the policy says, by its field."""
    left, options = list(arguments), dict[str, Any]()
    if route.body:
        options["content"] = left.pop(0)
    if route.body == "object":
        options |= {"content": json.dumps(options["content"]), "headers": {"Content-Type": "application/json"}}
    if route.query is not None:
        options["params"] = {route.query.name: left.pop(0)}
    return options
