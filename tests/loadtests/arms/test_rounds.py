"""In which order arms take their turns."""

from __future__ import annotations

import random

import pytest

from nightjar.loadtests.arms.arm import latin_rectangle, there_and_back, turns

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


def test_there_and_back_every_arm_stands_on_average_in_the_same_place() -> None:
    (order,) = there_and_back(ARMS, 1, random.Random(3))
    places = [sum(place for place, arm in enumerate(order) if arm == one) for one in ARMS]
    assert places == [7, 7, 7, 7]


@pytest.mark.parametrize("rounds", [2, 5, 6])
def test_no_arm_stands_twice_at_one_place_and_each_is_in_every_round(rounds: int) -> None:
    arms = ["a", "b", "c", "d", "e", "f"]
    orders = latin_rectangle(arms, rounds, random.Random(3))
    assert len(orders) == rounds
    assert all(sorted(order) == arms for order in orders)
    assert all(len(set(column)) == rounds for column in zip(*orders, strict=True))


def test_more_rounds_than_arms_begin_a_second_square() -> None:
    orders = latin_rectangle("abc", 6, random.Random(0))
    assert all(column.count(arm) == 2 for column in zip(*orders, strict=True) for arm in "abc")
