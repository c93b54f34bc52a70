"""A ratio's interval holds the truth as often as it says, also of a handful of rounds, and whoever asks for it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.arms.statistics import Interval, Speed, paired_ratio

NOISE = 0.05


def equals(rounds: int, seed: int) -> list[tuple[Speed, Speed]]:
    """Two arms alike, with noise of their own."""
    rng = random.Random(seed)
    return [(Speed(100 * rng.gauss(1.0, NOISE), 1.0), Speed(100 * rng.gauss(1.0, NOISE), 1.0)) for _ in range(rounds)]


@pytest.mark.parametrize("rounds", [5, 6])
def test_equals_are_told_apart_in_less_than_one_of_ten_comparisons_of_few_rounds(rounds: int) -> None:
    sides = [paired_ratio(equals(rounds, seed), seed).interval.side for seed in range(300)]
    assert sides.count("holds") >= 0.9 * len(sides)


@given(st.floats(0.1, 10.0), st.floats(0.0, 5.0))
def test_an_interval_lies_on_a_side_of_1_only_where_all_of_it_does(low: float, width: float) -> None:
    interval = Interval(low=low, high=low + width, kind="a test")
    assert (interval.side == "holds") == (interval.low <= 1.0 <= interval.high)
    assert (interval.side == "above") == (interval.low > 1.0)
