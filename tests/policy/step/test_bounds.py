"""The guard: bounds and dwell hold whatever a planner proposes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.step.steering import allowed_ks, bound, hold, ks_by_batch
from tests.policy.step.steering_settings import table

KS = st.integers(0, 32)


@given(st.lists(KS, max_size=33), st.integers(0, 32))
def test_allowed_k_ascend_from_off_to_at_most_the_engines_maximum(wished: list[int], maximum: int) -> None:
    allowed = allowed_ks(wished, maximum)
    assert allowed[0] == 0
    assert list(allowed) == sorted(set(allowed))
    assert allowed[-1] <= maximum
    assert set(allowed) - {0} <= set(wished)


def test_the_engines_maximum_itself_may_run() -> None:
    assert allowed_ks([1, 5, 6], 5) == (0, 1, 5)


@given(KS, st.lists(KS), st.integers(0, 32))
def test_a_bound_k_is_the_highest_allowed_up_to_the_proposal(proposed: int, wished: list[int], maximum: int) -> None:
    allowed = allowed_ks(wished, maximum)
    bounded = bound(proposed, allowed)
    assert bounded in allowed
    assert bounded <= proposed
    assert not any(bounded < k <= proposed for k in allowed)


@given(KS, KS, st.integers(0, 50), st.integers(0, 50))
def test_dwell_delays_rises_only(proposed: int, current: int, held_steps: int, dwell_steps: int) -> None:
    held = hold(proposed, current, held_steps, dwell_steps)
    if proposed <= current or held_steps >= dwell_steps:
        assert held == proposed
    else:
        assert held == current


def test_a_table_names_a_k_for_each_batch_from_none_to_the_engines_most() -> None:
    assert ks_by_batch(table((1, 2, 5), (3, 4, 1)), 4) == [5, 5, 5, 1, 1]
