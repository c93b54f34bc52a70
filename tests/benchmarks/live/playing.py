"""A load on the live system and what it gave: what every section measures with.

Time is the client's. What the engines say they did is read over the policy's API, from counters that never reset: it tells which K
ran, and that clients got what engines generated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nightjar.loadtests.arms.samples import EngineHistory, StatusSample, WorkByK, all_work
from nightjar.loadtests.load.goodput import Goodput, GoodputTarget, pooled
from tests.benchmarks.engine.fixture import questions
from tests.benchmarks.live.answers import Answer, goodput_between, tokens_between, tokens_of_whole_steps
from tests.benchmarks.live.applications import OURS
from tests.benchmarks.live.arms import TABLE
from tests.benchmarks.live.chat_client import open_client
from tests.benchmarks.live.crowd import Crowd, Deck
from tests.benchmarks.live.system import LiveSystem
from tests.benchmarks.measuring.outcome import Tell

SETTLES_WITHIN_S: Final = 120.0
CUT_OFF_S: Final = 3.0
"""What a stock engine, which reports no requests, needs at most to let go of those that were cut off: its longest step."""
POLL_PERIOD_S: Final = 0.5
QUESTIONS: Final = questions(140)
"""Every pair of a subject and a kind once."""

T = TypeVar("T")


def question(number: int) -> str:
    """The words of a question, by its number."""
    return QUESTIONS[number % len(QUESTIONS)]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of load: what clients got of it and what our engines did meanwhile, by K."""

    seconds: float
    tokens: int
    work: WorkByK
    steady_tokens: float
    """What `tokens` would be if the window began and ended with a step: for loads that stand still."""
    goodput: Goodput | None = None
    """Of the requests that ended in it, where a target was asked for."""

    @property
    def speed(self) -> float:
        """Tokens per second, of all replicas together."""
        return self.tokens / self.seconds

    @property
    def steady_speed(self) -> float:
        """The same of a load that stands still."""
        return self.steady_tokens / self.seconds

    @property
    def steps_by_k(self) -> dict[str, int]:
        """Engine steps at each K."""
        return {f"K={length}": work.steps for length, work in self.work.items()}


class Player:
    """Plays loads, one at a time, and counts every request of all of them."""

    def __init__(self, system: LiveSystem, tell: Tell, target: GoodputTarget | None = None) -> None:
        """`target`: also the goodput under it, of every window."""
        self.system = system
        self.target = target
        self._tell = tell
        self.requests = 0
        self.errors: list[str] = []
        self._client_tokens = self._engine_tokens = 0

    def play(self, arm: str, names: Sequence[str], deck: Deck, script: Callable[[Crowd], Awaitable[T]]) -> tuple[T, list[Answer]]:
        """Have the system run an arm, and a crowd at these replicas do what `script` says; the answers, ended or cut off."""
        self.system.run_arm(arm)
        found, answers = asyncio.run(self._play(names, deck, script))
        if arm == TABLE:
            time.sleep(CUT_OFF_S)
        self.requests += len(answers)
        failed = [f"{arm}, {answer.replica}: {answer.error}" for answer in answers if answer.error]
        for error in failed:
            self._tell(f"FAILED: {error}")
        self.errors += failed
        return found, answers

    def steady(self, arm: str, rows: int, deck: Deck, settle_s: float, measure_s: float) -> Window:
        """So many users at each replica. What comes before all have read their prompts, and the arm runs, is not measured."""

        async def script(crowd: Crowd) -> tuple[StatusSample, StatusSample]:
            crowd.resize(rows)
            await asyncio.sleep(settle_s)
            await self._until_settled(arm, rows)
            first = await self.look()
            await asyncio.sleep(measure_s)
            return first, await self.look()

        (first, last), answers = self.play(arm, OURS, deck, script)
        return self.window(answers, first, last)

    def window(self, answers: Sequence[Answer], first: StatusSample, last: StatusSample) -> Window:
        """What came between two looks, and what our engines did; noted for `clients_over_engines`."""
        seen = window(answers, first, last, self.target)
        if seen.work:
            self._client_tokens += seen.tokens
            self._engine_tokens += all_work(seen.work).generated_tokens
        return seen

    async def look(self) -> StatusSample:
        """The fleet now, timed by the clock of the answers."""
        return await asyncio.to_thread(self._look)

    def clients_over_engines(self) -> float:
        """Tokens that clients of our replicas got in all windows, over those that the engines say they generated in them.

        Near 1: what an engine last counted may be half a second old, at the beginning of a window as at its end.
        """
        return self._client_tokens / self._engine_tokens if self._engine_tokens else 1.0

    async def _play(self, names: Sequence[str], deck: Deck, script: Callable[[Crowd], Awaitable[T]]) -> tuple[T, list[Answer]]:
        async with open_client() as client, Crowd(client, self.system.urls(names), deck) as crowd:
            found = await script(crowd)
        return found, crowd.answers

    async def _until_settled(self, arm: str, rows: int) -> None:
        deadline_s = time.monotonic() + SETTLES_WITHIN_S
        while not await asyncio.to_thread(self.system.is_settled, arm, rows):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{arm} does not run at every replica after {SETTLES_WITHIN_S:g} s: {self.system.seen()}")
            await asyncio.sleep(POLL_PERIOD_S)

    def _look(self) -> StatusSample:
        status = self.system.status()
        return StatusSample(time_s=time.monotonic(), status=status)


def window(answers: Sequence[Answer], first: StatusSample, last: StatusSample, target: GoodputTarget | None = None) -> Window:
    """What came, and what was done, between two looks."""
    work = EngineHistory([first, last]).work(first.time_s, last.time_s)
    from_s, to_s = first.time_s, last.time_s
    goodput = goodput_between(answers, from_s, to_s, target) if target else None
    tokens, steady_tokens = tokens_between(answers, from_s, to_s), tokens_of_whole_steps(answers, from_s, to_s)
    return Window(to_s - from_s, tokens, work, steady_tokens, goodput)


def goodput_cell(windows: Sequence[Window]) -> str:
    """Of several windows together: share within the target, and their tokens a second; a dash where nothing was counted."""
    together = pooled([(one.goodput, one.seconds) for one in windows if one.goodput])
    return "-" if together is None or together.share is None else f"{together.share:.1%}, {together.tokens_per_s:.1f}"


def goodput_title(what: str, target: GoodputTarget) -> str:
    """Of a table with such cells."""
    return f"{what}: share of requests within {target}, tokens/s of those"
