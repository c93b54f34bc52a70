"""One incarnation of the policy in virtual time: the product's controller, with what an actor loses when it dies.

It remembers what the real actor stores: its incarnation, a canary and what was learned. Everything else dies with it. Two things
differ from the real actor. The first incarnation of a scenario follows none, so that it grants leases at once, where the real one
waits until those of a predecessor would have ended (INV-6). And its random numbers are of the scenario's seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nightjar.policy.canary.trial import Trial
from nightjar.policy.controller import Controller
from nightjar.policy.issuing import Issuer
from nightjar.policy.learned import LearnedTables
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import LoadReport

SAVE_PERIOD_S = 10.0
"""How often the real actor stores what was learned."""


@dataclass(slots=True)
class Store:
    """What outlives an actor."""

    incarnation: int = 0
    learned: LearnedTables = field(default_factory=LearnedTables)
    canary: Trial | None = None


class Incarnation(Issuer):
    """From its start until it dies. `seed` and the incarnation fix its random numbers."""

    def __init__(self, operator: OperatorSettings, store: Store, seed: int, now_s: float) -> None:
        store.incarnation += 1
        super().__init__(store.incarnation)
        self.controller = Controller(operator, issuer=self)
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
