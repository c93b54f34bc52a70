"""Lengths of prompts and answers: published means, cuts, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.simulation.service.lengths import DATASETS, Lognormal


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
