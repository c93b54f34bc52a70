"""Prices of restarts by hand, and bounds that follow from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.restart_price import (
    PRIOR_TOKENS,
    CatchUpEvidence,
    Engine,
    chunk_tokens,
    merge_catch_up,
    micro_restart_tokens,
    price,
)

CPU = Engine(off_step_seconds=0.25, off_tokens_per_s=32.0, decode_rows=8, seconds_per_token=1.35e-3, chunk_tokens=32)
"""Eight rows on one core (vLLM 0.32): 250 ms a step, 1.35 ms a missing token."""


def test_a_full_chunk_slows_the_engine_by_its_share_of_the_longer_step() -> None:
    assert CPU.slowdown == pytest.approx(0.0432 / 0.2932)


def test_catching_up_takes_as_many_steps_as_the_lag_needs_that_grows_meanwhile() -> None:
    assert CPU.catch_up_seconds(240) == pytest.approx(10 * 0.2932), "24 tokens a step are won"
    assert CPU.catch_up_seconds(1) == pytest.approx(0.2932), "never less than a step"


def test_a_restart_by_hand() -> None:
    priced = price(CPU, lag_tokens=240, value_tokens=500.0, gain_tokens_per_s=20.0, first_step_seconds=0.075, reload_seconds=0.0)
    assert priced.cost_tokens == pytest.approx((0.075 + 0.324) * 32.0)
    assert priced.value_tokens == pytest.approx(500.0 - 20.0 * 2.932)
    assert priced.pays
    assert priced.gain_per_second == pytest.approx((priced.value_tokens - priced.cost_tokens) / 2.932)


def test_a_reload_costs_the_gain_of_the_time_that_it_takes() -> None:
    priced = price(CPU, lag_tokens=240, value_tokens=500.0, gain_tokens_per_s=20.0, first_step_seconds=0.075, reload_seconds=30.0)
    assert priced.value_tokens == 0.0
    assert not priced.pays


def test_a_restart_must_be_worth_twice_its_cost() -> None:
    for value, pays in ((25.0, False), (26.0, True)):
        assert price(CPU, 240, value, 0.0, 0.075, 0.0).pays is pays


def test_measured_catch_up_replaces_the_dear_prior() -> None:
    evidence = CatchUpEvidence().plus(CatchUpEvidence(20_000.0, 27.0))
    assert evidence.seconds_per_token(0.25) == pytest.approx(1.35e-3, rel=0.02)
    assert CatchUpEvidence(PRIOR_TOKENS, 0.0).seconds_per_token(0.25) == pytest.approx(0.00125)


@given(step=st.floats(1e-3, 5.0), token=st.floats(1e-7, 1.0), rows=st.integers(1, 512), share=st.floats(0.01, 4.0))
def test_a_chunk_always_wins_on_the_lag_that_grows_meanwhile(step: float, token: float, rows: int, share: float) -> None:
    chunk = chunk_tokens(step, token, rows, share)
    assert chunk >= 2 * rows
    assert chunk * token <= share * step * 1.0001 or chunk <= max(16, 4 * rows)


def test_a_micro_restart_is_worth_it_and_goes_unnoticed() -> None:
    assert micro_restart_tokens(CPU, 1000.0, 0.075) == 64, "half a step at 1.35 ms a token, as a power of two"
    assert micro_restart_tokens(CPU, 10.0, 0.075) == 32, "five tokens' time, less the first drafting step"
    assert micro_restart_tokens(CPU, 4.0, 0.075) == 0


def test_inv_10_one_replica_of_many_cannot_move_the_price() -> None:
    honest = {f"r{number}": CatchUpEvidence(100.0, 0.1) for number in range(15)}
    merged, used = merge_catch_up(CatchUpEvidence(), {**honest, "liar": CatchUpEvidence(1e9, 1e9)}, 16)
    assert merged.seconds / merged.tokens == pytest.approx(1e-3, rel=0.02)
    assert used == {*honest, "liar"}


def test_a_price_waits_for_three_voices_where_there_are_three_replicas() -> None:
    two = {"a": CatchUpEvidence(100.0, 0.1), "b": CatchUpEvidence(100.0, 0.3), "c": CatchUpEvidence(8.0, 0.1)}
    assert merge_catch_up(CatchUpEvidence(), two, 3) == (CatchUpEvidence(), frozenset())
    merged, _ = merge_catch_up(CatchUpEvidence(), {"a": two["a"], "b": two["b"]}, 2)
    assert merged.seconds / merged.tokens == pytest.approx(2e-3)
