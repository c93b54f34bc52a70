"""Which TCP port Serve listens on, decided before anything starts, and where a client reaches it.

Serve's proxy binds with SO_REUSEPORT, so two clusters on one port would share its requests without an error: a port
counts as free only if nobody else is bound to it. Fails as `PortError` for a port that was asked for and is taken.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

MAX_PORT: Final = 65_535
IN_USE: Final = "is in use"


class PortError(ValueError):
    """A port that cannot be used. The message names it and what to do."""


def choose_port(host: str, requested: int | None, configured: int) -> int:
    """`requested` if it is free (else PortError); without one, `configured` if it is free, any free port if it is in use, and
    PortError for a host or port that cannot be had at all."""
    if requested is not None:
        if not 1 <= requested <= MAX_PORT:
            raise PortError(f"port: {requested} is not from 1 to {MAX_PORT}")
        problem = why_taken(host, requested)
        if problem:
            raise PortError(f"port: {requested} on {host} {problem}; give another --port, or none to take a free one")
        return requested
    problem = why_taken(host, configured)
    if problem not in ("", IN_USE):
        raise PortError(f"port: {configured} on {host} {problem}; mend http_options, or give another --port")
    return free_port(host) if problem else configured


def why_taken(host: str, port: int) -> str:
    """Empty where `port` can be bound on `host`, else why not."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return IN_USE if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
    return ""


def free_port(host: str) -> int:
    """A port that nobody is bound to now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def reachable_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a proxy that listens on `host`."""
    if host in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    elif ":" in host:
        host = "[::1]" if host == "::" else f"[{host}]"
    return f"http://{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
