"""What the policy would have decided in the same run without the word of a liar: what the lie alone changed (INV-10).

Two runs that differ in one report soon differ in everything, because requests and measurements fall elsewhere, and between K
that give nearly the same, luck decides. The twin hears what the policy hears, in the same moments, but is deaf to whoever lies, and
decides with the same random numbers. Nobody runs what it decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from nightjar.loadtests.simulation.service.policy_actor import decision_rng
from nightjar.policy.fleet import decide, empty_fleet, observe, with_learned
from nightjar.policy.prior.learned import LearnedTables
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import Plan, Settings


class DeafTwin:
    """Beside the first incarnation of the actor, from its start."""

    def __init__(self, operator: OperatorSettings, prior: LearnedTables, seed: int) -> None:
        self._operator = operator
        self._seed = seed
        self._ticks = 0
        self._state = with_learned(empty_fleet(), prior)
        self._decisions: Mapping[str, Settings] = {}

    def hear(self, report: LoadReport, now_s: float) -> None:
        """Take an honest replica's report in."""
        self._state, _ = observe(self._state, report, now_s, self._operator)

    def tick(self, now_s: float) -> None:
        """Decide once, whenever the actor does."""
        self._ticks += 1
        rng = decision_rng(self._seed, 1, self._ticks)
        self._decisions, self._state = decide(self._state, self._operator, (), now_s, rng)

    def plan(self, replica_id: str) -> Plan | None:
        """What the replica would run; None for one that it never heard."""
        decision = self._decisions.get(replica_id)
        return decision.plan if decision is not None else None
