"""Plays a regime or a joined trace against a server: sends each request when it is due, and never later because another is slow.

One driver per load process. It walks the regime's phases: in an open-loop phase, or of a trace, a dispatcher greenlet sends every
arrival on its own greenlet; in a closed-loop phase each user is a greenlet that asks again when it was answered. Several
processes share a load by taking every n-th arrival and user; together they send exactly what one would.
A request that fails at once is followed by a pause (closed loop), so that a dead server is not asked thousands of times a
second. What has not ended `drain_s` after the regime is cut off and counts as failed: a row is never lost.

All requests of a process share one thread. Where it is busy, requests are sent late and tokens are seen late, and times look
worse than the server made them; `LoopWatch` shows that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import gevent
from gevent.pool import Group

from nightjar.loadtests.load.openai_stream import ChatResult
from nightjar.loadtests.load.regimes import Regime, ScheduledPhase, arrival_times
from nightjar.loadtests.load.rows import RequestRow
from nightjar.loadtests.load.trace_join import JoinedRequest

FAILURE_PAUSE_S: Final = 1.0
"""A closed-loop user waits so long after an attempt that failed."""
TICK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the load this process sends: arrivals and users whose number is `process` modulo `processes`."""

    process: int = 0
    processes: int = 1

    def has(self, number: int) -> bool:
        """Whether this process sends arrival or user `number`."""
        return number % self.processes == self.process


WHOLE: Final = Shard()
"""Everything: the share of a single load process."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What one load process sends, and how long it waits for answers after the regime's end.

    With a `trace` its requests are what arrives, all in the one phase of `regime`, each with its own prompt and answer length.
    """

    regime: Regime
    seed: int
    prompts: tuple[str, ...]
    shard: Shard = WHOLE
    drain_s: float = 60.0
    max_tokens: int = 64
    trace: tuple[JoinedRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class _Due:
    """A request about to be sent: offsets in seconds from the regime's start."""

    request_id: str
    phase: str
    prompt: str
    max_tokens: int
    scheduled_s: float
    asked: JoinedRequest | None = None


class LoadDriver:
    """Plays one plan once. `record` gets a row for every request sent.

    `send` takes a prompt and the most tokens of its answer, and blocks its greenlet until the answer is whole.
    """

    def __init__(
        self,
        plan: LoadPlan,
        send: Callable[[str, int], ChatResult],
        record: Callable[[RequestRow], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._plan = plan
        self._send = send
        self._record = record
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._requests = Group()
        self._start_s = 0.0

    def run(self) -> None:
        """Send everything that is due, wait for the answers, cut off what has not ended `drain_s` after the regime.

        Killing the greenlet that runs this cuts off everything at once; the rows of the requests in flight are still recorded.
        """
        self._start_s = self._clock()
        arrivals = Group()
        try:
            arrivals.spawn(self._dispatch)
            for scheduled in self._plan.regime.schedule():
                self._sleep_until(scheduled.start_s)
                for user in self._users(scheduled):
                    self._requests.spawn(self._use, scheduled, user)
            self._sleep_until(self._plan.regime.duration_s)
            arrivals.join()
            self._requests.join(timeout=self._plan.drain_s)
        finally:
            arrivals.kill()
            self._requests.kill()

    def _dispatch(self) -> None:
        for number, due in self._arrivals():
            if self._plan.shard.has(number):
                self._sleep_until(due.scheduled_s)
                self._requests.spawn(self._attempt, due)

    def _arrivals(self) -> Iterator[tuple[int, _Due]]:
        """All open-loop requests with their numbers, in time order."""
        plan = self._plan
        name = plan.regime.phases[0].name
        for asked in plan.trace:
            request_id = f"{name}-{asked.number}"
            yield asked.number, _Due(request_id, name, asked.prompt, asked.output_tokens, asked.due_s, asked)
        for arrival in () if plan.trace else arrival_times(plan.regime, plan.seed):
            phase, prompt = arrival.phase.name, plan.prompts[arrival.number % len(plan.prompts)]
            yield arrival.number, _Due(f"{phase}-{arrival.number}", phase, prompt, plan.max_tokens, arrival.time_s)

    def _users(self, scheduled: ScheduledPhase) -> Iterator[int]:
        return (user for user in range(scheduled.phase.users or 0) if self._plan.shard.has(user))

    def _use(self, scheduled: ScheduledPhase, user: int) -> None:
        """One closed-loop user for one phase. Its prompts start at its own place, so that users do not ask in step."""
        name, asked = scheduled.phase.name, 0
        while (now_s := self._clock() - self._start_s) < scheduled.end_s:
            prompt = self._plan.prompts[(user * 17 + asked) % len(self._plan.prompts)]
            asked += 1
            if not self._attempt(_Due(f"{name}-u{user}-{asked}", name, prompt, self._plan.max_tokens, now_s)):
                self._sleep(min(FAILURE_PAUSE_S, max(scheduled.end_s - (self._clock() - self._start_s), 0.0)))

    def _attempt(self, due: _Due) -> bool:
        """Send one request and record its row, also when this greenlet is cut off. Returns whether the answer was whole."""
        began_s, start_s = self._clock(), self._wall_clock()
        result: ChatResult | None = None
        try:
            result = self._send(due.prompt, due.max_tokens)
        finally:
            if result is None:
                error = f"cut off: not answered {self._plan.drain_s:g} s after the regime's end, or the run was stopped"
                result = ChatResult(status=0, error=error, e2e_s=self._clock() - began_s)
            lag_s = max(began_s - self._start_s - due.scheduled_s, 0.0)
            self._record(_row(due, result, lag_s, start_s))
        return not result.error

    def _sleep_until(self, offset_s: float) -> None:
        while (remaining_s := self._start_s + offset_s - self._clock()) > 0:
            self._sleep(remaining_s)


def _row(due: _Due, result: ChatResult, lag_s: float, start_s: float) -> RequestRow:
    return RequestRow(
        request_id=due.request_id,
        phase=due.phase,
        scheduled_s=due.scheduled_s,
        schedule_lag_s=lag_s,
        start_s=start_s,
        ttft_s=result.ttft_s,
        tpot_s=result.tpot_s,
        e2e_s=result.e2e_s,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        asked_prompt_tokens=due.asked.prompt_tokens if due.asked else None,
        asked_output_tokens=due.asked.output_tokens if due.asked else None,
        status=result.status,
        error=result.error,
    )


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
