"""Samples of a running system's status, once a second, on a thread of its own: in memory for the screen, in a file as evidence.

A policy that does not answer is a sample, too: it says why. So the file shows how long the policy was away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from nightjar.cluster.http_client import HttpClient
from nightjar.cluster.operations import STATUS, OperationError
from nightjar.loadtests.samples import StatusSample
from nightjar.policy.wire.status import FleetStatus

PERIOD_S: Final = 1.0


class Sampler:
    """Samples while it is entered. `mode` is written into each sample: set it while the system is known to run that mode."""

    def __init__(self, api: HttpClient, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.mode = ""
        self.samples: list[StatusSample] = []
        self.latest: FleetStatus | None = None
        self._api = api
        self._path = path
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> StatusSample:
        """Take one sample now and keep it."""
        with self._lock:
            mode, asked_s = self.mode, self._clock()
            try:
                taken = StatusSample(time_s=asked_s, mode=mode, status=self._api.call(STATUS))
                self.latest = taken.status
            except OperationError as error:
                taken = StatusSample(time_s=asked_s, mode=mode, error=str(error))
            self.samples.append(taken)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(taken.model_dump_json(exclude_none=True) + "\n")
        return taken

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.sample()
