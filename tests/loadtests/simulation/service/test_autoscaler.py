"""The autoscaler: bounds, delays, no change without a lasting wish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.service.autoscaler import Autoscale, Wanting, look

RULES = Autoscale(min_replicas=1, max_replicas=4, target_ongoing_requests=10, upscale_delay_s=10, downscale_delay_s=30)


@given(st.integers(1, 4), st.integers(0, 1000), st.floats(0, 1000))
def test_the_number_stays_within_its_bounds(replicas: int, ongoing: int, now_s: float) -> None:
    wanted, _ = look(RULES, replicas, ongoing, Wanting(True, -100.0), now_s)
    assert 1 <= wanted <= 4


def test_more_replicas_come_after_the_wish_has_lasted() -> None:
    replicas, wanting = look(RULES, 1, 25, Wanting(), 100.0)
    assert replicas == 1
    replicas, wanting = look(RULES, 1, 35, wanting, 105.0)
    assert replicas == 1
    replicas, wanting = look(RULES, 1, 25, wanting, 110.0)
    assert (replicas, wanting.upward) == (3, None)


def test_a_wish_that_was_interrupted_begins_anew() -> None:
    _, wanting = look(RULES, 2, 90, Wanting(), 0.0)
    _, wanting = look(RULES, 2, 20, wanting, 5.0)
    replicas, wanting = look(RULES, 2, 90, wanting, 12.0)
    assert replicas == 2
    assert wanting == Wanting(True, 12.0)


def test_fewer_replicas_take_the_longer_delay() -> None:
    _, wanting = look(RULES, 3, 0, Wanting(), 0.0)
    assert look(RULES, 3, 0, wanting, 29.0)[0] == 3
    assert look(RULES, 3, 0, wanting, 30.0)[0] == 1


def test_rules_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="min_replicas"):
        Autoscale(min_replicas=3, max_replicas=2)
