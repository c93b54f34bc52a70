"""The command line's side of the HTTP API: one call, one answer or one clear line.

Fails as `HttpError`, whose message is what the operator reads: nothing answers at the URL, something else than Nightjar
answers, or the API's own line for a wrong token, a read-only API or a bad value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr, ValidationError

from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.record import describe_validation_error, without_credentials
from nightjar.policy.wire.status import FleetStatus

DEFAULT_URL: Final = "http://127.0.0.1:8000"
"""Of Serve's own default port."""
ROUTE_PREFIX: Final = "/nightjar"
TIMEOUT_S: Final = 15.0
"""Above what the API itself waits for the policy actor (client.OPERATOR_TIMEOUT_S): its answer says more than a timeout."""
LOOPBACK_HOSTS: Final = {"localhost", "127.0.0.1", "::1"}


class HttpError(Exception):
    """A call that brought no answer to use. The message is one line for the operator."""


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
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket that is not closed
            is_address = False
        if not is_address:
            raise HttpError(f"url: {without_credentials(repr(url))} is not an address such as http://127.0.0.1:8000")
        self._url = without_credentials(url.rstrip("/"))  # as messages show it
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/") + ROUTE_PREFIX,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            trust_env=parts.hostname not in LOOPBACK_HOSTS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def status(self) -> FleetStatus:
        """The whole fleet. Raises HttpError."""
        try:
            return FleetStatus.model_validate(self._call("GET", "/status"))
        except ValidationError as error:
            raise HttpError(
                f"{self._url}: the answer is no status of this version of Nightjar: {describe_validation_error(error)}"
            ) from error

    def explain(self, replica: str) -> Explanation:
        """Why one replica's K is what it is. Raises HttpError, which names the replicas that exist where it is none of them."""
        answer = _json(self._send("GET", "/explain", params={"replica": replica}), self._url)
        try:
            return Explanation.model_validate(answer)
        except ValidationError as error:
            raise HttpError(
                f"{self._url}: the answer is no explanation of this version of Nightjar: {describe_validation_error(error)}"
            ) from error

    def set_mode(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Set or take back a mode; `request` is the body of POST /mode. Raises HttpError."""
        return self._post("/mode", request)

    def freeze(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Begin, prolong or end a freeze; `request` is the body of POST /freeze. Raises HttpError."""
        return self._post("/freeze", request)

    def canary(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Begin, end or promote a canary; `request` is the body of POST /canary. Raises HttpError."""
        return self._post("/canary", request)

    def _post(self, path: str, request: Mapping[str, object]) -> Mapping[str, Any]:
        answer = self._call("POST", path, request)
        if not isinstance(answer, dict):
            raise HttpError(f"{self._url}: the answer is no JSON object; is this Nightjar?")
        return answer

    def learned(self) -> bytes:
        """What the fleet has learned, as a file (learned_file.py), unchecked. Raises HttpError."""
        return self._send("GET", "/learned").content

    def import_learned(self, content: bytes, group_ids: Sequence[str] = ()) -> Mapping[str, Any]:
        """Give the fleet the groups of such a file, or those named. Answers {groups: [{group_id, cells, replicas}]}.

        Raises HttpError.
        """
        answer = _json(self._send("POST", "/learned", content=content, params={"group": list(group_ids)}), self._url)
        if not isinstance(answer, dict) or not isinstance(answer.get("groups"), list):
            raise HttpError(f"{self._url}: the answer names no groups; is this Nightjar?")
        return answer

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        return _json(self._send(method, path, json=body), self._url)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **request)
        except httpx.TimeoutException as error:
            doubt = "" if method == "GET" else "; it may be in force all the same, `nightjar status` tells"
            raise HttpError(f"{self._url} did not answer within {self._client.timeout.read:g} s{doubt}") from error
        except httpx.HTTPError as error:
            raise HttpError(f"nothing answers at {self._url} ({error}); is Nightjar running, and is --url right?") from error
        if not response.is_success:
            raise HttpError(self._refusal(response))
        return response

    def _refusal(self, response: httpx.Response) -> str:
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            return (
                f"{without_credentials(str(response.request.url))} answered {response.status_code}: no Nightjar policy app there "
                f"(it is expected under {ROUTE_PREFIX})"
            )
        return f"{detail} (HTTP {response.status_code})"


def _json(response: httpx.Response, url: str) -> object:
    try:
        return response.json()
    except ValueError as error:
        raise HttpError(f"{url}: the answer is no JSON; is this Nightjar?") from error
