"""The guard's numbers, a step at a time and without noise: when it suspects, checks, trips and forgets (docs/restarts.md)."""

from __future__ import annotations

import pytest

from nightjar.policy.step.guard import OffGuard
from nightjar.policy.wire.settings import OffStep

ROWS, K, OFF_S = 8, 3, 0.01


def judged(expected_s: float = OFF_S) -> OffGuard:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=ROWS, step_seconds=expected_s)])
    return guard


def speculate(guard: OffGuard, cost: float, now_s: float) -> None:
    """A step that takes `cost` OFF steps and yields what one OFF step would."""
    guard.count(ROWS, K, ROWS, cost * OFF_S, now_s)


def lose_until_checked(guard: OffGuard, cost: float, now_s: float, step_s: float = 0.125) -> float:
    """Steps that lose, until the guard checks; the time of the last."""
    for number in range(2000):
        speculate(guard, cost, now_s + number * step_s)
        if guard.holding:
            return now_s + number * step_s
    raise AssertionError("the loss was never suspected")


def check(guard: OffGuard, cost: float, now_s: float) -> float:
    """Twelve OFF steps that end a check; their time."""
    for _ in range(12):
        guard.count(ROWS, 0, ROWS, cost * OFF_S, now_s)
    return now_s


def trip(guard: OffGuard, now_s: float) -> float:
    """Checks that find OFF cheaper, until the guard trips; the time of the trip."""
    trips = guard.trips
    while guard.trips == trips:
        now_s = check(guard, 1.0, lose_until_checked(guard, 2.0, now_s))
    return now_s


@pytest.mark.parametrize(("cost", "steps"), [(1.06, 352), (1.2, 185), (2.0, 105), (5.0, 129)])
def test_a_loss_from_the_first_step_on_is_suspected_as_soon_as_its_scatter_is_known(cost: float, steps: int) -> None:
    assert lose_until_checked(judged(), cost, 0.0, step_s=1.0) + 1 == steps


def calmed() -> OffGuard:
    """After so many steps at parity that even a small loss stands out at once."""
    guard = judged()
    for number in range(600):
        speculate(guard, 1.0, -100.0 + number * 0.01)
    return guard


def test_a_clear_loss_after_calm_steps_is_suspected_at_its_sixteenth_step() -> None:
    assert lose_until_checked(calmed(), 1.5, 0.0, step_s=1.0) == 15.0


@pytest.mark.parametrize(("losing", "calm", "more"), [(15, 0, 1), (15, 1, 2), (15, 3, 4)])
def test_a_step_takes_back_no_more_suspicion_than_another_gave(losing: int, calm: int, more: int) -> None:
    guard = calmed()
    costs = [1.3] * losing + [0.7] * calm + [1.3] * more
    for number, cost in enumerate(costs):
        assert guard.holding == 0
        speculate(guard, cost, float(number))
    assert guard.holding == 1


def test_a_loss_of_little_more_than_a_twentieth_is_watched_with_patience_however_alike_steps_are() -> None:
    assert lose_until_checked(calmed(), 1.052, 0.0, step_s=1.0) == 79.0, "a fifth of suspicion a step"


def test_steps_before_a_loss_are_no_part_of_what_its_check_compares() -> None:
    guard = judged()
    for now_s in (0.0, 50.0):
        for number in range(40):
            speculate(guard, 1.0, now_s + number * 0.01)
        check(guard, 1.9, lose_until_checked(guard, 2.0, now_s + 1.0))
    assert guard.trips == 1


def test_a_loss_is_checked_when_it_has_lasted_five_seconds() -> None:
    assert lose_until_checked(calmed(), 1.5, 1.0) == 6.0


def test_a_loss_that_ended_before_five_seconds_counts_for_nothing_later() -> None:
    guard = calmed()
    for number in range(30):
        speculate(guard, 1.5, 1.0 + number * 0.125)
    for number in range(30):
        speculate(guard, 0.5, 5.0 + number * 0.01)
    assert lose_until_checked(guard, 5.0, 6.0) >= 11.0


def test_a_check_is_twelve_off_steps() -> None:
    guard = judged()
    now_s = lose_until_checked(guard, 2.0, 0.0)
    for _ in range(11):
        guard.count(ROWS, 0, ROWS, OFF_S, now_s)
        assert guard.holds(ROWS, now_s)
    guard.count(ROWS, 0, ROWS, OFF_S, now_s)
    assert guard.holding == 0


@pytest.mark.parametrize(("off_cost", "trips"), [(1.9, 1), (1.95, 0)])
def test_off_must_be_cheaper_by_three_hundredths_in_both_checks(off_cost: float, trips: int) -> None:
    guard = judged()
    for now_s in (0.0, 100.0):
        # Past what the check before taught: only the comparison in the check tells.
        checked_s = check(guard, off_cost, lose_until_checked(guard, 2.0, now_s))
        assert guard.trips == (trips if now_s else 0)
        assert guard.held_buckets(checked_s) == ((5,) if guard.trips else ())


@pytest.mark.parametrize(("later_s", "trips"), [(120.0, 1), (120.5, 0)])
def test_a_second_check_counts_within_two_minutes_of_the_first(later_s: float, trips: int) -> None:
    guard = judged()
    first_s = check(guard, 1.0, lose_until_checked(guard, 2.0, 0.0))
    lose_until_checked(guard, 2.0, first_s + 95.0)
    check(guard, 1.0, first_s + later_s)
    assert guard.trips == trips


def test_a_check_that_finds_no_loss_takes_an_earlier_doubt_back() -> None:
    guard = judged()
    for now_s, off_cost in ((0.0, 1.0), (30.0, 2.0), (100.0, 1.0)):
        check(guard, off_cost, lose_until_checked(guard, 2.0, now_s))
    assert guard.trips == 0


def test_what_a_check_measured_corrects_the_expectation_for_a_minute() -> None:
    guard = judged()
    checked_s = check(guard, 2.0, lose_until_checked(guard, 2.0, 0.0))
    assert lose_until_checked(guard, 2.0, checked_s + 10.0) == checked_s + 60.125 + 5.0


@pytest.mark.parametrize(("second", "trusted_s"), [(2.08, 900.0), (2.12, 60.0)])
def test_two_checks_within_five_per_cent_are_trusted_for_a_quarter_of_an_hour(second: float, trusted_s: float) -> None:
    guard = judged()
    check(guard, 2.0, lose_until_checked(guard, 2.0, 0.0))
    checked_s = check(guard, second, lose_until_checked(guard, 2.0, 100.0))
    assert lose_until_checked(guard, 2.0, checked_s + trusted_s - 50.0) == checked_s + trusted_s + 0.125 + 5.0


def test_a_trip_holds_for_thirty_seconds_and_then_twice_as_long_each_time() -> None:
    guard, now_s = judged(), 0.0
    for held_s in (30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3840.0, 3840.0):
        tripped_s = trip(guard, now_s)
        assert guard.holds(ROWS, tripped_s + held_s - 0.125)
        assert guard.held_buckets(tripped_s + held_s - 0.125) == (5,)
        assert guard.held_buckets(tripped_s + held_s) == ()
        assert not guard.holds(ROWS, tripped_s + held_s)
        now_s = tripped_s + held_s
    assert guard.trips == 9


@pytest.mark.parametrize(("later_s", "held_s"), [(1800.0, 60.0), (1800.5, 30.0)])
def test_half_an_hour_without_a_trip_makes_the_next_one_a_first_one(later_s: float, held_s: float) -> None:
    guard = judged()
    released_s = trip(guard, 0.0) + 30.0
    assert not guard.holds(ROWS, released_s)
    check(guard, 1.0, lose_until_checked(guard, 2.0, released_s + 1700.0))
    lose_until_checked(guard, 2.0, released_s + 1775.0)
    tripped_s = check(guard, 1.0, released_s + later_s)
    assert guard.trips == 2
    assert guard.holds(ROWS, tripped_s + held_s - 0.125)
    assert not guard.holds(ROWS, tripped_s + held_s)


def test_losing_steps_during_a_check_or_a_hold_begin_no_other_check() -> None:
    guard = judged()
    checked_s = lose_until_checked(guard, 2.0, 0.0)
    for number in range(200):
        speculate(guard, 2.0, checked_s + number * 0.125)
    assert guard.holding == 1
    assert not guard.holds(ROWS, checked_s + 30.0), "its time runs from the first suspicion"
    assert guard.holding == 0


def test_off_steps_outside_a_check_are_no_part_of_one() -> None:
    guard = judged()
    for _ in range(20):
        guard.count(ROWS, 0, ROWS, 5 * OFF_S, 0.0)
    now_s = lose_until_checked(guard, 2.0, 0.0)
    for _ in range(11):
        guard.count(ROWS, 0, ROWS, OFF_S, now_s)
    assert guard.holding == 1


def test_off_steps_after_a_check_are_no_part_of_another() -> None:
    guard = judged()
    checked_s = check(guard, 2.0, lose_until_checked(guard, 2.0, 0.0))
    for _ in range(30):
        guard.count(ROWS, 0, ROWS, OFF_S, checked_s)
    assert guard.holding == 0
    assert lose_until_checked(guard, 2.0, checked_s + 10.0) == checked_s + 60.125 + 5.0, "they taught nothing either"


def test_a_check_asks_only_for_off_steps_of_its_own_bucket() -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=rows, step_seconds=OFF_S) for rows in (1, ROWS)])
    now_s = lose_until_checked(guard, 2.0, 0.0)
    assert guard.holds(ROWS, now_s)
    assert not guard.holds(1, now_s)
    for _ in range(12):
        guard.count(1, 0, 1, OFF_S, now_s)
    assert guard.holding == 1


def test_a_step_without_rows_and_one_before_any_plan_are_not_judged() -> None:
    guard = OffGuard(64)
    for rows in (0, 1, 64, 65):
        guard.count(rows, K, rows, OFF_S, 0.0)
    guard.adopt([K] * 65, [OffStep(decode_rows=1, step_seconds=OFF_S)])
    guard.count(0, K, 0, OFF_S, 0.0)
    assert guard.holding == 0


@pytest.mark.parametrize("rows", [1, 64])
def test_the_smallest_and_the_largest_batch_are_judged_too(rows: int) -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=rows, step_seconds=OFF_S)])
    for number in range(200):
        guard.count(rows, K, rows, 2 * OFF_S, float(number))
    assert guard.holding == 1


def test_a_batch_above_the_engines_own_is_not_judged_and_is_held_with_the_largest() -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=64, step_seconds=OFF_S)])
    for number in range(200):
        guard.count(65, K, 65, 2 * OFF_S, float(number))
    assert guard.holding == 0
    for number in range(200):
        guard.count(64, K, 64, 2 * OFF_S, float(number))
        if guard.holding:
            assert guard.holds(70, float(number))
            break
    assert guard.holding == 1


def test_between_two_expectations_the_seconds_are_interpolated() -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=6, step_seconds=0.01), OffStep(decode_rows=10, step_seconds=0.03)])
    for number in range(2000):
        guard.count(8, K, 8, 0.02, float(number))
    assert guard.holding == 0
    for number in range(2000, 4000):
        guard.count(8, K, 8, 0.024, float(number))
    assert guard.holding == 1


@pytest.mark.parametrize("rows", [1, 9, 64])
def test_a_plan_that_changes_the_k_of_a_bucket_is_judged_anew_there_and_one_that_keeps_it_is_not(rows: int) -> None:
    off_steps = [OffStep(decode_rows=rows, step_seconds=OFF_S)]

    def held_at_step(first_k: int) -> int:
        guard = OffGuard(64)
        ks = [K] * 65
        ks[rows] = first_k
        guard.adopt(ks, off_steps)
        for number in range(600):
            guard.count(rows, first_k, rows, OFF_S, -100.0 + number * 0.01)
        guard.adopt([K] * 65, off_steps)
        number = 0
        while not guard.holding:
            guard.count(rows, K, rows, 1.5 * OFF_S, float(number))
            number += 1
        return number

    assert held_at_step(K) == 16
    assert held_at_step(K + 1) > 30
