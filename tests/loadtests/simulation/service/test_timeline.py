"""Virtual time: in order, never back (SIM-4)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.service.timeline import Timeline


@given(st.lists(st.floats(0, 100), max_size=30))
def test_actions_run_in_order_of_time_and_of_entry(times: list[float]) -> None:
    timeline = Timeline()
    ran: list[tuple[float, int]] = []
    for place, time_s in enumerate(times):
        timeline.at(time_s, lambda place=place: ran.append((timeline.now_s, place)))  # type: ignore[misc]
    while timeline.next_s < math.inf:
        timeline.run_next()
    assert ran == sorted((time_s, place) for place, time_s in enumerate(times))


def test_an_action_may_add_another_but_not_in_the_past() -> None:
    timeline = Timeline()
    ran = []
    timeline.at(1.0, lambda: timeline.at(1.0, lambda: ran.append(timeline.now_s)))
    timeline.run_next()
    timeline.run_next()
    assert ran == [1.0]
    with pytest.raises(ValueError, match="is in the past"):
        timeline.at(0.5, lambda: None)
