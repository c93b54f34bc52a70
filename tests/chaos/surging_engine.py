"""A served engine whose load rises and falls by itself, so that its drafter is off and wants back every few seconds.

Beside the requests that are asked of it over HTTP it always has some of its own: many in a surge, few between two. All engines of a
machine surge at the same time, by CLOCK_MONOTONIC, and all want to restart at the same time. It notes which settings it adopted,
and when it restarted under a lease. A process that was stopped for a while does not make up for it: those steps never ran.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, IssuedSettings
from tests.chaos.events import EventKind, EventLog, Version
from tests.upgrade.served_engine import ServedEngine

PROFILE: Final = read_profile("cpu-smollm2")
SPEED: Final = 4.0
SURGE_PERIOD_S: Final = 12.0
SURGE_S: Final = 3.0
SURGE_ROWS: Final = 14
LOW_ROWS: Final = 4
MOST_SPECULATING_ROWS: Final = 9
"""Of a batch up to which the operator's table speculates: the low rows with the requests over HTTP, never a surge."""
PROMPT_TOKENS: Final = 250
SURGE_PROMPT_TOKENS: Final = 8
"""Of a surge, which comes at once; long prompts come one a step. A step that reads many would take seconds."""
OUTPUT_TOKENS: Final = 24
RUN_PERIOD_S: Final = 0.1
STOPPED_AFTER_S: Final = 2.0
"""An engine that ran no step for so long had no processor."""
OWN_NUMBERS: Final = 1 << 40


class SurgingEngine(ServedEngine):
    """One engine; `run` keeps it going."""

    def __init__(self, seed: int, log: EventLog) -> None:
        super().__init__(seed, PROFILE, SPEED)
        self._log = log
        self._own: list[SimulatedRequest] = []
        self._own_number = OWN_NUMBERS
        self._adopted: Version | None = None
        self._ran_at_s = self._resumed_s = 0.0
        self._is_restarting = False

    @property
    def is_restarting(self) -> bool:
        """Whether it restarts under a lease now."""
        self._catch_up()
        return self._is_restarting

    async def run(self) -> None:
        """Step for ever, whether or not anybody asks."""
        while True:
            self._catch_up()
            await asyncio.sleep(RUN_PERIOD_S)

    def end(self) -> None:
        """No step runs any more."""
        if self._is_restarting:
            self._log.note(EventKind.RESTART_ENDED)
        self._is_restarting = False

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply a command when the step under way has ended, as a real engine does."""
        self._catch_up()
        while self._engine.now_s > self._now_s:  # noqa: ASYNC110 - until a moment, which the next step may put off
            await asyncio.sleep(max(self._engine.now_s - self._now_s, 0.0))
        return self._control(command)

    def _adopt(self, issued: IssuedSettings) -> str:
        refused = super()._adopt(issued)
        version = (issued.version.incarnation, issued.version.sequence)
        if not refused and version != self._adopted:
            self._adopted = version
            self._log.note(EventKind.ADOPTED, version=version)
        return refused

    def _catch_up(self) -> None:
        now_s = self._now_s
        if self._engine.has_work and now_s - self._engine.now_s > STOPPED_AFTER_S:
            self._skip_to(now_s)
        self._ran_at_s = now_s
        while self._engine.now_s < now_s:
            self._submit_own()
            self._engine.step()
            self._note_restarts()

    def _submit_own(self) -> None:
        self._own = [request for request in self._own if request.finish_s is None]
        is_surge = (self._began_s + self._engine.now_s) % SURGE_PERIOD_S < SURGE_S
        wanted = SURGE_ROWS if is_surge else min(LOW_ROWS, len(self._own) + 1)
        while len(self._own) < wanted:
            self._own_number += 1
            prompt_tokens = SURGE_PROMPT_TOKENS if is_surge else PROMPT_TOKENS
            acceptance_class = self._own_number % self._classes
            request = SimulatedRequest(self._own_number, self._engine.now_s, prompt_tokens, OUTPUT_TOKENS, acceptance_class)
            self._engine.submit(request)
            self._own.append(request)

    def _note_restarts(self) -> None:
        """Tell of a restart that the last step began or ended."""
        restarts = self._engine.leased_restarts
        is_restarting = bool(restarts) and restarts[-1].end_s == math.inf
        if is_restarting and not self._is_restarting:
            self._log.note(EventKind.RESTART_BEGAN, at_s=self._began_s + max(restarts[-1].begin_s, self._resumed_s))
        elif self._is_restarting and not is_restarting:
            self._log.note(EventKind.RESTART_ENDED, at_s=self._began_s + restarts[-1].end_s)
        self._is_restarting = is_restarting

    def _skip_to(self, now_s: float) -> None:
        """The process was stopped until now. A restart that was under way did nothing meanwhile; if it goes on, it begins anew."""
        if self._is_restarting:
            self._log.note(EventKind.RESTART_ENDED, at_s=self._began_s + min(self._engine.now_s, self._ran_at_s))
        self._is_restarting = False
        self._engine.now_s = self._resumed_s = now_s
