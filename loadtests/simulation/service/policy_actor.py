"""The policy actor in virtual time: the fleet's decisions and their versions, with what an actor loses when it dies.

Runs the functions that the real actor runs (policy/fleet.py, policy/issuing.py) and remembers what that one stores: its
incarnation and what was learned. Everything else dies with it. A successor waits until its predecessor's leases have ended, as
the real one does (INV-6); the first of a scenario follows nobody and need not wait.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from nightjar.policy.canary.trial import Trial, resumed
from nightjar.policy.fleet import decide, empty_fleet, learned, observe, with_learned, without_grants
from nightjar.policy.issuing import Issuer
from nightjar.policy.prior.learned import LearnedTables
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import LoadReport

SAVE_PERIOD_S = 10.0
"""How often the real actor stores what was learned."""


def decision_rng(seed: int, incarnation: int, ticks: int) -> random.Random:
    """The random numbers of an actor's `ticks`-th decision."""
    return random.Random(f"{seed}:{incarnation}:{ticks}")  # noqa: S311


@dataclass(slots=True)
class Store:
    """What outlives an actor."""

    incarnation: int = 0
    learned: LearnedTables = field(default_factory=LearnedTables)
    canary: Trial | None = None


class PolicyActor(Issuer):
    """One incarnation, from its start until it dies. `seed` and the incarnation fix its random numbers."""

    def __init__(self, operator: OperatorSettings, store: Store, seed: int, now_s: float) -> None:
        store.incarnation += 1
        super().__init__(store.incarnation)
        self.state = with_learned(empty_fleet(), store.learned)
        if store.canary is not None:
            self.state = replace(self.state, canary=resumed(store.canary, now_s))
        if self.incarnation > 1:
            self.state = without_grants(self.state, now_s)
        self.refusals = 0
        self._operator = operator
        self._store = store
        self._seed = seed
        self._saved_s = now_s
        self._ticks = 0
        self._changed: list[str] = []

    def take(self, message: LoadReport | bytes, now_s: float) -> tuple[LoadReport | None, str]:
        """Take a report in. Returns it, None where the bytes are none, and "" or why it was refused."""
        try:
            report = message if isinstance(message, LoadReport) else LoadReport.from_wire(message)
        except WireError as error:
            self.refusals += 1
            return None, str(error)
        refused = self.admit(report)
        if refused:
            self.refusals += 1
            return None, refused
        self.state, ignored = observe(self.state, report, now_s, self._operator)
        self.refusals += bool(ignored)
        return report, ignored

    def tick(self, now_s: float) -> list[str]:
        """Decide once. Returns the replicas whose settings changed."""
        self._ticks += 1
        if self.raise_incarnation(0):
            self._store.incarnation = self.incarnation
            self.state = without_grants(self.state, now_s)
        rng = decision_rng(self._seed, self.incarnation, self._ticks)
        decisions, self.state = decide(self.state, self._operator, (), now_s, rng)
        self._store.canary = self.state.canary
        self.keep_only(decisions)
        for replica_id, settings in decisions.items():
            self.post(replica_id, settings)
        if now_s - self._saved_s >= SAVE_PERIOD_S:
            self._saved_s = now_s
            self._store.learned = learned(self.state)
        changed, self._changed = self._changed, []
        return changed

    def _news(self, replica_id: str) -> None:
        self._changed.append(replica_id)
