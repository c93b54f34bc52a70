"""Ports that tests listen on, from a range that nothing else takes.

A port that was free when a test asked is bound seconds later, by a server that is still importing. From the kernel's own range
(32768 and above, on Linux) it may be gone by then: every outgoing connection and every `bind(0)` beside takes one of those, and
Ray takes from 10002 to 19999. So ports come from between the two, at random, since two test processes ask at once.
"""

from __future__ import annotations

import random
import socket
from typing import Final

FIRST: Final = 20_000
LAST: Final = 32_000
_ANY = random.SystemRandom()


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    while True:
        port = _ANY.randint(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
