"""Bearer tokens: where one comes from, and how the one that writes to the HTTP API need is compared.

A token comes from the environment or from a file (a mounted secret), never from `user_config`, which Ray prints and stores.
Fails closed: without a token, or with a file that cannot be read, nobody may write.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr

TOKEN_VARIABLE: Final = "NIGHTJAR_API_TOKEN"  # noqa: S105 - a variable's name
TOKEN_FILE_VARIABLE: Final = f"{TOKEN_VARIABLE}_FILE"


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


def checked_token(source: str, token: str) -> SecretStr:
    """The token, masked. Raises TokenError naming `source` for one that no HTTP header can hold."""
    if not (token.isascii() and token.isprintable()):
        raise TokenError(f"{source}: the token holds characters other than printable ASCII")
    return SecretStr(token)


def is_token(presented: str, token: SecretStr) -> bool:
    """Whether `presented` is the token, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(presented.encode(), token.get_secret_value().encode())
