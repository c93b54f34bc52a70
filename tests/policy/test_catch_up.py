"""The line that catching up costs: from sums, near the prior while they are few, and beyond a liar's reach."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.catch_up import CatchUpCost, CatchUpEvidence, merge_catch_up
from nightjar.policy.restart_price import chunk_tokens

OFF_S = 0.02
GPU = CatchUpCost(step_seconds=0.006, token_seconds=3e-6)
NOTHING = CatchUpEvidence()


def steps(chunks: Iterable[int], line: CatchUpCost = GPU, noise: float = 0.0, seed: int = 0) -> CatchUpEvidence:
    rng, total = random.Random(seed), NOTHING
    for tokens in chunks:
        seconds = line.of_chunk(tokens) + rng.gauss(0.0, noise)
        total = total.sum(CatchUpEvidence(1.0, tokens, tokens * tokens, seconds, tokens * seconds))
    return total


def test_a_line_by_hand() -> None:
    """Two steps: 100 tokens in 7 ms, 1100 in 10 ms. Many of them outweigh any prior."""
    seen = steps([100, 1100], CatchUpCost(0.0067, 3e-6)).times(1e6)
    cost = seen.cost(OFF_S, "H100")
    assert cost.step_seconds == pytest.approx(0.0067, rel=1e-3)
    assert cost.token_seconds == pytest.approx(3e-6, rel=1e-2)
    assert cost.of_lag(2500, 1000) == pytest.approx(3 * 0.0067 + 2500 * 3e-6, rel=1e-2)


def test_before_any_evidence_a_step_is_dear_on_a_gpu_and_a_token_on_a_cpu() -> None:
    gpu, cpu = NOTHING.cost(OFF_S, "H100"), NOTHING.cost(OFF_S, "cpu")
    assert (gpu.step_seconds, gpu.token_seconds) == pytest.approx((0.2 * OFF_S, 0.0005 * OFF_S))
    assert (cpu.step_seconds, cpu.token_seconds) == pytest.approx((0.1 * OFF_S, 0.005 * OFF_S))


def test_a_dozen_small_restarts_tell_that_steps_are_dear_and_tokens_are_not() -> None:
    cost = steps([64, 64, 30, 64, 64, 11, 64, 64, 50] * 4).cost(OFF_S, "cpu")
    assert cost.step_seconds > 0.7 * GPU.step_seconds
    assert cost.token_seconds < 0.5 * NOTHING.cost(OFF_S, "cpu").token_seconds
    assert steps([64] * 8 + [1024] * 8, noise=1e-3).cost(OFF_S, "H100").token_seconds == pytest.approx(GPU.token_seconds, rel=0.5)


@given(st.lists(st.tuples(st.integers(1, 2048), st.floats(-0.1, 1.0)), min_size=1, max_size=30))
def test_no_price_is_ever_negative(seen: list[tuple[int, float]]) -> None:
    total = NOTHING
    for tokens, seconds in seen:
        total = total.sum(CatchUpEvidence(1.0, tokens, tokens * tokens, seconds, tokens * seconds))
    cost = total.cost(OFF_S, "H100")
    assert cost.step_seconds > 0.0
    assert cost.token_seconds > 0.0


@pytest.mark.parametrize("factor", [1000.0, 0.0, -10.0, 3.0])
def test_inv_10_one_replica_of_many_cannot_move_the_price(factor: float) -> None:
    honest = {f"r{number}": steps([64, 256, 1024] * 3, noise=1e-3, seed=number) for number in range(15)}
    lie = honest["r0"].times(10.0)
    lie = CatchUpEvidence(lie.steps, lie.tokens, lie.tokens_squared, factor * lie.seconds, factor * lie.token_seconds)
    merged, used = merge_catch_up(NOTHING, {**honest, "liar": lie}, 16, NOTHING.cost(OFF_S, "H100"))
    assert "liar" in used
    cost = merged.cost(OFF_S, "H100")
    assert cost.of_chunk(64) == pytest.approx(GPU.of_chunk(64), rel=0.1)
    assert cost.of_chunk(1024) == pytest.approx(GPU.of_chunk(1024), rel=0.1)


def test_a_price_waits_for_three_voices_where_there_are_three_replicas() -> None:
    pending = {"a": steps([64] * 4), "b": steps([64] * 4), "c": NOTHING}
    assert merge_catch_up(NOTHING, pending, 3, GPU) == (NOTHING, frozenset())
    merged, used = merge_catch_up(NOTHING, {"c": steps([64])}, 2, GPU)
    assert merged == steps([64])
    assert used == {"c"}


@pytest.mark.parametrize("times", [0.3, 4.0])
def test_steps_at_one_chunk_alone_make_both_parts_of_the_prior_dearer_or_cheaper(times: float) -> None:
    prior = NOTHING.cost(OFF_S, "cpu")
    cost = steps([64] * 1000, prior.times(times)).cost(OFF_S, "cpu")
    assert (cost.step_seconds, cost.token_seconds) == pytest.approx(
        (times * prior.step_seconds, times * prior.token_seconds), rel=0.01
    )


def test_a_restart_that_took_far_longer_than_the_prior_says_is_not_followed_by_larger_chunks() -> None:
    """Seen on a real CPU engine: chunks of 64 tokens alone, the line through them and the prior was flat, and the next was 2048."""
    off_s, slowdown = 0.07, 0.5
    first_chunk = chunk_tokens(off_s, NOTHING.cost(off_s, "cpu"), 4.0, slowdown)
    seen = CatchUpEvidence(5.0, 5.0 * first_chunk, 5.0 * first_chunk**2, 5.0 * 0.2, 5.0 * first_chunk * 0.2)
    assert chunk_tokens(off_s, seen.cost(off_s, "cpu"), 4.0, slowdown) <= first_chunk


def test_no_token_is_ever_cheaper_than_a_tenth_of_the_prior() -> None:
    prior = NOTHING.cost(OFF_S, "cpu")
    falling = steps([64] * 20, prior).sum(steps([512] * 20, prior.times(0.05)))
    assert falling.cost(OFF_S, "cpu").token_seconds >= 0.1 * prior.token_seconds * (1.0 - 1e-12)
