"""What engines are told of OFF: measured buckets only, and again only when it is news."""

from __future__ import annotations

import pytest

from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.settings import OffStep
from tests.policy.engines import Fleet, Replica, step_seconds, table


def off_steps(fleet: Fleet) -> tuple[OffStep, ...]:
    return table(fleet.decisions["a"]).off_steps


def test_engines_learn_what_off_takes_where_it_was_measured() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(0.5)
    assert off_steps(fleet) == ()
    fleet.run(8.0)
    (told,) = off_steps(fleet)
    assert told.decode_rows == pytest.approx(16)
    assert told.step_seconds == pytest.approx(step_seconds(16, 0), rel=0.05)


def test_more_of_the_same_is_no_news() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(8.0)
    told = off_steps(fleet)
    fleet.run(4.0)
    assert off_steps(fleet) == told


def test_status_says_what_the_guard_holds_off() -> None:
    fleet = Fleet([])
    report = Replica("a").report()
    fleet.observe(report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"held_buckets": (3, 0)})}))
    fleet.decide()
    _, (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert replica.reason.startswith("the guard holds batch 4-5, 1 off: speculation measured worse than off; ")
