"""Virtual time: what happens next, in order of time, and in order of entry where times are equal.

Nothing here waits; the time is that of the action that runs. Fails closed: an action in the past raises ValueError, so time
never goes back (SIM-4).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """Actions still to come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.next_s = math.inf
        """Time of the next action; infinite without one."""
        self._entries: list[tuple[float, int, Action]] = []
        self._entered = 0

    def at(self, time_s: float, action: Action) -> None:
        """Run `action` at `time_s`, after everything that is due at that time already. Raises ValueError for the past."""
        if not time_s >= self.now_s:
            raise ValueError(f"{time_s:g} s is in the past: it is {self.now_s:g} s")
        self._entered += 1
        heapq.heappush(self._entries, (time_s, self._entered, action))
        self.next_s = self._entries[0][0]

    def run_next(self) -> None:
        """Move to the next action's time and run it."""
        self.now_s, _, action = heapq.heappop(self._entries)
        self.next_s = self._entries[0][0] if self._entries else math.inf
        action()
