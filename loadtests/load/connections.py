"""Connections to one server that are used again, as gateways and `vllm bench serve` do it.

A new connection costs a look-up of the name, a handshake and the server's accept: milliseconds that are no part of serving, and
under TLS many. A connection waits here from the end of one answer to the next request. Servers drop idle ones after some seconds
(uvicorn: five), and a request on a dropped one would be lost: so a connection that was idle for longer than MAX_IDLE_S, or that
the server has closed or written to, is closed and not used. Nothing is ever sent twice.
"""

from __future__ import annotations

import http.client
import select
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

MAX_IDLE_S: Final = 2.0
DRAIN_S: Final = 1.0
"""How long the end of an answer is waited for after its last event, before its connection is given up."""


def new_connection(url: str, timeout_s: float) -> http.client.HTTPConnection:
    """Not connected yet."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s)


class Connections:
    """Idle connections to one server, the last used first. For the greenlets of one thread."""

    def __init__(self, url: str, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._clock = clock
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []

    def take(self) -> http.client.HTTPConnection:
        """One that may be used at once, or a new one."""
        while self._idle:
            since_s, connection = self._idle.pop()
            if self._clock() - since_s <= MAX_IDLE_S and _is_quiet(connection):
                return connection
            connection.close()
        return new_connection(self._url, self._timeout_s)

    def give_back(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        """Keep a connection whose answer has ended; close any other."""
        if _has_ended(connection, response):
            self._idle.append((self._clock(), connection))
        else:
            connection.close()

    def close(self) -> None:
        """Close all that are idle."""
        while self._idle:
            self._idle.pop()[1].close()


def _has_ended(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> bool:
    """Whether nothing more comes of an answer, and its connection stays open. Reads what follows its last event."""
    if response.will_close or connection.sock is None:
        return False
    timeout_s = connection.sock.gettimeout()
    try:
        connection.sock.settimeout(DRAIN_S)
        response.read()
        connection.sock.settimeout(timeout_s)
    except (OSError, http.client.HTTPException):
        return False
    return response.isclosed()


def _is_quiet(connection: http.client.HTTPConnection) -> bool:
    """Whether there is nothing to read: the end of the connection would be."""
    if connection.sock is None:
        return False
    try:
        readable, _, _ = select.select([connection.sock], [], [], 0)
    except (OSError, ValueError):
        return False
    return not readable
