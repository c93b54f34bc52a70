"""In which order arms take their turns."""

from __future__ import annotations

from nightjar.loadtests.arms.arm import turns

ARMS = ("off", "pin=5", "nightjar", "fleet")


def test_every_round_has_each_arm_once_in_orders_that_differ_and_come_from_the_seed() -> None:
    found = turns(ARMS, 6, 2)
    orders = [tuple(turn.arm for turn in found if turn.round == number) for number in range(1, 9)]
    assert all(sorted(order) == sorted(ARMS) for order in orders)
    assert len(set(orders)) > 4
    assert [turn.is_lesson for turn in found] == [True] * 8 + [False] * 24
    assert found == turns(ARMS, 6, 2)
    assert found != turns(ARMS, 6, 2, seed=1)


def test_more_rounds_leave_the_order_of_those_before_as_it_was() -> None:
    assert turns(ARMS, 9, 1)[:24] == turns(ARMS, 5, 1)


def test_what_was_played_is_not_played_again() -> None:
    first, *rest = turns(ARMS, 5, 1)
    assert turns(ARMS, 5, 1, done={(first.round, first.arm)}) == rest
