"""Watches whether this load process has time to read what comes in.

All requests of a process share one thread. Where it is busy, requests are sent late and tokens are seen late, and times look
worse than the server made them. A greenlet that wants to wake every TICK_S, and how much later it did, shows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import gevent

TICK_S: Final = 0.05


class LoopWatch:
    """Seconds by which each tick came too late, while it is entered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = gevent.sleep) -> None:
        self.delays_s: list[float] = []
        self._clock = clock
        self._sleep = sleep

    def __enter__(self) -> LoopWatch:
        self._ticking = gevent.spawn(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._ticking.kill(block=False)

    def _tick(self) -> None:
        while True:
            due_s = self._clock() + TICK_S
            self._sleep(TICK_S)
            self.delays_s.append(max(self._clock() - due_s, 0.0))
