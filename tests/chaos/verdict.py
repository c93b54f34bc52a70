"""What a run under faults was like: counts, from what users saw, what replicas wrote down, and who was killed when.

Pure. Four things are counted that must not be: requests that failed without having been in flight on what was killed, settings
that an engine adopted after newer ones (INV-5), restarts under a lease above the budget (INV-6), and ticks that replay to other
decisions (INV-7). Times are seconds of CLOCK_MONOTONIC. Nothing is judged by how long it took.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nightjar.loadtests.simulation.engine.leases import LeasedRestart, begun_above, most_at_once
from tests.chaos.events import Event, EventKind, Version
from tests.chaos.schedule import Fault
from tests.upgrade.crowd import Answer

MOST_TOLD: Final = 5
"""Failed requests that are told one by one: an outage has hundreds."""


@dataclass(frozen=True, slots=True)
class Proof:
    """That a fault happened, in words, and the replicas that it killed."""

    words: str
    killed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endured:
    """One fault from `began_s` until all was well again at `recovered_s`; it was over, or done, at `over_s`."""

    fault: Fault
    began_s: float
    over_s: float
    recovered_s: float
    proof: Proof


@dataclass(frozen=True, slots=True)
class Replayed:
    """What deciding everything again found."""

    ticks: int
    differing_ticks: int
    skipped_ticks: int
    incarnations: int

    @property
    def is_equal(self) -> bool:
        """Whether something was replayed and every decision is the same (INV-7)."""
        return self.ticks > 0 and self.differing_ticks == 0


@dataclass(frozen=True, slots=True)
class FailedRequests:
    """Those that were not answered in full: `in_flight` were on a replica that was killed, `others` have no such excuse."""

    in_flight: tuple[Answer, ...]
    others: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a run left behind. `died_s` says when a replica was killed; `most_leases` is the group's budget."""

    endured: tuple[Endured, ...]
    answers: tuple[Answer, ...]
    events: tuple[Event, ...]
    died_s: Mapping[str, float]
    most_leases: int
    replayed: Replayed

    def within(self, from_s: float, to_s: float) -> Observed:
        """The same with the faults that began, and the requests that ended, in a stretch of time alone."""
        return replace(
            self,
            endured=tuple(one for one in self.endured if from_s <= one.began_s < to_s),
            answers=tuple(answer for answer in self.answers if from_s <= answer.ended_s < to_s),
        )

    @property
    def failed(self) -> FailedRequests:
        """Requests that failed, by whether what was killed had them."""
        return failed_requests(self.answers, self.events, self.died_s)

    @property
    def stale_delivered(self) -> int:
        """Answers with older settings that reached an agent after newer ones."""
        return sum(event.kind is EventKind.STALE for event in self.events)

    @property
    def stale_applied(self) -> tuple[Event, ...]:
        """Settings that an engine adopted though it had adopted newer ones before."""
        return stale_applied(self.events)

    @property
    def restarts(self) -> tuple[LeasedRestart, ...]:
        """Restarts by lease, as engines did them."""
        return leased_restarts(self.events, self.died_s)

    @property
    def most_restarts_at_once(self) -> int:
        """The most of them at one time."""
        return most_at_once(self.restarts)

    @property
    def over_budget(self) -> int:
        """Those that began while as many as are allowed ran already."""
        return begun_above(self.restarts, lambda at_s: self.most_leases)

    def broken(self) -> list[str]:
        """What does not hold, in words; empty where everything does."""
        others = self.failed.others
        found = [f"failed request that was on nothing that was killed: {answer}" for answer in others[:MOST_TOLD]]
        if len(others) > MOST_TOLD:
            found.append(f"and {len(others) - MOST_TOLD} more of them")
        found += [f"stale settings applied: {event.version} by replica {event.replica_id}" for event in self.stale_applied]
        if self.over_budget:
            found.append(f"{self.over_budget} leased restarts above the budget of {self.most_leases} at once")
        if not self.replayed.is_equal:
            found.append(f"the replay is not equal: {self.replayed}")
        return found


def failed_requests(answers: Iterable[Answer], events: Sequence[Event], died_s: Mapping[str, float]) -> FailedRequests:
    """Sort the failed ones. In flight on a killed replica were those that it had begun and not ended, and those that were under way
    when one was killed and that no replica ever began.
    """
    begun_by: dict[str, set[str]] = defaultdict(set)
    ended = {(event.request, event.replica_id) for event in events if event.kind is EventKind.REQUEST_ENDED}
    for event in events:
        if event.kind is EventKind.REQUEST_BEGAN:
            begun_by[event.request].add(event.replica_id)

    def was_in_flight(answer: Answer) -> bool:
        by = begun_by.get(answer.request, set())
        if not by:
            return any(answer.began_s <= at_s <= answer.ended_s for at_s in died_s.values())
        return any(replica in died_s and (answer.request, replica) not in ended for replica in by)

    failures = [answer for answer in answers if answer.failure]
    return FailedRequests(
        in_flight=tuple(answer for answer in failures if was_in_flight(answer)),
        others=tuple(answer for answer in failures if not was_in_flight(answer)),
    )


def stale_applied(events: Iterable[Event]) -> tuple[Event, ...]:
    """Adoptions that were not newer than all before of the same engine."""
    newest: dict[str, Version] = {}
    stale = []
    for event in events:
        if event.kind is not EventKind.ADOPTED or event.version is None:
            continue
        if event.version <= newest.get(event.replica_id, (-1, -1)):
            stale.append(event)
        newest[event.replica_id] = max(event.version, newest.get(event.replica_id, (-1, -1)))
    return tuple(stale)


def leased_restarts(events: Iterable[Event], died_s: Mapping[str, float]) -> tuple[LeasedRestart, ...]:
    """Begin and end of each restart by lease. One without an end ended with its replica, or goes on."""
    begun: dict[str, float] = {}
    restarts = []
    for event in events:
        if event.kind is EventKind.RESTART_BEGAN:
            begun[event.replica_id] = event.at_s
        elif event.kind is EventKind.RESTART_ENDED and event.replica_id in begun:
            restarts.append(LeasedRestart(begun.pop(event.replica_id), event.at_s, is_reload=False))
    restarts += [LeasedRestart(at_s, died_s.get(replica, math.inf), is_reload=False) for replica, at_s in begun.items()]
    return tuple(restarts)
