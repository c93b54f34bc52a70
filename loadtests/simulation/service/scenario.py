"""A scenario: everything that a simulated run depends on. Two runs of one scenario give the same bytes (SIM-5).

Frozen values throughout, so that scenarios travel to other processes. Fails closed: numbers that make no run raise ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.service.autoscaler import Autoscale
from nightjar.loadtests.simulation.service.control_plane import PERFECT, Network
from nightjar.loadtests.simulation.service.lies import Lie
from nightjar.loadtests.simulation.service.router import RouterKind
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.canary.order import CanaryOrder
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import Local


@dataclass(frozen=True, slots=True)
class PlannerChoice:
    """Who decides K: a planner of the fleet (`operator`), or one that every engine runs by itself (`local`), never both.

    `prior` is what the policy had learned before the run: a warm start.
    """

    name: str
    operator: OperatorSettings | None = None
    local: Local | None = None
    prior: LearnedTables | None = None

    def __post_init__(self) -> None:
        if (self.operator is None) == (self.local is None):
            raise ValueError(f"planner {self.name}: give operator or local, one of them")
        if self.operator is None and self.prior is not None:
            raise ValueError(f"planner {self.name}: a prior needs a planner of the fleet")


@dataclass(frozen=True, slots=True)
class AcceptanceScaled:
    """From `at_s` on conditional acceptance of all classes is `factor` times the profile's: everywhere, or at one replica."""

    at_s: float
    factor: float
    replica: int | None = None


@dataclass(frozen=True, slots=True)
class SpeedChanged:
    """From `at_s` on one replica runs its steps `speed` times as fast as the profile says."""

    at_s: float
    replica: int
    speed: float


@dataclass(frozen=True, slots=True)
class ReplicaJoins:
    """A new replica serves from `at_s` on; it gets the next free number."""

    at_s: float
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class ReplicaLeaves:
    """From `at_s` on a replica gets no new requests; it goes when its last one is answered."""

    at_s: float
    replica: int


@dataclass(frozen=True, slots=True)
class UsersChanged:
    """From `at_s` on there are so many closed-loop users, whatever the regime said last."""

    at_s: float
    users: int


@dataclass(frozen=True, slots=True)
class ReplicaLies:
    """From `at_s` on one replica's reports are lies."""

    at_s: float
    replica: int
    lie: Lie


@dataclass(frozen=True, slots=True)
class CanaryBegins:
    """At `at_s` an operator lets a share of the replicas try something."""

    at_s: float
    order: CanaryOrder


Event = AcceptanceScaled | SpeedChanged | ReplicaJoins | ReplicaLeaves | UsersChanged | ReplicaLies | CanaryBegins


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: what serves, what is asked, who decides, what goes wrong, and what is looked at.

    Rates and users of the workload are those of the whole service. What happens before `warm_up_s` is left out of every
    measure; with `starts_empty` the requests that are in flight then are aborted (a closed-loop user asks anew at once), so that
    nobody takes a backlog or a full batch into what is measured. Open-loop requests that are due before `asked_from_s` are not
    asked: who learns nothing needs no long warm-up. `acceptance` times the profile's is every conditional acceptance from the start
    (other texts than its own). `speeds` are those of the first replicas (1: as the profile says).
    `replicas_per_node` share a node's host link, which matters with `offload` (the operator's settings must allow it, too).
    `catch_up_chunk_tokens` is the most that an engine recomputes in one step, settings may lower it; None: everything at once.
    With `until_answered` the run ends with the last answer to open-loop requests, before `duration_s` where that is later.
    `confidence`: how sure the drafters of vLLM's adaptive verification are, which runs in each engine (draft_budget.py); None: it
    does not run. `goodput` is a target whose requests are counted. `series` keeps one row a second, `track_regret` compares every
    step with the best K; both cost time.
    """

    profile: Profile
    workload: Workload
    planner: PlannerChoice
    duration_s: float
    warm_up_s: float = 0.0
    starts_empty: bool = False
    asked_from_s: float = 0.0
    acceptance: float = 1.0
    replicas: int = 1
    seed: int = 0
    mechanics: Mechanics = Mechanics.DORMANT
    router: RouterKind = "least_loaded"
    network: Network = field(default=PERFECT)
    autoscale: Autoscale | None = None
    events: tuple[Event, ...] = ()
    speeds: tuple[float, ...] = ()
    replicas_per_node: int = 1
    catch_up_chunk_tokens: int | None = 2048
    offload: bool = False
    until_answered: bool = False
    confidence: float | None = None
    goodput: GoodputTarget | None = None
    series: bool = False
    track_regret: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up_s < self.duration_s:
            raise ValueError(f"warm_up_s {self.warm_up_s:g}, allowed are 0 up to duration_s {self.duration_s:g}")
        if not 0 <= self.asked_from_s <= self.warm_up_s:
            raise ValueError(f"asked_from_s {self.asked_from_s:g}, allowed are 0 to warm_up_s {self.warm_up_s:g}")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence {self.confidence:g}, allowed are 0 to 1")
        if self.replicas < 1 or self.replicas_per_node < 1:
            raise ValueError(f"replicas {self.replicas}, replicas_per_node {self.replicas_per_node}: at least 1 each")
        if len(self.speeds) > self.replicas:
            raise ValueError(f"{len(self.speeds)} speeds for {self.replicas} replicas")
        if any(not event.at_s >= 0 for event in self.events):
            raise ValueError("events happen at 0 s or later")
