"""In which order a bench's arms take their turns."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks.measuring.repeats import latin_rectangle, there_and_back

ARMS = ("off", "pin=5", "nightjar", "fleet")


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
