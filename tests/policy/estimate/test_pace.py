"""Replicas that are slower or faster than their group: what they measure stands beside what the others did."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.estimate.evidence import CellEvidence, Evidence
from nightjar.policy.estimate.pace import MOST_LOG_SHARE, Pace, Slopes, followed, offsets
from nightjar.policy.estimate.pooling import Pending, merge
from tests.policy.engines import Fleet, Replica, step_seconds

CELL = (3, 2)


def voice(step_seconds: float, steps: float = 10.0, rows: float = 5.0) -> CellEvidence:
    log_seconds = math.log(step_seconds)
    return CellEvidence(steps, steps * log_seconds, steps * rows, 0.0, steps * log_seconds**2)


def test_a_slow_replicas_pace_is_learned_and_a_common_shift_is_nobodys() -> None:
    fleet = Fleet([Replica("slow", speed=0.8), *(Replica(f"r{number}") for number in range(4))])
    fleet.run(10.0)
    above = offsets({name: replica.pace for name, replica in fleet.state.replicas.items()})
    assert above["slow"] == pytest.approx(math.log(1 / 0.8), abs=0.03)
    assert all(abs(above[f"r{number}"]) < 0.03 for number in range(4))


def test_where_slow_replicas_measured_off_and_fast_ones_speculation_the_difference_is_no_gain() -> None:
    """Off and K = 2 take equally long here; without the correction K = 2 would seem a quarter faster."""
    slow, fast = math.log(1.0 / 0.8), 0.0
    pending = {f"slow{number}": Pending({(3, 0): voice(0.125)}) for number in range(3)}
    pending |= {f"fast{number}": Pending({CELL: voice(0.1)}) for number in range(3)}
    shares = {name: slow if name.startswith("slow") else fast for name in pending}
    evidence, _ = merge(Evidence(), pending, 1e12, offsets=shares)
    assert evidence.cells[3, 0].step_seconds == pytest.approx(evidence.cells[CELL].step_seconds, rel=1e-3)
    biased, _ = merge(Evidence(), pending, 1e12)
    assert biased.cells[3, 0].step_seconds == pytest.approx(1.25 * biased.cells[CELL].step_seconds, rel=1e-3)


def test_a_replica_alone_in_its_group_has_no_pace() -> None:
    assert offsets({"a": Pace(1000.0, 500.0)}) == {"a": 0.0}


def test_replicas_that_never_measured_move_nobodys_pace() -> None:
    spoken = {"slow": Pace(1000.0, 200.0), "fast": Pace(1000.0, -100.0), "usual": Pace(1000.0, 50.0)}
    silent = {f"idle{number}": Pace() for number in range(5)}
    assert offsets(spoken | silent) == offsets(spoken) | dict.fromkeys(silent, 0.0)


def test_inv_10_no_report_makes_a_pace_of_more_than_twice() -> None:
    known = {CELL: voice(0.1)}
    pace = followed(Pace(), {CELL: voice(100.0, steps=1e9)}, known, Slopes())
    assert pace.expected_log_share <= MOST_LOG_SHARE


def test_a_fuller_batch_in_the_same_bucket_is_not_taken_for_a_slower_card() -> None:
    """Rows differ within a bucket: where step time grows with rows, longer steps at more rows say nothing of the card."""
    fleet = Fleet(
        [Replica(f"r{number}", batch=64) for number in range(2)] + [Replica(f"s{number}", batch=79) for number in range(2)]
    )
    fleet.run(20.0)
    above = offsets({name: replica.pace for name, replica in fleet.state.replicas.items()})
    naive = math.log(step_seconds(79, fleet.planned(64)) / step_seconds(64, fleet.planned(64)))
    assert above["s0"] - above["r0"] < 0.8 * naive


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(-5.0, 5.0)), max_size=20))
def test_a_pace_lies_within_what_was_seen_and_nothing_seen_is_none(seen: list[tuple[float, float]]) -> None:
    pace = Pace()
    for steps, log_share in seen:
        pace = pace.plus(steps, log_share)
    shares = [min(max(log_share, -MOST_LOG_SHARE), MOST_LOG_SHARE) for _, log_share in seen] or [0.0]
    assert min(*shares, 0.0) - 1e-9 <= pace.expected_log_share <= max(*shares, 0.0) + 1e-9


@given(st.floats(1.0, 1e4), st.floats(-8.0, 3.0), st.floats(0.0, 0.5), st.floats(-0.7, 0.7))
def test_taking_a_pace_off_moves_the_mean_and_leaves_the_scatter(
    steps: float, log_seconds: float, deviation: float, log_share: float
) -> None:
    squared = steps * (log_seconds**2 + deviation**2)
    moved = CellEvidence(steps, steps * log_seconds, steps, 0.0, squared).faster_by(log_share)
    mean = moved.log_seconds / steps
    assert mean == pytest.approx(log_seconds - log_share, abs=1e-9)
    if squared:
        assert moved.log_seconds_squared / steps - mean**2 == pytest.approx(deviation**2, abs=1e-6)
