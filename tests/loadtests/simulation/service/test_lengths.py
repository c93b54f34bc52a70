"""Lengths of prompts and answers: published means, cuts, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.simulation.service.lengths import (
    ALPACA,
    DATASETS,
    Dataset,
    Lognormal,
    Mixture,
    agents,
    half_retrieval,
    retrieval,
)


@pytest.mark.parametrize(("name", "prompt", "output"), [("sharegpt", 161, 338), ("alpaca", 19, 58)])
def test_the_means_are_those_of_the_vllm_paper(name: str, prompt: float, output: float) -> None:
    assert DATASETS[name].prompt.mean_tokens == pytest.approx(prompt, rel=0.02)
    assert DATASETS[name].output.mean_tokens == pytest.approx(output, rel=0.02)


@settings(max_examples=30)
@given(st.floats(2, 500), st.floats(0, 2), st.integers(1, 50), st.integers(60, 4000), st.integers(0, 2**32))
def test_draws_respect_the_cuts_and_have_the_stated_mean(median: float, sigma: float, low: int, high: int, seed: int) -> None:
    lengths = Lognormal(median, sigma, low, high)
    drawn = lengths.draw(4000, np.random.default_rng(seed))
    assert low <= drawn.min()
    assert drawn.max() <= high
    error = 6 * drawn.std() / np.sqrt(len(drawn)) + 0.5
    assert abs(drawn.mean() - lengths.mean_tokens) <= error


@pytest.mark.parametrize(
    ("median", "sigma", "low", "high"), [(0, 1, 1, 9), (5, -1, 1, 9), (5, 1, 0, 9), (5, 1, 9, 8), (float("nan"), 1, 1, 9)]
)
def test_parameters_of_no_distribution_are_refused(median: float, sigma: float, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="median_tokens above 0"):
        Lognormal(median, sigma, low, high)


def test_a_cached_share_is_that_of_each_prompt_and_is_not_prefilled() -> None:
    cached = Dataset("cached", Lognormal(1000, 0.5), Lognormal(50, 0.5), cached_share=0.75)
    prompts, _, held = cached.draw(500, np.random.default_rng(3))
    assert (held == (0.75 * prompts).astype(int)).all()
    assert cached.mean_prefill_tokens == pytest.approx(0.25 * cached.prompt.mean_tokens)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_cached_share_that_leaves_nothing_to_compute_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="cached_share"):
        Dataset("cached", Lognormal(1000, 0.5), Lognormal(50, 0.5), cached_share=share)


def test_a_mixture_has_the_means_of_what_it_draws() -> None:
    mixed = Mixture("mixed", (ALPACA, Dataset("long", Lognormal(900, 0.2), Lognormal(30, 0.4), cached_share=0.5)))
    prompts, outputs, cached = (column.astype(float) for column in mixed.draw(40_000, np.random.default_rng(5)))
    assert outputs.mean() == pytest.approx(mixed.mean_output_tokens, rel=0.03)
    assert (prompts - cached).mean() == pytest.approx(mixed.mean_prefill_tokens, rel=0.03)
    met = (outputs * (prompts + outputs / 2)).sum() / outputs.sum()
    assert met == pytest.approx(mixed.mean_context_tokens, rel=0.03), "long answers are met more often"


@pytest.mark.parametrize("num_tokens", [11_472, 411_200])
def test_long_prompts_leave_room_for_several_requests(num_tokens: int) -> None:
    for traffic in (retrieval(num_tokens), agents(num_tokens), half_retrieval(ALPACA, num_tokens)):
        prompts, outputs, _ = traffic.draw(2000, np.random.default_rng(1))
        assert (prompts + outputs).max() <= traffic.max_model_len <= num_tokens / 2
