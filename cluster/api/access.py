"""Tokens: where one comes from, who may read and write with which, and how one that is presented is compared.

A token comes from the environment or from a file (a mounted secret), never from `user_config`, which Ray prints and stores.
Fails closed: without a token, or with a file that cannot be read, nobody may write; where readers need a token and none is there,
nobody may read.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from nightjar.cluster.api.operations import OperationError

TOKEN_VARIABLE: Final = "NIGHTJAR_API_TOKEN"  # noqa: S105 - a variable's name
TOKEN_FILE_VARIABLE: Final = f"{TOKEN_VARIABLE}_FILE"
READ_TOKEN_VARIABLE: Final = "NIGHTJAR_API_READ_TOKEN"  # noqa: S105 - a variable's name
READ_ACCESS_VARIABLE: Final = "NIGHTJAR_API_READ_ACCESS"
"""`open` or `token`; where it is not set, readers need a token if one is configured for them."""
EXCHANGE_TOKEN_VARIABLE: Final = "NIGHTJAR_EXCHANGE_TOKEN"  # noqa: S105 - a variable's name


class TokenError(ValueError):
    """A configured token that cannot be used. The message names the variable and never holds the token."""


def configured_token(environ: Mapping[str, str] = os.environ, variable: str = TOKEN_VARIABLE) -> SecretStr | None:
    """The token in `variable`, or in the file that `variable`_FILE names; None where neither is set.

    A file is read anew each time, so a secret may rotate. Raises TokenError for a file that is empty or cannot be read, and for a
    token that no HTTP header can hold.
    """
    if token := environ.get(variable, "").strip():
        return checked_token(variable, token)
    file_name = environ.get(f"{variable}_FILE", "").strip()
    if not file_name:
        return None
    source = f"{variable}_FILE={file_name}"
    try:
        token = Path(file_name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"{source}: the token file cannot be read ({error})") from error
    if not token:
        raise TokenError(f"{source}: the token file is empty")
    return checked_token(source, token)


def reader_tokens(environ: Mapping[str, str] = os.environ) -> tuple[SecretStr, ...] | None:
    """The tokens that may read, those that may write among them; None where anybody may.

    Raises TokenError for a token that cannot be used, and for an access that is neither open nor token.
    """
    access = environ.get(READ_ACCESS_VARIABLE, "").strip()
    if access not in {"", "open", "token"}:
        raise TokenError(f"{READ_ACCESS_VARIABLE}={access[:40]!r}: allowed are open and token")
    read = configured_token(environ, READ_TOKEN_VARIABLE)
    if access == "open" or (not access and read is None):
        return None
    return tuple(token for token in (read, configured_token(environ)) if token is not None)


def checked_token(source: str, token: str) -> SecretStr:
    """The token, masked. Raises TokenError naming `source` for one that no HTTP header can hold."""
    if not (token.isascii() and token.isprintable()):
        raise TokenError(f"{source}: the token holds characters other than printable ASCII")
    return SecretStr(token)


def is_token(presented: str, token: SecretStr) -> bool:
    """Whether `presented` is the token, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(presented.encode(), token.get_secret_value().encode())


def require_writer(authorization: str, token: Callable[[], SecretStr | None]) -> None:
    """Raises OperationError: 403 where no usable token is configured, 401 where the header `Authorization` does not present it."""
    try:
        expected = token()
    except TokenError as error:
        raise OperationError(HTTPStatus.FORBIDDEN, f"read-only: {error}") from error
    if expected is None:
        variables = f"{TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
        at_home = f"under `nightjar run`: end it, export {TOKEN_VARIABLE}, start it again"
        how = f"start the policy app with {variables} set ({at_home})"
        raise OperationError(HTTPStatus.FORBIDDEN, f"read-only: no API token is configured; {how}")
    _require_bearer(authorization, expected, f"`nightjar` sends its {TOKEN_VARIABLE}, others send Authorization: Bearer TOKEN")


def exchange_token() -> SecretStr | None:
    """The token of reports over HTTP. Raises TokenError as `configured_token` does."""
    return configured_token(variable=EXCHANGE_TOKEN_VARIABLE)


def require_reporter(authorization: str, token: Callable[[], SecretStr | None], *, is_open: bool) -> None:
    """Raises OperationError: 403 where no usable token is configured, 401 where the header `Authorization` does not present it.

    Where `is_open`, anybody may report while no token is configured.
    """
    try:
        expected = token()
    except TokenError as error:
        raise OperationError(HTTPStatus.FORBIDDEN, f"takes no reports: {error}") from error
    if expected is not None:
        _require_bearer(authorization, expected, f"the server that reports needs the policy's {EXCHANGE_TOKEN_VARIABLE}")
    elif not is_open:
        words = f"takes no reports: no token is configured; start the policy with {EXCHANGE_TOKEN_VARIABLE} (or ..._FILE) set"
        raise OperationError(HTTPStatus.FORBIDDEN, words)


def _require_bearer(authorization: str, expected: SecretStr, how: str) -> None:
    scheme, _, presented = authorization.partition(" ")
    if scheme.lower() != "bearer" or not is_token(presented.strip(), expected):
        raise OperationError(HTTPStatus.UNAUTHORIZED, "wrong token" if presented else f"a token is needed: {how}")


def require_reader(authorization: str, readers: Callable[[], tuple[SecretStr, ...] | None]) -> None:
    """Raises OperationError: 403 where readers need a token and there is no usable one, 401 where none is presented."""
    try:
        allowed = readers()
    except TokenError as error:
        raise OperationError(HTTPStatus.FORBIDDEN, f"closed: {error}") from error
    if allowed is None:
        return
    if not allowed:
        raise OperationError(
            HTTPStatus.FORBIDDEN,
            f"closed: readers need a token and none is configured; start the policy app with {READ_TOKEN_VARIABLE} set",
        )
    presented = _presented(authorization)
    if not any([is_token(presented, token) for token in allowed]):  # noqa: C419 - all are compared, in the same time
        problem = "wrong token" if presented else "a token is needed (Authorization: Bearer TOKEN, or as the password of any user)"
        raise OperationError(HTTPStatus.UNAUTHORIZED, problem)


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
