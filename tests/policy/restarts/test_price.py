"""Prices of restarts by hand, and bounds that follow from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.restarts.price import Engine, chunk_tokens, micro_restart_tokens, price
from nightjar.policy.step.drafter import MAX_CHUNK_TOKENS

CPU = Engine(off_step_seconds=0.25, off_tokens_per_s=32.0, decode_rows=8, cost=CatchUpCost(0.025, 1.35e-3), chunk_tokens=32)
"""Eight rows on one core (vLLM 0.32): 250 ms a step, 25 ms a pass and 1.35 ms a missing token."""
CHUNK_S = 0.025 + 32 * 1.35e-3
GPU = Engine(off_step_seconds=0.022, off_tokens_per_s=360.0, decode_rows=8, cost=CatchUpCost(0.006, 3e-6), chunk_tokens=1024)


def test_a_long_restart_takes_its_share_of_every_step_and_a_short_one_of_its_one_second() -> None:
    assert CPU.slowdown(10_000) == pytest.approx(CHUNK_S / (0.25 + CHUNK_S))
    assert GPU.slowdown(1000) == pytest.approx(0.006 + 1000 * 3e-6)


def test_catching_up_takes_as_many_steps_as_the_lag_needs_that_grows_meanwhile() -> None:
    assert CPU.lost_seconds(240) == pytest.approx(8 * 0.025 + (240 + 7 * 4) * 1.35e-3), "32 tokens a step are won"
    assert CPU.catch_up_seconds(240) == pytest.approx(8 * 0.25 + CPU.lost_seconds(240))
    assert CPU.catch_up_seconds(1) == pytest.approx(0.25 + 0.025 + 1.35e-3), "never less than a step"


@pytest.mark.parametrize(
    ("rows", "chunk", "lag", "steps", "recomputed"),
    [(4, 24, 22, 1, 22), (4, 24, 53, 3, 56), (4, 24, 133, 6, 144), (8, 32, 269, 9, 299)],
)
def test_steps_and_tokens_of_restarts_are_those_that_real_engines_took(
    rows: int, chunk: int, lag: int, steps: int, recomputed: int
) -> None:
    """`make bench-engine`, vLLM 0.32 on a CPU: tokens recomputed in all, to within two."""
    engine = Engine(0.25, 32.0, rows, CatchUpCost(0.0, 1.0), chunk)
    assert engine.catch_up_steps(lag) == steps
    assert engine.lost_seconds(lag) == pytest.approx(recomputed, abs=2.0)


def test_a_restart_by_hand() -> None:
    priced = price(CPU, lag_tokens=240, value_tokens=500.0, gain_tokens_per_s=20.0, first_step_seconds=0.075, reload_seconds=0.0)
    seconds = 8 * (0.25 + 0.025) + 268 * 1.35e-3
    assert priced.cost_tokens == pytest.approx((0.075 + 8 * 0.025 + 268 * 1.35e-3) * 32.0)
    assert priced.value_tokens == pytest.approx(500.0 - 20.0 * seconds)
    assert priced.pays
    assert priced.gain_per_second == pytest.approx((priced.value_tokens - priced.cost_tokens) / seconds)


def test_a_reload_costs_the_gain_of_the_time_that_it_takes() -> None:
    priced = price(CPU, lag_tokens=240, value_tokens=500.0, gain_tokens_per_s=20.0, first_step_seconds=0.075, reload_seconds=30.0)
    assert priced.value_tokens == 0.0
    assert not priced.pays


def test_a_restart_must_be_worth_its_cost() -> None:
    cost = price(CPU, 240, 0.0, 0.0, 0.075, 0.0).cost_tokens
    for share, pays in ((0.99, False), (1.01, True)):
        assert price(CPU, 240, share * cost, 0.0, 0.075, 0.0).pays is pays


@given(
    off=st.floats(1e-3, 5.0),
    step=st.floats(1e-6, 1.0),
    token=st.floats(1e-8, 0.1),
    rows=st.integers(1, 512),
    share=st.floats(0.01, 4),
)
def test_a_chunk_wins_on_the_lag_and_lengthens_a_step_no_more_than_it_must(
    off: float, step: float, token: float, rows: int, share: float
) -> None:
    cost = CatchUpCost(step, token)
    chunk = chunk_tokens(off, cost, rows, share)
    assert min(2 * rows, MAX_CHUNK_TOKENS) <= chunk <= MAX_CHUNK_TOKENS
    assert cost.of_chunk(chunk) <= max(share * off, 2 * step) * 1.0001 or chunk <= max(16, 4 * rows)


def test_a_micro_restart_goes_unnoticed_and_is_worth_it() -> None:
    assert micro_restart_tokens(CPU, 1e9, 0.0) == 32, "125 ms: one chunk, and 32 more after another pass"
    assert micro_restart_tokens(GPU, 1e9, 0.0) == 2048, "30 ms: three passes over a chunk"
    assert micro_restart_tokens(CPU, 32 * 0.05, 0.0) == 16, "worth 50 ms: one pass over 18 tokens"
    assert micro_restart_tokens(CPU, 32 * 0.05, 0.04) == 0
