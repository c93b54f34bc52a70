"""Runs a scenario in virtual time: engines, requests, router, policy and whatever goes wrong, in the order in which it happens.

`simulate` is a pure function of its scenario (and of the files it names): all randomness comes from its seed, in streams
that do not touch one another. What is asked never depends on who decides, and an engine's own noise depends on its number
alone, so two planners face the same service (common random numbers). Fails closed: a scenario that cannot run raises
ValueError with what is allowed.

Beside the engine's own invariants (simulated_engine.py), of which SIM-1, 4 and 5 hold for the whole service, too: SIM-7 what is
asked depends on the seed alone, not on planner, router or fleet. SIM-8 records that pass the wire decide the same as records that
do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import dropwhile

from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.service.autoscaler import Wanting, look
from nightjar.loadtests.simulation.service.control_plane import LEAVES_SHADOW, ControlPlane
from nightjar.loadtests.simulation.service.fleet import Engine, EngineFactory, Fleet, node_name, replica_name
from nightjar.loadtests.simulation.service.lies import liar
from nightjar.loadtests.simulation.service.measures import Measures
from nightjar.loadtests.simulation.service.results import RunResult
from nightjar.loadtests.simulation.service.router import Router
from nightjar.loadtests.simulation.service.scenario import (
    AcceptanceScaled,
    CanaryBegins,
    Event,
    PlannerChoice,
    ReplicaJoins,
    ReplicaLeaves,
    ReplicaLies,
    Scenario,
    SpeedChanged,
    UsersChanged,
)
from nightjar.loadtests.simulation.service.timeline import Timeline
from nightjar.loadtests.simulation.service.workload import Demand, Users, user_of
from nightjar.policy.step.drafter import UNLIMITED
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import IssuedSettings, Local, RestartLimits, Settings, SettingsVersion

__all__ = ["PlannerChoice", "RunResult", "Scenario", "simulate"]

EngineBuilder = Callable[[int, float], Engine]
"""Makes a scenario's engine from its number and its speed."""

NEVER_S = 1e9
"""Settings of an engine that plans by itself never age."""


def simulate(scenario: Scenario, build_engine: EngineBuilder | None = None) -> RunResult:
    """Run a scenario to its end, with other engines than its profile's where `build_engine` makes them.

    Raises ValueError where it cannot run.
    """
    return _Run(scenario, build_engine or EngineFactory(scenario).build).result()


class _Run:
    """One run on its way."""

    def __init__(self, scenario: Scenario, build_engine: EngineBuilder) -> None:
        self._scenario = scenario
        self._build_engine = build_engine
        self._timeline = Timeline()
        self._router = Router(scenario.router, random.Random(f"router:{scenario.seed}"))  # noqa: S311
        self._fleet = Fleet(self._timeline, self._router, self._answered)
        self._measures = Measures(scenario, self._fleet)
        self._workload = scenario.workload
        if self._workload.class_shares is None:
            shares = tuple(kind.share for kind in scenario.profile.acceptance_classes)
            self._workload = replace(self._workload, class_shares=shares)
        self._users = Users(self._workload, scenario.seed)
        demands = self._workload.open_demands(scenario.seed)
        self._demands = dropwhile(lambda demand: demand.due_s < scenario.asked_from_s, demands)
        self._acceptance = scenario.acceptance
        self._starting = 0
        self._has_ended = False
        self._all_asked = False
        self._control: ControlPlane | None = None

    def result(self) -> RunResult:
        """Everything in order of time, until the end."""
        scenario, timeline = self._scenario, self._timeline
        timeline.at(scenario.duration_s, self._end)
        if scenario.planner.operator is not None:
            self._control = ControlPlane(
                operator=scenario.planner.operator,
                network=scenario.network,
                prior=scenario.planner.prior,
                timeline=timeline,
                seed=scenario.seed,
                has_liar=any(isinstance(event, ReplicaLies) for event in scenario.events),
                overrides=() if scenario.confidence is None else (LEAVES_SHADOW,),
            )
        for number in range(scenario.replicas):
            self._join(scenario.speeds[number] if number < len(scenario.speeds) else 1.0)
        for count in self._workload.user_counts():
            timeline.at(count.from_s, partial(self._set_users, count.users))
        for event in scenario.events:
            timeline.at(event.at_s, partial(self._happen, event))
        if scenario.autoscale is not None:
            timeline.at(scenario.autoscale.look_period_s, partial(self._look, Wanting()))
        timeline.at(scenario.warm_up_s, self._begin_measuring)
        self._schedule_arrival()
        while not self._has_ended:
            self._fleet.run()
            timeline.run_next()
        return self._measures.result(self._control)

    def _end(self) -> None:
        self._has_ended = True

    def _begin_measuring(self) -> None:
        aborted = self._fleet.begin_anew() if self._scenario.starts_empty else []
        self._measures.begin()
        for number in range(len(self._fleet.replicas) if aborted else 0):
            self._note_leaving(number)
        for request in aborted:
            if (user := user_of(request.number)) is not None:
                self._ask_again(user)
        if self._scenario.series:
            self._timeline.at(self._timeline.now_s + 1.0, self._note_second)

    def _note_second(self) -> None:
        self._measures.note_second(self._timeline.now_s)
        self._timeline.at(self._timeline.now_s + 1.0, self._note_second)

    def _join(self, speed: float) -> None:
        number = len(self._fleet.replicas)
        engine = self._build_engine(number, speed)
        if self._acceptance != 1.0:
            engine.scale_acceptance(self._acceptance)
        replica = self._fleet.add(engine, replica_name(number), node_name(self._scenario, number))
        if self._control is not None:
            self._control.join(replica.replica_id, engine)
        else:
            assert self._scenario.planner.local is not None
            refused = engine.adopt(local_settings(self._scenario.planner.local, self._scenario.profile.drafter.arms))
            if refused:
                raise ValueError(f"planner {self._scenario.planner.name}: {refused}")

    def _schedule_arrival(self) -> None:
        demand = next(self._demands, None)
        if demand is not None:
            self._timeline.at(demand.due_s, partial(self._arrive, demand))
        self._all_asked = demand is None

    def _arrive(self, demand: Demand) -> None:
        self._ask(demand)
        self._schedule_arrival()

    def _ask(self, demand: Demand) -> None:
        self._measures.note_asked(demand, self._fleet.submit(demand))

    def _set_users(self, count: int) -> None:
        for demand in self._users.set_count(count, self._timeline.now_s):
            self._ask(demand)

    def _answered(self, number: int, request: SimulatedRequest) -> None:
        """An engine finished a request: its user, if it has one, asks again in that moment."""
        self._measures.note_answered(request)
        user = user_of(request.number)
        if user is not None:
            assert request.finish_s is not None
            self._timeline.at(request.finish_s, partial(self._ask_again, user))
        self._note_leaving(number)
        if self._scenario.until_answered and self._all_asked and not self._fleet.in_flight:
            self._end()

    def _ask_again(self, user: int) -> None:
        demand = self._users.answered(user, self._timeline.now_s)
        if demand is not None:
            self._ask(demand)

    def _drain(self, number: int) -> None:
        self._fleet.drain(number)
        self._note_leaving(number)

    def _note_leaving(self, number: int) -> None:
        if self._fleet.has_just_left(number) and self._control is not None:
            self._control.leave(replica_name(number))

    def _look(self, wanting: Wanting) -> None:
        """One look of the autoscaler; the youngest replicas leave first."""
        rules = self._scenario.autoscale
        assert rules is not None
        now_s = self._timeline.now_s
        present = self._fleet.serving + self._starting
        wanted, wanting = look(rules, present, self._fleet.in_flight, wanting, now_s)
        for _ in range(wanted - present):
            self._starting += 1
            self._timeline.at(now_s + rules.start_up_s, self._started)
        for number in self._router.serving[::-1][: max(present - wanted, 0)]:
            self._drain(number)
        self._timeline.at(now_s + rules.look_period_s, partial(self._look, wanting))

    def _started(self) -> None:
        self._starting -= 1
        self._join(1.0)

    def _scale_acceptance(self, factor: float, number: int | None) -> None:
        if number is not None:
            self._fleet.replicas[number].engine.scale_acceptance(factor)
            return
        self._acceptance = factor
        for replica in self._fleet.replicas:
            replica.engine.scale_acceptance(factor)

    def _happen(self, event: Event) -> None:
        match event:
            case AcceptanceScaled():
                self._scale_acceptance(event.factor, event.replica)
            case SpeedChanged():
                self._fleet.replicas[event.replica].engine.speed = event.speed
            case ReplicaJoins():
                self._join(event.speed)
            case ReplicaLeaves():
                self._drain(event.replica)
            case UsersChanged():
                self._set_users(event.users)
            case CanaryBegins() if self._control is not None:
                self._control.begin_canary(event.order)
            case ReplicaLies() if self._control is not None:
                self._control.agents[replica_name(event.replica)].lie = liar(event.lie)


def local_settings(plan: Local, ks: tuple[int, ...]) -> IssuedSettings:
    """What an engine gets once, when it decides by itself: every K, no dwell, restarts as it likes."""
    settings = Settings(
        mode=Mode(kind="auto"),
        plan=plan,
        allowed_num_speculative_tokens=ks,
        settings_max_age_s=NEVER_S,
        restarts=RestartLimits(micro_restart_tokens=UNLIMITED),
    )
    return IssuedSettings(version=SettingsVersion(incarnation=1, sequence=1), settings=settings)
