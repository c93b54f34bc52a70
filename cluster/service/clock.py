"""The policy's clock, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable


def epoch_clock() -> Callable[[], float]:
    """A clock in seconds since the epoch that does not step when the system's time is set: read once, then monotonic."""
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s
