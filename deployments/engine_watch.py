"""When an engine counts as hung: it has requests that could run and takes no step.

An engine that dies says so. One whose step loop hangs (a stuck collective or kernel, a stopped worker process) lives on,
answers nothing, and keeps every request that was sent to it. This is the judgement alone, without I/O: told of each control
call and of what vLLM's front end knows, it answers why the engine is hung. An engine takes control calls between any two
steps, so one that does not answer takes no step either. One that answers, and whose requests all wait for something that others
are to bring (KV from another engine, a grammar, a client's next input), has no step to take. Fails open: time counts only where
steps are excluded by what was seen and one was due, so an engine that works is never called hung, and one that hangs may be called
so a control call later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nightjar.policy.wire.report import EngineLoad, EngineSnapshot

HUNG_AFTER_S: Final = 120.0
"""A step with a long prefill takes tens of seconds on a CPU; an engine is warm before it serves, so no step compiles."""


class EngineHungError(RuntimeError):
    """The engine has requests and takes no step. The message says for how long."""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """What vLLM's front end, which runs in the replica's own process, knows about its engine now."""

    num_unfinished_reqs: int
    num_steps: int | None  # steps whose output arrived so far; None: none was seen yet, as where vLLM's statistics are off


class EngineWatch:
    """The watch over one engine. Every `now_s` is of the same monotonic clock; with `hung_after_s` 0 no engine is hung.

    `counts_steps` says whether the engine's snapshots count its steps, which takes Nightjar's scheduler. Where they do not,
    steps are those that the front end sees; where it sees none either, only an engine that does not answer is hung.
    """

    def __init__(self, *, hung_after_s: float = HUNG_AFTER_S, counts_steps: bool = True) -> None:
        self._hung_after_s = hung_after_s
        self._counts_steps = counts_steps
        self._asked_s: float | None = None  # the oldest call without an answer
        self._answered_s = self._moved_s = 0.0
        self._step: tuple[str, int] | None = None  # engine and step count of the last answer; None: not known
        self._load = EngineLoad()  # of the last answer
        self._num_steps: int | None = None
        self._output_s = 0.0  # when the front end's steps moved last
        self._busy_since_s: float | None = None  # None: the front end had no request when it was last looked at

    def asked(self, now_s: float) -> None:
        """A control call is sent. If one before it was given up without an answer, that one stays the one that counts."""
        if self._asked_s is None:
            self._asked_s = now_s

    def answered(self, snapshot: EngineSnapshot, now_s: float) -> None:
        """The engine answered. With a fault or a refusal it may have ceased to count its steps, so they are not known."""
        counters = snapshot.counters
        known = self._counts_steps and not snapshot.fault and not snapshot.refused
        step = (counters.engine_id, counters.step_count) if known else None
        if step is None or step != self._step or not _num_due(self._load):
            self._moved_s = now_s
        self._asked_s, self._answered_s, self._step, self._load = None, now_s, step, snapshot.load
        if _all_deferred(self._load):
            self._output_s = now_s

    def failed(self) -> None:
        """The call came back without a snapshot: none is outstanding, and the steps are not known."""
        self._asked_s = self._step = None

    def restart(self) -> None:
        """Count from the next look on, whatever was before: an operator had paused the engine."""
        self._busy_since_s = None

    def why_hung(self, front_end: FrontEnd, now_s: float) -> str:
        """Why the engine counts as hung, in one line; empty while it does not."""
        if front_end.num_steps != self._num_steps:
            self._num_steps, self._output_s = front_end.num_steps, now_s
        if not front_end.num_unfinished_reqs or not self._hung_after_s:
            self._busy_since_s = None
            return ""
        if self._busy_since_s is None:
            self._busy_since_s = now_s
        unfinished = f"{front_end.num_unfinished_reqs} unfinished requests"
        if self._asked_s is not None and (silent_s := now_s - max(self._asked_s, self._busy_since_s)) >= self._hung_after_s:
            return f"engine hung: no answer for {silent_s:.0f} s, {unfinished}, {self._last_step()}"
        if self._step is not None:
            still_s = self._answered_s - max(self._moved_s, self._busy_since_s) if _num_due(self._load) else 0.0
            unfinished = f"{self._load.num_running_reqs} running and {self._load.num_waiting_reqs} waiting requests"
        else:
            unseen = front_end.num_steps is None or _all_deferred(self._load)
            still_s = 0.0 if unseen else now_s - max(self._output_s, self._busy_since_s)
        if still_s < self._hung_after_s:
            return ""
        return f"engine hung: no step for {still_s:.0f} s, {unfinished}, {self._last_step()}"

    def _last_step(self) -> str:
        if self._step is not None:
            return f"step count {self._step[1]}"
        return "steps not counted" if self._num_steps is None else f"step count {self._num_steps} as seen by the front end"


def _num_due(load: EngineLoad) -> int:
    """Requests that a step could run."""
    return load.num_running_reqs + max(load.num_waiting_reqs - load.num_deferred_reqs, 0)


def _all_deferred(load: EngineLoad) -> bool:
    """Whether there are requests, and none that a step could run."""
    return load.num_deferred_reqs > 0 and not _num_due(load)
