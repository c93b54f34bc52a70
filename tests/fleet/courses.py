"""What a run on the real cluster was like: the course of each replica in virtual time, and measures of several together.

Nothing here is read from the machine's clock. Numbers are those of engines (steps, tokens, regret, restarts) at whole seconds of
the scenario, and what the policy's journal says of leases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nightjar.cluster.storage.journal import JournalEntry
from nightjar.loadtests.simulation.engine.leases import LeasedRestart
from nightjar.loadtests.simulation.service.results import Totals
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import ExplorationSegment, IssuedSettings, Table


@dataclass(frozen=True, slots=True)
class ReplicaCourse:
    """One replica from second 0 on, or from when it joined.

    `totals[n]` are the engine's sums at second n + 1, `state` is its drafter's at the end. `adopted` are the settings that came
    into force, in order, `adopted_before_first_request` how many of them before the first request (None: there was none).
    `steps_by_k` counts all steps at each K.
    """

    replica_id: str
    totals: tuple[Totals, ...]
    state: DrafterState
    leased_restarts: tuple[LeasedRestart, ...]
    adopted: tuple[IssuedSettings, ...]
    adopted_before_first_request: int | None
    steps_by_k: Mapping[int, int]

    @property
    def plan(self) -> Table:
        """The last one."""
        plan = self.adopted[-1].settings.plan
        assert isinstance(plan, Table)
        return plan

    @property
    def segments(self) -> tuple[ExplorationSegment, ...]:
        """Every measurement it was told to make."""
        tables = (plan for issued in self.adopted if isinstance(plan := issued.settings.plan, Table))
        return tuple({segment.segment_id: segment for table in tables for segment in table.segments}.values())


def between(courses: Iterable[ReplicaCourse], since_s: int, until_s: int) -> Totals:
    """Sums of all replicas over these seconds; second 0 is the start."""
    found = Totals()
    for course in courses:
        found += course.totals[until_s - 1] - (course.totals[since_s - 1] if since_s else Totals())
    return found


def share_of_best(totals: Totals) -> float:
    """Expected tokens of pure decode steps over what the best K of each would have given (1: the oracle)."""
    return totals.expected_tokens / totals.best_tokens if totals.best_tokens else math.nan


def most_leases_at_once(entries: Iterable[JournalEntry], replica_ids: Iterable[str]) -> int:
    """The most leases of these replicas that were in force at once, by the settings that the policy decided."""
    held = dict.fromkeys(replica_ids, 0)
    most = 0
    for entry in entries:
        held |= {
            replica_id: len(issued.settings.restarts.leases) for replica_id, issued in entry.decided.items() if replica_id in held
        }
        most = max(most, sum(held.values()))
    return most
