"""Reports up, settings down, in virtual time: agents that exchange with the policy actor over a network that may fail.

The agent's side runs the code that deployments/agent.py runs (policy/exchange.py), the actor's side follows
cluster/service/policy_service.py (a call is parked until there is news or its period ends). Messages may be delayed, lost and
doubled, each by itself, so they also overtake one another; the actor may die and come back as the next incarnation. A perfect
network delivers in the same moment. Engines never wait for any of it (INV-4): they run on with the settings they have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from nightjar.loadtests.simulation.service.timeline import Action, Timeline
from nightjar.policy.controller import Controller
from nightjar.policy.exchange import Reporting
from nightjar.policy.issuer import Issuer
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.canary.order import CanaryOrder
from nightjar.policy.operator.canary.trial import Trial, begin
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings, SettingsVersion


@dataclass(frozen=True, slots=True)
class Network:
    """How messages travel between agents and the policy, each by itself, and when the actor dies.

    Delays are lognormal with median `delay_s` and `delay_sigma`; 0 s is at once. `loss` and `duplication` are shares of messages.
    A lost message is noticed after `exchange_timeout_s`. With `on_the_wire` every record is packed and parsed, as in production.
    The actor dies at each of `deaths_s` and is back `down_s` later.
    """

    delay_s: float = 0.0
    delay_sigma: float = 1.0
    loss: float = 0.0
    duplication: float = 0.0
    exchange_timeout_s: float = 30.0
    on_the_wire: bool = False
    deaths_s: tuple[float, ...] = ()
    down_s: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.loss < 1 and 0 <= self.duplication <= 1 and self.delay_s >= 0 and self.delay_sigma >= 0):
            raise ValueError(f"{self}: loss below 1, duplication up to 1 and delays from 0 are allowed")

    @property
    def is_perfect(self) -> bool:
        """Whether every message arrives once, at once."""
        return not (self.delay_s or self.loss or self.duplication)


PERFECT: Final = Network()


LEAVES_SHADOW: Final = ModeOverride(scope="fleet", mode=Mode(kind="auto"))
"""By hand: what lets engines be steered beside vLLM's adaptive verification, where auto of the settings means shadow."""


class ReportingEngine(Protocol):
    """An engine as its agent sees it."""

    def report(self) -> LoadReport:
        """What the agent would send now."""

    def adopt(self, issued: IssuedSettings) -> str:
        """Take settings into force or confirm those in force. Returns "" or why they were refused."""

    def wait_until(self, now_s: float) -> None:
        """An idle engine's clock moves on."""


@dataclass(slots=True)
class Agent:
    """One replica's side. `exchange` numbers the call in flight, 0 without one."""

    engine: ReportingEngine
    lie: Callable[[LoadReport], bytes] | None = None
    exchange: int = 0
    exchanges: int = 0
    reporting: Reporting = field(default_factory=Reporting)
    has_left: bool = False


@dataclass(slots=True)
class Parked:
    """A call that waits at the actor, and what its replica said it runs."""

    exchange: int
    known: SettingsVersion | None


class ControlPlane:
    """The policy actor, all agents and the network between them. `rng` is the network's and the agents' alone.

    Where a replica lies, `reference` decides beside the actor, at the same moments and with the same random numbers, on the reports
    of the others alone. Its decisions reach no replica: they show what the lie changed (INV-10). Two runs, one without the liar,
    would differ in which requests and measurements fall where, too.
    """

    def __init__(
        self,
        *,
        operator: OperatorSettings,
        network: Network,
        prior: LearnedTables | None,
        timeline: Timeline,
        seed: int,
        has_liar: bool = False,
        overrides: tuple[ModeOverride, ...] = (),
    ) -> None:
        self.store = Store(learned=prior or LearnedTables())
        self.refusals = 0
        self._operator = operator
        self._overrides = overrides
        self._network = network
        self._timeline = timeline
        self._rng = random.Random(f"control plane:{seed}")  # noqa: S311
        self._seed = seed
        self.reference: Incarnation | None = None
        if has_liar:
            self.reference = Incarnation(operator, Store(learned=self.store.learned), seed, timeline.now_s, overrides)
        self._agents: dict[str, Agent] = {}
        self._parked: dict[str, Parked] = {}
        self.actor: Incarnation | None = None
        self._start()
        for death_s in network.deaths_s:
            timeline.at(death_s, self._die)
            timeline.at(death_s + network.down_s, self._start)
        timeline.at(timeline.now_s + operator.decision_period_s, self._tick)

    @property
    def agents(self) -> Mapping[str, Agent]:
        """By replica id, those that left included."""
        return self._agents

    @property
    def canary(self) -> Trial | None:
        """The one that runs, or ran last; of a dead actor as it was stored."""
        return self.store.canary if self.actor is None else self.actor.controller.state.canary

    def join(self, replica_id: str, engine: ReportingEngine) -> None:
        """A replica starts: its first report comes some time within one period, so that replicas do not report in step."""
        agent = self._agents[replica_id] = Agent(engine)
        first_s = self._timeline.now_s + self._rng.random() * self._operator.exchange_period_s
        self._timeline.at(first_s, lambda: self._report(replica_id, agent))

    def begin_canary(self, order: CanaryOrder) -> None:
        """An operator lets some replicas try something; a dead actor hears of it from what is stored."""
        self.store.canary = begin(order, self._timeline.now_s)
        if self.actor is not None:
            self.actor.controller.state = replace(self.actor.controller.state, canary=self.store.canary)

    def leave(self, replica_id: str) -> None:
        """A replica is gone: it reports no more, and nothing reaches it."""
        self._agents[replica_id].has_left = True

    def _start(self) -> None:
        if self.actor is None:
            self.actor = Incarnation(self._operator, self.store, self._seed, self._timeline.now_s, self._overrides)

    def _die(self) -> None:
        """Calls that are parked break, and their agents notice."""
        if self.actor is not None:
            self.refusals += self.actor.refusals
        self.actor = None
        broken, self._parked = self._parked, {}
        for replica_id, parked in broken.items():
            self._send(lambda replica_id=replica_id, parked=parked: self._failed(replica_id, parked.exchange))  # type: ignore[misc]

    def _tick(self) -> None:
        self._timeline.at(self._timeline.now_s + self._operator.decision_period_s, self._tick)
        if self.actor is None:
            return
        if self.reference is not None:
            self.reference.tick(self._timeline.now_s)
        for replica_id in self.actor.tick(self._timeline.now_s):
            if replica_id in self._parked:
                self._release(replica_id, self._parked[replica_id])
        for replica_id in [name for name in self._parked if name not in self.actor.slots]:
            self._release(replica_id, self._parked[replica_id])

    def _report(self, replica_id: str, agent: Agent) -> None:
        if agent.has_left or agent.exchange:
            return
        now_s = self._timeline.now_s
        agent.engine.wait_until(now_s)
        report = agent.engine.report()
        agent.exchanges += 1
        agent.exchange = exchange = agent.exchanges
        agent.reporting.begins(report.snapshot.settings_version, now_s)
        message: LoadReport | bytes = report
        if agent.lie is not None:
            message = agent.lie(report)
        elif self._network.on_the_wire:
            message = report.to_wire()
        if self._network.loss:
            self._timeline.at(now_s + self._network.exchange_timeout_s, lambda: self._failed(replica_id, exchange))
        self._send(lambda: self._arrived(replica_id, exchange, message))

    def _arrived(self, replica_id: str, exchange: int, message: LoadReport | bytes) -> None:
        """A report at the actor: its call is parked unless there is news, or answered with the refusal."""
        actor, now_s = self.actor, self._timeline.now_s
        if actor is None:
            self._send(lambda: self._failed(replica_id, exchange))
            return
        report, refused = actor.take(message, now_s)
        if self.reference is not None and report is not None and self._agents[replica_id].lie is None:
            self.reference.controller.observe(report, now_s)
        if report is None:
            self._reply(replica_id, exchange, ExchangeReply(incarnation=actor.incarnation, refused=refused[:1024]))
            return
        parked = self._parked.get(replica_id)
        if parked is not None:
            self._release(replica_id, parked)
        slot = actor.slots[replica_id]
        parked = self._parked[replica_id] = Parked(exchange, slot.known)
        if slot.has_unsent_news:
            self._release(replica_id, parked)
        else:
            self._timeline.at(now_s + self._operator.exchange_period_s, lambda: self._release(replica_id, parked))

    def _release(self, replica_id: str, parked: Parked) -> None:
        """Answer a parked call; one that was answered meanwhile is left alone."""
        if self.actor is None or self._parked.get(replica_id) is not parked:
            return
        del self._parked[replica_id]
        issued = self.actor.give(replica_id, parked.known) if replica_id in self.actor.slots else None
        self._reply(replica_id, parked.exchange, ExchangeReply(incarnation=self.actor.incarnation, issued=issued))

    def _reply(self, replica_id: str, exchange: int, reply: ExchangeReply) -> None:
        if not self._network.on_the_wire:
            self._send(lambda: self._answered(replica_id, exchange, reply))
            return
        payload = reply.to_wire()
        self._send(lambda: self._answered(replica_id, exchange, ExchangeReply.from_wire(payload)))

    def _answered(self, replica_id: str, exchange: int, reply: ExchangeReply) -> None:
        """A reply at the agent. Settings of a late or doubled one are looked at, too: the fence keeps out what is old (INV-5)."""
        agent, now_s = self._agents[replica_id], self._timeline.now_s
        if agent.has_left:
            return
        reporting = agent.reporting
        if exchange != agent.exchange:
            if reply.issued is not None and not reporting.stale(reply):
                reporting.issued = reply.issued
                self._hand_over(agent)
            return
        agent.exchange = 0
        is_heard, _ = reporting.ends(reply, now_s)
        if is_heard:
            self._hand_over(agent)
        self._timeline.at(max(reporting.next_report_s, now_s), lambda: self._report(replica_id, agent))

    def _hand_over(self, agent: Agent) -> None:
        assert agent.reporting.issued is not None
        agent.engine.wait_until(self._timeline.now_s)
        agent.engine.adopt(agent.reporting.issued)

    def _failed(self, replica_id: str, exchange: int) -> None:
        agent = self._agents[replica_id]
        if exchange == agent.exchange and not agent.has_left:
            agent.exchange = 0
            agent.reporting.fails(self._timeline.now_s)
            self._timeline.at(agent.reporting.next_report_s, lambda: self._report(replica_id, agent))

    def _send(self, deliver: Action) -> None:
        """Deliver a message: once and now by a perfect network, else late, twice or never."""
        network = self._network
        if network.is_perfect:
            deliver()
            return
        copies = 2 if self._rng.random() < network.duplication else 1
        for _ in range(copies):
            if self._rng.random() >= network.loss:
                delay_s = network.delay_s * math.exp(network.delay_sigma * self._rng.gauss(0.0, 1.0))
                self._timeline.at(self._timeline.now_s + delay_s, deliver)


SAVE_PERIOD_S: Final = 10.0
"""How often the real actor stores what was learned."""


@dataclass(slots=True)
class Store:
    """What outlives an actor."""

    incarnation: int = 0
    learned: LearnedTables = field(default_factory=LearnedTables)
    canary: Trial | None = None


class Incarnation(Issuer):
    """The product's controller in virtual time, from its start until it dies. `seed` and the incarnation fix its random numbers.

    It remembers what the real actor stores: its incarnation, a canary and what was learned. Everything else dies with it. Two
    things differ from the real actor. The first incarnation of a scenario follows none, so that it grants leases at once, where the
    real one waits until those of a predecessor would have ended (INV-6). And its random numbers are of the scenario's seed.
    """

    def __init__(
        self, operator: OperatorSettings, store: Store, seed: int, now_s: float, overrides: tuple[ModeOverride, ...] = ()
    ) -> None:
        store.incarnation += 1
        super().__init__(store.incarnation)
        self.controller = Controller(operator, issuer=self)
        self.controller.overrides = overrides
        self.controller.take_up(store.learned, now_s, canary=store.canary)
        if self.incarnation > 1:
            self.controller.await_leases(now_s)
        self.refusals = 0
        self._store = store
        self._seed = seed
        self._saved_s = now_s
        self._ticks = 0
        self._changed: list[str] = []

    def take(self, message: LoadReport | bytes, now_s: float) -> tuple[LoadReport | None, str]:
        """Take a report in. Returns it, None where its call is answered at once, and "" or why it was refused."""
        try:
            report = message if isinstance(message, LoadReport) else LoadReport.from_wire(message)
        except WireError as error:
            self.refusals += 1
            return None, str(error)
        taken = self.controller.take(report, now_s)
        self.refusals += bool(taken.refused)
        return (report if taken.is_admitted else None), taken.refused

    def tick(self, now_s: float) -> list[str]:
        """Decide once. Returns the replicas whose settings changed."""
        self._ticks += 1
        rng = random.Random(f"{self._seed}:{self.incarnation}:{self._ticks}")  # noqa: S311
        if self.controller.rise_above(0, now_s):
            self._store.incarnation = self.incarnation
        self.controller.tick(now_s, rng)
        canary = self.controller.state.canary
        if canary is not None and canary.is_worth_storing(self._store.canary):
            self._store.canary = canary
        if now_s - self._saved_s >= SAVE_PERIOD_S:
            self._saved_s = now_s
            self.controller.note_learned()
            self._store.learned = self.controller.learned
        changed, self._changed = self._changed, []
        return changed

    def _news(self, replica_id: str) -> None:
        self._changed.append(replica_id)
