"""A simulated engine with its users, run at the pace of a clock, behind the control channel of a real one.

The engine, its draws and what its users ask are the simulator's for the same scenario and number. So a replica here differs from
the same replica there in who carries reports and settings, and in when they arrive: here a real agent does, over a real wire. The
simulator's virtual seconds are seconds of that clock: the machine's, or an event loop's that jumps. An engine is run up to the
present moment whenever somebody asks, so that no late agent holds it up (INV-4), and it takes commands between two of its steps.

Refuses what a simulated engine does not have, the kill switch, as a real engine refuses a command it cannot take.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from nightjar.deployments.agent import EngineControl, Metrics, Policy, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine_watch import EngineWatch
from nightjar.loadtests.simulation.service.fleet import EngineFactory, request_of, totals_of
from nightjar.loadtests.simulation.service.results import Totals
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.timeline import Timeline
from nightjar.loadtests.simulation.service.workload import Demand, Users, user_of
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, IssuedSettings
from tests.fleet.courses import ReplicaCourse


class ScenarioClock:
    """Seconds of a scenario: none pass before `begin`, and none after `end`.

    In between they are seconds of `clock`. The default is CLOCK_MONOTONIC, which is the same in all processes of a machine: engines
    that were told to begin at one moment share their virtual time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = self._ends_s = math.inf

    def begin(self, at_s: float) -> None:
        """The scenario's second 0 is at this moment of the clock."""
        self._began_s = at_s

    def end(self, at_s: float) -> None:
        """No second after this one comes."""
        self._ends_s = at_s

    @property
    def now_s(self) -> float:
        """The scenario's time."""
        return min(max(self._clock() - self._began_s, 0.0), self._ends_s)

    async def wait_for(self, at_s: float) -> None:
        """Return when it is `at_s`, at once if it was already or never will be."""
        if self._began_s < math.inf:
            await asyncio.sleep(max(min(at_s, self._ends_s) - self.now_s, 0.0))


@dataclass(frozen=True, slots=True)
class Part:
    """One replica of a scenario: the engine and the users that the simulator would give replica `number` there.

    `most_stride_s` is how many seconds the engine runs at most between two control calls. A machine so busy that agents are late
    then slows the engine as well, so that losses do not grow with lateness; but replicas do not share their time any more.
    """

    replica_id: str
    scenario: Scenario
    number: int
    most_stride_s: float = math.inf


class HostedEngine(EngineControl):
    """One replica's engine and its closed-loop users. Users stay with their replica, as the simulator's router `sticky` has it."""

    def __init__(self, part: Part, clock: ScenarioClock) -> None:
        scenario = part.scenario
        speed = scenario.speeds[part.number] if part.number < len(scenario.speeds) else 1.0
        self._part = part
        self._clock = clock
        self._engine = EngineFactory(scenario).build(part.number, speed)
        self._users = Users(scenario.workload, scenario.seed)
        self._timeline = Timeline()
        self._called_at_s = self._ran_until_s = clock.now_s
        self._totals: list[Totals] = []
        self._adopted: list[IssuedSettings] = []
        self._adopted_before_first_request: int | None = None
        for count in scenario.workload.user_counts():
            self._timeline.at(count.from_s, partial(self._set_users, count.users))
        self._timeline.at(1.0, self._note_second)

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Apply a command between two steps and answer the snapshot, both in wire form on their way."""
        self._ran_until_s, self._called_at_s = self._now_s, self._clock.now_s
        self.run_until(self._ran_until_s)
        await asyncio.sleep(max(self._engine.now_s - self._ran_until_s, 0.0))
        return EngineSnapshot.from_wire(self.control(command.to_wire()))

    def control(self, payload: bytes) -> bytes:
        """What deployments.engine.scheduler.control does with a command, now."""
        try:
            refused = self._apply(EngineCommand.from_wire(payload))
        except WireError as error:
            refused = str(error)
        return self._engine.report().snapshot.model_copy(update={"refused": refused}).to_wire()

    def set_users(self, users: int) -> None:
        """From now on the service has so many users, whatever its scenario says."""
        self._timeline.at(self._now_s, partial(self._set_users, users))

    def run_until(self, until_s: float) -> None:
        """Let everything happen that is due by then. A step under way is ended, so the engine's clock may stand after it."""
        while self._timeline.next_s <= until_s:
            self._work_until(self._timeline.next_s)
            self._timeline.run_next()
        self._work_until(until_s)
        self._engine.wait_until(until_s)

    def course(self) -> ReplicaCourse:
        """What happened until now."""
        self.run_until(self._now_s)
        counters = self._engine.report().snapshot.counters
        return ReplicaCourse(
            replica_id=self._part.replica_id,
            totals=tuple(self._totals),
            state=self._engine.drafter_state,
            leased_restarts=tuple(self._engine.leased_restarts),
            adopted=tuple(self._adopted),
            adopted_before_first_request=self._adopted_before_first_request,
            steps_by_k={totals.num_speculative_tokens: totals.steps for totals in counters.totals},
        )

    @property
    def _now_s(self) -> float:
        """The engine's present: where it was at the last control call, and what may have passed since."""
        return self._ran_until_s + min(self._clock.now_s - self._called_at_s, self._part.most_stride_s)

    def _apply(self, command: EngineCommand) -> str:
        if command.local_mode is not None:
            return "a simulated engine has no kill switch"
        if self._adopted and command.confirmed == self._adopted[-1].version:
            self._engine.adopt(self._adopted[-1])
        if command.issued is None:
            return ""
        refused = self._engine.adopt(command.issued)
        if not refused:
            self._adopted.append(command.issued)
        return refused

    def _work_until(self, until_s: float) -> None:
        engine = self._engine
        while engine.has_work and engine.now_s < until_s:
            for answered in engine.step():
                user = user_of(answered.number)
                assert user is not None
                demand = self._users.answered(user, engine.now_s)
                if demand is not None:
                    self._submit(demand)

    def _set_users(self, count: int) -> None:
        """All users of the service begin; those of other replicas wait here for ever, for answers that come elsewhere."""
        for demand in self._users.set_count(count, self._timeline.now_s):
            assert demand.user is not None
            if demand.user % self._part.scenario.replicas == self._part.number:
                self._submit(demand)

    def _submit(self, demand: Demand) -> None:
        if self._adopted_before_first_request is None:
            self._adopted_before_first_request = len(self._adopted)
        self._engine.wait_until(demand.due_s)
        self._engine.submit(request_of(demand))

    def _note_second(self) -> None:
        self._totals.append(totals_of(self._engine))
        self._timeline.at(self._timeline.now_s + 1.0, self._note_second)


class UnseenMetrics(Metrics):
    """Exports nothing: what a replica exports is looked at elsewhere, and Ray knows one replica in a process."""

    def begin(self) -> None:
        """See Metrics."""

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        """See Metrics."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """One replica: its engine, and the loop that carries reports and settings."""

    engine: HostedEngine
    agent: asyncio.Task[None]

    @classmethod
    def begin(cls, part: Part, clock: ScenarioClock, policy: Policy, node_id: str) -> Self:
        """An idle engine, whose agent reports to this policy from now on."""
        engine, group = HostedEngine(part, clock), part.scenario.profile.group
        identity = ReplicaIdentity(part.replica_id, application="fleet", deployment="LLM", node_id=node_id, group=group)
        agent = ReplicaAgent(engine=engine, policy=policy, identity=identity, watch=EngineWatch(), metrics=UnseenMetrics())
        return cls(engine, asyncio.create_task(agent.run()))


def courses_of(replicas: Mapping[str, Hosted]) -> dict[str, ReplicaCourse]:
    """Every replica's course until now, by id. Raises what ended an agent."""
    for hosted in replicas.values():
        if hosted.agent.done():
            hosted.agent.result()
    return {replica_id: hosted.engine.course() for replica_id, hosted in replicas.items()}


async def end_agents(replicas: Iterable[Hosted]) -> None:
    """They report no more."""
    agents = [hosted.agent for hosted in replicas]
    for agent in agents:
        agent.cancel()
    await asyncio.gather(*agents, return_exceptions=True)
