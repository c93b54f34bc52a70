"""The line that catching up costs: from sums, near the prior while they are few, and beyond a liar's reach."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.catch_up import CatchUpCost, CatchUpEvidence, NewRestarts, merge_catch_up
from nightjar.policy.restarts.price import chunk_tokens

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


FIVE = CatchUpEvidence(2.0, 3.0, 5.0, 7.0, 11.0)
"""A different number in each sum."""


def test_sums_are_added_and_weighted_one_by_one() -> None:
    assert FIVE.sum(FIVE.times(10.0)) == CatchUpEvidence(22.0, 33.0, 55.0, 77.0, 121.0)


@pytest.mark.parametrize(("steps_since", "share_left"), [(2000.0, 0.5), (4000.0, 0.25), (1000.0, 0.5**0.5)])
def test_half_of_the_evidence_is_forgotten_after_2000_steps(steps_since: float, share_left: float) -> None:
    aged = FIVE.plus(CatchUpEvidence(steps=steps_since))
    assert (aged.steps, aged.tokens, aged.seconds) == pytest.approx(
        (2.0 * share_left + steps_since, 3.0 * share_left, 7.0 * share_left), rel=1e-9
    )


def test_what_restarts_added_is_summed_up() -> None:
    added = NewRestarts(FIVE, restarts=3, failed_probes=1).plus(NewRestarts(NOTHING, restarts=4, failed_probes=2))
    assert added == NewRestarts(FIVE, restarts=7, failed_probes=3)
    nothing = NewRestarts()
    assert (nothing.catch_up, nothing.restarts, nothing.failed_probes) == (NOTHING, 0, 0)


def test_a_lag_takes_a_step_for_every_chunk_begun_and_every_token_its_time() -> None:
    line = CatchUpCost(step_seconds=2.0, token_seconds=3.0)
    assert line.of_chunk(10) == 32.0
    assert [line.of_lag(lag, 10) for lag in (10, 11, 20)] == [32.0, 37.0, 64.0]
    assert line.times(3.0) == CatchUpCost(6.0, 9.0)


def fitted(chunks: list[int], seconds: list[float], step_share: float, token_share: float) -> CatchUpCost:
    """The docstring of `cost` in numpy's words: least squares through the steps and half a step of the prior at 16 and 128."""
    prior = np.array([token_share, step_share]) * OFF_S
    prior_seconds = np.polyval(prior, [16, 128])
    scale = (sum(seconds) + 0.5 * prior_seconds.sum()) / (np.polyval(prior, chunks).sum() + 0.5 * prior_seconds.sum())
    tokens, weights = np.array([*chunks, 16, 128]), np.array([1.0] * len(chunks) + [0.5, 0.5])
    values = np.array([*seconds, *(max(scale, 0.1) * prior_seconds)])
    slope, level = np.polyfit(tokens, values, 1, w=np.sqrt(weights))
    slope = max(slope, 0.1 * prior[0])
    level = np.average(values - slope * tokens, weights=weights)
    if level < 0.0:
        slope, level = max((weights * tokens * values).sum() / (weights * tokens**2).sum(), 0.1 * prior[0]), 0.0
    return CatchUpCost(max(level, 1e-6 * OFF_S), slope)


@pytest.mark.parametrize(("accelerator", "step_share", "token_share"), [("cpu", 0.1, 0.005), ("H100", 0.2, 0.0005)])
@pytest.mark.parametrize(
    ("chunks", "seconds"),
    [
        ([64, 64], [0.01, 0.012]),
        ([16, 256, 1024], [0.004, 0.006, 0.012]),
        ([16, 1024], [0.02, 0.001]),  # falling: the slope's floor
        ([16, 1024], [0.0, 0.5]),  # a line that would begin below zero
        ([16, 64], [-0.02, -0.03]),  # times below those of steps without catch-up: noise
        ([2048], [1e-9]),
    ],
)
def test_the_line_is_a_least_squares_fit_through_the_steps_and_a_scaled_prior(
    chunks: list[int], seconds: list[float], accelerator: str, step_share: float, token_share: float
) -> None:
    seen = NOTHING
    for tokens, took in zip(chunks, seconds, strict=True):
        seen = seen.sum(CatchUpEvidence(1.0, tokens, tokens * tokens, took, tokens * took))
    cost, expected = seen.cost(OFF_S, accelerator), fitted(chunks, seconds, step_share, token_share)
    assert (cost.step_seconds, cost.token_seconds) == pytest.approx((expected.step_seconds, expected.token_seconds), rel=1e-6)


def test_no_voice_of_three_weighs_more_than_a_third() -> None:
    pending = {"a": steps([64] * 100), "b": steps([64] * 10), "c": steps([64] * 10)}
    merged, used = merge_catch_up(NOTHING, pending, 3, GPU)
    assert merged.steps == pytest.approx(30.0)
    assert merged.seconds == pytest.approx(30 * GPU.of_chunk(64))
    assert used == {"a", "b", "c"}


def contribution(seconds: float, token_seconds: float | None = None) -> CatchUpEvidence:
    """Three steps like the known line, with their time and their tokens times time multiplied."""
    honest = steps([64, 256, 1024])
    return CatchUpEvidence(
        honest.steps,
        honest.tokens,
        honest.tokens_squared,
        seconds * honest.seconds,
        (seconds if token_seconds is None else token_seconds) * honest.token_seconds,
    )


@pytest.mark.parametrize(
    ("far", "is_heard"),
    [
        (contribution(math.exp(0.45)), True),
        (contribution(math.exp(-0.45)), True),
        (contribution(math.exp(0.55)), False),
        (contribution(math.exp(-0.55)), False),
        (contribution(1.0, math.exp(0.55)), False),
        (contribution(math.exp(0.55), 1.0), False),
    ],
)
@pytest.mark.parametrize("of_the_line", [1.0, 0.2, 5.0])
def test_voices_within_half_a_power_of_e_count_and_others_do_not_where_the_rest_agree(
    far: CatchUpEvidence, is_heard: bool, of_the_line: float
) -> None:
    """However far all of them are from the line known so far."""
    pending = {**{f"r{number}": contribution(1.0) for number in range(5)}, "far": far}
    merged, used = merge_catch_up(NOTHING, pending, 6, GPU.times(of_the_line))
    assert "far" in used
    assert merged.steps == pytest.approx(18.0 if is_heard else 15.0)


@pytest.mark.parametrize(("far", "is_heard"), [(0.74, True), (0.82, False)])
def test_where_voices_scatter_one_counts_within_three_median_distances(far: float, is_heard: bool) -> None:
    logs = {"a": -0.25, "b": 0.0, "c": 0.0, "d": 0.25, "e": -0.26, "f": 0.26}
    pending = {name: contribution(math.exp(log)) for name, log in logs.items()}
    merged, _ = merge_catch_up(NOTHING, {**pending, "far": contribution(math.exp(far))}, 7, GPU)
    assert merged.steps == pytest.approx(21.0 if is_heard else 18.0)


def test_voices_on_one_line_agree_whatever_their_chunks_and_numbers_of_steps() -> None:
    line = CatchUpCost(0.006, 3e-5)
    pending = {**{name: steps([64], line) for name in "abc"}, "long": steps([2048], line), "many": steps([64] * 5, line)}
    merged, _ = merge_catch_up(NOTHING, pending, 5, line)
    assert (merged.steps, merged.tokens) == (6.0, 3 * 64 + 2048 + 2 * 64), "five steps weigh as two: no more than a third"


def test_two_voices_that_are_left_of_three_count_as_they_are() -> None:
    pending = {"a": contribution(1.0), "b": contribution(1.0).times(5.0), "far": contribution(9.0)}
    merged, _ = merge_catch_up(NOTHING, pending, 3, GPU)
    assert merged.steps == pytest.approx(18.0)
