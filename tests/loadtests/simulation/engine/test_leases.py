"""Counting restarts that ran at once: against counting them one moment after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.leases import LeasedRestart, begun_above, most_at_once

restarts = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 10)).map(lambda span: LeasedRestart(span[0], span[0] + span[1], False)),
    max_size=12,
)


@given(restarts, st.integers(0, 4))
def test_the_sweep_counts_what_a_look_at_every_moment_counts(spans: list[LeasedRestart], allowed: int) -> None:
    at_once = [sum(span.begin_s <= moment < span.end_s for span in spans) for moment in range(31)]
    assert most_at_once(spans) == max(at_once)
    assert (begun_above(spans, lambda at_s: allowed) > 0) == (max(at_once) > allowed)
