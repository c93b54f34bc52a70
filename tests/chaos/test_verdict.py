"""The verdict on a run: what counts as failed, stale, and above the budget."""

from __future__ import annotations

import math
from dataclasses import replace

from nightjar.loadtests.simulation.engine.leases import LeasedRestart
from tests.chaos.events import Event, EventKind, Version
from tests.chaos.verdict import Observed, Replayed, failed_requests, leased_restarts, stale_applied
from tests.upgrade.crowd import Answer


def event(kind: EventKind, at_s: float = 0.0, *, replica: str = "r1", request: str = "", version: Version | None = None) -> Event:
    return Event(replica, at_s, kind, request=request, version=version)


def answer(request: str, began_s: float, ended_s: float, failure: str = "") -> Answer:
    return Answer(began_s, ended_s, is_stream=False, cluster="" if failure else "r1", failure=failure, request=request)


FINE = Observed(
    endured=(),
    answers=(answer("a", 0.0, 1.0),),
    events=(event(EventKind.ADOPTED, version=(1, 1)), event(EventKind.ADOPTED, version=(1, 2))),
    died_s={},
    most_leases=1,
    replayed=Replayed(ticks=3, differing_ticks=0, skipped_ticks=0, incarnations=1),
)


def test_a_run_in_which_all_holds_has_nothing_broken() -> None:
    assert FINE.broken() == []


def test_a_failed_request_is_excused_where_the_replica_that_had_it_was_killed() -> None:
    events = [event(EventKind.REQUEST_BEGAN, 1.0, replica="dead", request="a")]
    failed = failed_requests([answer("a", 1.0, 3.0, "reset")], events, {"dead": 2.0})
    assert [one.request for one in failed.in_flight] == ["a"]
    assert failed.others == ()


def test_a_failed_request_is_not_excused_where_its_replica_lives_or_had_ended_it_or_nobody_died_meanwhile() -> None:
    events = [
        event(EventKind.REQUEST_BEGAN, 1.0, replica="alive", request="a"),
        event(EventKind.REQUEST_BEGAN, 1.0, replica="dead", request="b"),
        event(EventKind.REQUEST_ENDED, 1.5, replica="dead", request="b"),
    ]
    answers = [answer("a", 1.0, 3.0, "500"), answer("b", 1.0, 3.0, "500"), answer("never begun", 5.0, 6.0, "500")]
    failed = failed_requests(answers, events, {"dead": 2.0})
    assert failed.in_flight == ()
    assert len(failed.others) == 3
    assert len(replace(FINE, answers=(*FINE.answers, *answers)).broken()) == 3


def test_of_many_failed_requests_the_first_are_told_and_the_rest_are_counted() -> None:
    answers = [answer(f"request {number}", 5.0, 6.0, "500") for number in range(8)]
    broken = replace(FINE, answers=(*FINE.answers, *answers)).broken()
    assert (len(broken), broken[-1]) == (6, "and 3 more of them")


def test_a_request_that_no_replica_began_is_excused_where_one_was_killed_while_it_was_under_way() -> None:
    failed = failed_requests([answer("a", 1.0, 3.0, "reset")], [], {"dead": 2.0})
    assert len(failed.in_flight) == 1


def test_settings_are_stale_that_are_not_newer_than_all_before_of_the_same_engine() -> None:
    versions = [("r1", (2, 5)), ("r2", (1, 9)), ("r1", (1, 9)), ("r1", (2, 5)), ("r1", (3, 1)), ("r2", (2, 1))]
    events = [event(EventKind.ADOPTED, replica=replica, version=version) for replica, version in versions]
    assert [(one.replica_id, one.version) for one in stale_applied(events)] == [("r1", (1, 9)), ("r1", (2, 5))]
    assert len(replace(FINE, events=tuple(events)).broken()) == 2


def test_a_restart_without_an_end_ended_with_its_replica_or_goes_on() -> None:
    events = [event(EventKind.RESTART_BEGAN, 1.0, replica="dead"), event(EventKind.RESTART_BEGAN, 4.0, replica="alive")]
    assert leased_restarts(events, {"dead": 3.0}) == (LeasedRestart(1.0, 3.0, False), LeasedRestart(4.0, math.inf, False))


def test_restarts_are_above_the_budget_that_begin_while_as_many_run_as_are_allowed() -> None:
    events = [
        event(EventKind.RESTART_BEGAN, 1.0, replica="r1"),
        event(EventKind.RESTART_ENDED, 3.0, replica="r1"),
        event(EventKind.RESTART_BEGAN, 2.0, replica="r2"),
        event(EventKind.RESTART_ENDED, 4.0, replica="r2"),
    ]
    observed = replace(FINE, events=tuple(events))
    assert (observed.most_restarts_at_once, observed.over_budget) == (2, 1)
    assert observed.broken() == ["1 leased restarts above the budget of 1 at once"]


def test_a_replay_that_differs_or_found_nothing_is_told() -> None:
    assert replace(FINE, replayed=replace(FINE.replayed, differing_ticks=1)).broken()
    assert replace(FINE, replayed=replace(FINE.replayed, ticks=0)).broken()
