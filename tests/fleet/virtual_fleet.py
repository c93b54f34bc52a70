"""A fleet of hosted replicas in one process and in virtual time: agents, records and the policy service are the real ones.

The event loop's clock is the time of everything: of the engines, of the agents' periods and the policy's. It stands still while
code runs and jumps where all wait, so a run gives the same numbers on any machine, however busy. What is not here is Ray: reports
and settings go straight from agent to service and back, in wire form. fleet_cluster.py has such a fleet on a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.journal import JournalEntry
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.protocol import MemoryJournal, running_service
from tests.fleet.courses import ReplicaCourse
from tests.fleet.hosted_engine import Hosted, Part, ScenarioClock, courses_of, end_agents

T = TypeVar("T")

PATIENCE_S: Final = 300.0
"""Virtual, until whatever is waited for counts as never coming."""
LOOK_PERIOD_S: Final = 1.0
APART_S: Final = 0.03
"""Between the beginnings of two agents, which then report at moments of their own."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while code runs, and jumps to the next timer where all wait.

    looptime's, which other tests take, rounds to microseconds: whoever is due in less than that, by its own sums, asks it for ever.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__()
        selector = self._selector  # type: ignore[attr-defined]  # asyncio's, private
        look = selector.select

        def jump(timeout: float | None) -> object:
            assert timeout is not None, "all wait, and for no time"
            self._now_s += timeout
            return look(0)

        selector.select = jump

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s


@dataclass(frozen=True, slots=True)
class WirePolicy:
    """The policy as an agent sees it: everything crosses as bytes."""

    service: PolicyService

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        """Report, and wait for news."""
        async with asyncio.timeout(timeout_s):
            reply = await self.service.exchange(report.to_wire())
        return ExchangeReply.from_wire(reply.to_wire())


class VirtualFleet:
    """Replicas that begin together, and the policy service that steers them. Every method takes virtual time alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: PolicyService, journal: MemoryJournal) -> None:
        self._loop = loop
        self._service = service
        self._journal = journal
        self._clock = ScenarioClock(loop.time)
        self._replicas: dict[str, Hosted] = {}

    def start(self, parts: Sequence[Part], settings: Mapping[str, object]) -> None:
        """Agents and idle engines of these parts, until every engine runs what the operator set."""
        self._clock = ScenarioClock(self._loop.time)
        self._replicas = {}
        self._run(self._service.configure(settings))
        self._join(parts)

    def join(self, part: Part) -> None:
        """One more replica, idle until it is given users; return when its engine runs what the operator set."""
        self._join([part])

    def begin(self) -> None:
        """Second 0 is now, for all engines."""
        self._clock.begin(self._loop.time())

    def set_users(self, replica_id: str, users: int) -> None:
        """From now on the service of one replica has so many users."""
        self._replicas[replica_id].engine.set_users(users)

    def until(self, holds: Callable[[Mapping[str, ReplicaCourse]], bool], what: str) -> None:
        """Look at every replica's course once a second, by id, until `holds`."""
        self._look_until(lambda: holds(self.courses()), what)

    def courses(self) -> dict[str, ReplicaCourse]:
        """Every replica's course until now, by id. Raises what ended an agent."""
        return courses_of(self._replicas)

    def end(self) -> dict[str, ReplicaCourse]:
        """End the scenario with the next whole second, and its agents: every replica's course until then, by id."""
        at_s = float(math.ceil(self._clock.now_s))
        self._clock.end(at_s)
        self._run(self._clock.wait_for(at_s))
        courses = self.courses()
        self.end_agents()
        return courses

    def end_agents(self) -> None:
        """Nobody reports any more."""
        self._run(end_agents(self._replicas.values()))
        self._replicas = {}

    def status(self) -> FleetStatus:
        """The fleet as the policy sees it now."""

        async def now() -> FleetStatus:
            return self._service.status()

        return self._run(now())

    def journal(self) -> list[JournalEntry]:
        """What the policy wrote so far."""
        return list(self._journal.entries)

    def _join(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._run(self._begin_agent(part))
        wanted = {part.replica_id for part in parts}

        def all_confirmed() -> bool:
            return wanted <= {replica.replica_id for replica in self.status().replicas if replica.settings_confirmed}

        self._look_until(all_confirmed, f"settings of {len(parts)} replicas")

    async def _begin_agent(self, part: Part) -> None:
        self._replicas[part.replica_id] = Hosted.begin(part, self._clock, WirePolicy(self._service), "node")
        await asyncio.sleep(APART_S)

    def _look_until(self, holds: Callable[[], bool], what: str) -> None:
        until_s = self._loop.time() + PATIENCE_S
        while not holds():
            assert self._loop.time() < until_s, f"{what}: not within {PATIENCE_S:g} s"
            self._run(asyncio.sleep(LOOK_PERIOD_S))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)


@contextlib.contextmanager
def virtual_fleet() -> Iterator[VirtualFleet]:
    """A policy service without replicas, on a loop of its own; both end with the block."""
    loop = JumpingLoop()
    journal = MemoryJournal()
    running = running_service(journal=journal)
    fleet = VirtualFleet(loop, loop.run_until_complete(running.__aenter__()), journal)
    try:
        yield fleet
    finally:
        fleet.end_agents()
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.close()
