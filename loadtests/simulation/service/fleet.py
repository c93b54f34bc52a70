"""The replicas of a simulated service: engines, how a scenario makes them, and the router in front of them.

Engines run strictly in order of their clocks, each until the next thing that concerns it: another engine that is behind it, or
an action on the timeline. So a request that one engine answers may be followed by the next at that very moment, wherever
that goes, and nothing is submitted to the past. Conserves requests: each is answered once, aborted or still in an engine (SIM-1).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Protocol

import numpy as np

from nightjar.loadtests.simulation.engine.draft_memory import HostLink
from nightjar.loadtests.simulation.engine.leases import LeasedRestart
from nightjar.loadtests.simulation.engine.random_numbers import draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.engine.step_account import EngineTotals
from nightjar.loadtests.simulation.rivals import FOR_COMPARISON
from nightjar.loadtests.simulation.service.control_plane import ReportingEngine
from nightjar.loadtests.simulation.service.results import Totals
from nightjar.loadtests.simulation.service.router import Router
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.timeline import Timeline
from nightjar.loadtests.simulation.service.workload import Demand
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.planners.local import LocalPlannerFactory
from nightjar.policy.wire.report import DrafterState


class Engine(ReportingEngine, Protocol):
    """A simulated engine, as the service drives it."""

    now_s: float
    speed: float
    leased_restarts: list[LeasedRestart]

    @property
    def totals(self) -> EngineTotals:
        """Sums since the start."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    @property
    def decode_batch_size(self) -> int:
        """Decode rows of the last step, 0 when idle."""

    @property
    def num_waiting(self) -> int:
        """Requests in the engine that do not run."""

    @property
    def guard_trips(self) -> int:
        """Times that the guard held speculation off, since the start."""

    @property
    def drafter_state(self) -> DrafterState:
        """Where the drafter is in its life."""

    def step(self) -> Sequence[SimulatedRequest]:
        """Run one engine step; returns what was answered in full."""

    def submit(self, request: SimulatedRequest) -> None:
        """Take a request that arrives now; an idle engine's clock is there already."""

    def begin_anew(self) -> Sequence[SimulatedRequest]:
        """Drop every request that is here, and go on with the noise of an engine's second beginning; returns what was dropped."""

    def scale_acceptance(self, factor: float) -> None:
        """Acceptance of all classes is `factor` times the profile's from now on."""


@dataclass(slots=True)
class Replica:
    """One engine and when it came. `before` is what it had summed up when measuring began, `outputs_before` how many steps with
    decode rows it had made."""

    replica_id: str
    node_id: str
    engine: Engine
    joined_s: float
    before: Totals
    is_running: bool = False
    is_draining: bool = False
    left_s: float = math.inf
    outputs_before: int = 0

    @property
    def has_left(self) -> bool:
        """Whether it drained and went."""
        return self.left_s < math.inf

    @property
    def measured(self) -> Totals:
        """Totals since measuring began."""
        return totals_of(self.engine) - self.before


class Fleet:
    """All replicas by their number, those that left included. `answered` hears of every answer, at the engine's time."""

    def __init__(self, timeline: Timeline, router: Router, answered: Callable[[int, SimulatedRequest], None]) -> None:
        self.replicas: list[Replica] = []
        self._timeline = timeline
        self._router = router
        self._answered = answered
        self._running: list[tuple[float, int]] = []

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas)

    @property
    def serving(self) -> int:
        """Replicas that get requests."""
        return len(self._router.serving)

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return sum(self._router.in_flight(number) for number in range(len(self.replicas)))

    def add(self, engine: Engine, replica_id: str, node_id: str) -> Replica:
        """Put an engine into service now."""
        engine.wait_until(self._timeline.now_s)
        replica = Replica(replica_id, node_id, engine, self._timeline.now_s, totals_of(engine))
        self.replicas.append(replica)
        self._router.join(len(self.replicas) - 1)
        return replica

    def drain(self, number: int) -> None:
        """A replica gets no new requests; `has_just_left` says when it has gone."""
        self._router.drain(number)
        self.replicas[number].is_draining = True

    def has_just_left(self, number: int) -> bool:
        """Whether a draining replica has nothing more to do; True once."""
        replica = self.replicas[number]
        if not replica.is_draining or replica.has_left or self._router.in_flight(number):
            return False
        replica.left_s = self._timeline.now_s
        return True

    def submit(self, demand: Demand) -> SimulatedRequest:
        """Send a request where the router says."""
        number = self._router.pick(demand.user)
        replica = self.replicas[number]
        replica.engine.wait_until(demand.due_s)
        request = request_of(demand)
        replica.engine.submit(request)
        if not replica.is_running:
            replica.is_running = True
            heapq.heappush(self._running, (replica.engine.now_s, number))
        return request

    def begin_anew(self) -> list[SimulatedRequest]:
        """Drop every request in flight: each engine is empty as soon as the step that it is in has ended, and from then on meets
        the same noise in the same step, whatever it did before."""
        aborted: list[SimulatedRequest] = []
        for number, replica in enumerate(self.replicas):
            dropped = replica.engine.begin_anew()
            for _ in dropped:
                self._router.answered(number)
            aborted += dropped
        return aborted

    def run(self) -> None:
        """Run steps until no engine is behind the next action on the timeline; answers may put new ones there."""
        running, timeline = self._running, self._timeline
        while running and running[0][0] < timeline.next_s:
            number = running[0][1]
            replica = self.replicas[number]
            engine, step = replica.engine, replica.engine.step
            limit_s = timeline.next_s
            for behind in running[1:3]:  # one of a heap's second and third entries is its second smallest
                if behind[0] < limit_s:
                    limit_s = behind[0]
            while True:
                answers = step()
                if answers:
                    self._take(number, answers)
                    limit_s = min(limit_s, timeline.next_s)
                if not engine.has_work:
                    heapq.heappop(running)
                    replica.is_running = False
                    break
                if engine.now_s >= limit_s:
                    heapq.heapreplace(running, (engine.now_s, number))
                    break

    def _take(self, number: int, answers: Sequence[SimulatedRequest]) -> None:
        for request in answers:
            self._router.answered(number)
            self._answered(number, request)


ALL_LOCAL_PLANNERS: Final[Mapping[str, LocalPlannerFactory]] = {**LOCAL_PLANNERS, **FOR_COMPARISON}


class EngineFactory:
    """Makes the engines of one scenario: every replica on its node, whose host link it shares, with all planners."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._links: dict[str, HostLink] = {}

    def build(self, number: int, speed: float) -> SimulatedEngine:
        """The engine of replica `number`. Its noise follows from the seed and its number alone."""
        scenario = self._scenario
        node_id = node_name(scenario, number)
        link = None
        if scenario.offload:
            bandwidth = scenario.profile.drafter.host_link_bytes_per_s
            link = self._links.setdefault(node_id, HostLink(bandwidth))
        return SimulatedEngine(
            scenario.profile,
            replica_id=replica_name(number),
            mechanics=scenario.mechanics,
            seed=int(np.random.SeedSequence((scenario.seed, number)).generate_state(1)[0]),
            local_planners=ALL_LOCAL_PLANNERS,
            speed=speed,
            host_link=link,
            node_id=node_id,
            catch_up_chunk_tokens=scenario.catch_up_chunk_tokens,
            track_regret=scenario.track_regret,
            draws=draws_of(scenario.seed),
            confidence=scenario.confidence,
        )


def request_of(demand: Demand) -> SimulatedRequest:
    """What an engine is given of a demand."""
    asked = demand.prompt_tokens, demand.output_tokens, demand.acceptance_class, demand.cached_tokens
    return SimulatedRequest(demand.number, demand.due_s, *asked)


def replica_name(number: int) -> str:
    """A replica's id in reports and results.

    >>> replica_name(7)
    'replica-7'
    """
    return f"replica-{number}"


def node_name(scenario: Scenario, number: int) -> str:
    """The node that replica `number` stands on."""
    return f"node-{number // scenario.replicas_per_node}"


def totals_of(engine: Engine) -> Totals:
    """An engine's sums as a value."""
    return Totals(*read_sums(engine.totals))


read_sums: Callable[[EngineTotals], tuple[Any, ...]] = attrgetter(*(field.name for field in fields(Totals)))
"""The sums that Totals holds, by the same names."""
