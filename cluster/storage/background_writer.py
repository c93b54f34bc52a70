"""One thread beside an event loop that writes what it is given, in order.

A slow disk delays nobody. Fails open: while one hangs, at most `most_waiting` pieces of work wait for it, and the rest is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Does work in a thread named `name`. All methods belong to one thread, that of the event loop."""

    def __init__(self, name: str, most_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._most_waiting = most_waiting
        self._waiting: list[Future[None]] = []

    def take(self, work: Callable[[], None]) -> bool:
        """Do `work`, which handles its own errors, soon; False where it is left out. Neither blocks nor raises."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.done()]
        if len(self._waiting) >= self._most_waiting:
            return False
        try:
            self._waiting.append(self._executor.submit(work))
        except RuntimeError:  # the interpreter is on its way out
            return False
        return True

    def close(self) -> None:
        """Wait until everything taken is done."""
        self._executor.shutdown()
