"""A node's processes and memory for tests, by the second."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from nightjar.deployments.engine.engine_processes import Processes

T = TypeVar("T")


@dataclass
class Node:
    """Processes and a device's memory by the second, a clock that only sleeping moves, and what was killed."""

    running: list[Collection[int]] = field(default_factory=lambda: [()])
    used_bytes: list[int | None] = field(default_factory=lambda: [None])
    now_s: float = 1000.0
    killed: list[int] = field(default_factory=list)
    slept_s: float = 0.0

    def processes(self, pids: Callable[[], Collection[int]] | None = None) -> Processes:
        """Of `running`, or as `pids` answers."""
        return Processes(
            pids=pids or partial(_next_of, list(self.running)),
            used_bytes=partial(_next_of, list(self.used_bytes)),
            kill=self.kill,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def _next_of(values: list[T]) -> T:
    """One after another, the last again and again."""
    return values.pop(0) if len(values) > 1 else values[0]
