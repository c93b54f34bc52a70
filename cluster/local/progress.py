"""Progress in lines for work that takes minutes, where no terminal is drawn on: never silent for longer than ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

MAX_SILENCE_S: Final = 9.0


class Progress:
    """Lines with the time since the start; `heartbeat` and `after_silence` speak where nothing was said for a while."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._start_s = clock()
        self._last_s = self._start_s
        self._pending = ""

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return self._clock() - self._start_s

    def say(self, line: str) -> None:
        """Write a line now."""
        self._last_s = self._clock()
        self._write(f"[{self._last_s - self._start_s:4.0f} s] {line}")

    def pass_on(self, line: str) -> None:
        """Write a line of another program, as it is."""
        self._last_s = self._clock()
        self._write(line)

    def after_silence(self, line: str) -> None:
        """Call often: says the line after a silence of MAX_SILENCE_S."""
        if self._clock() - self._last_s >= MAX_SILENCE_S:
            self.say(line)

    def wait_for(self, pending: str) -> None:
        """Name what is waited for, and say so if that is news."""
        if pending != self._pending:
            self._pending = pending
            if pending:
                self.say(pending)

    def heartbeat(self) -> None:
        """Call every second or so: says what is pending, if anything is, after such a silence."""
        if self._pending:
            self.after_silence(f"still {self._pending}")
