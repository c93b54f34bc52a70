"""How long prompts and answers are, by kind of data set.

A simulator needs numbers of tokens and no text, so each data set is two lognormal distributions, cut off where real services
cut off. Their parameters come from published means or from files that we can count; what is assumed is said beside them.
Fails closed: parameters that are no distribution raise ValueError with the field's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Tokens whose logarithm is normal: half of the draws lie below `median_tokens`, about two thirds within a factor
    e^`sigma` of it. Draws are rounded and held in [`min_tokens`, `max_tokens`]. `sigma` 0 draws the median always."""

    median_tokens: float
    sigma: float
    min_tokens: int = 1
    max_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        if not (self.median_tokens > 0 and self.sigma >= 0 and 1 <= self.min_tokens <= self.max_tokens):
            raise ValueError(f"{self}: median_tokens above 0, sigma from 0 and 1 <= min_tokens <= max_tokens are allowed")

    @classmethod
    def fitted(cls, tokens: Sequence[int], max_tokens: int) -> Self:
        """The distribution of observed lengths, each cut at `max_tokens`.

        >>> Lognormal.fitted((50, 200, 9000), max_tokens=800).median_tokens
        200.0
        """
        logarithms = np.log(np.clip(np.array(tokens, dtype=float), 1, max_tokens))
        median_tokens = round(math.exp(float(logarithms.mean())), 3)
        return cls(median_tokens, float(logarithms.std()), max_tokens=max_tokens)

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` independent lengths in tokens."""
        drawn = np.exp(rng.normal(math.log(self.median_tokens), self.sigma, count))
        tokens: NDArray[np.int64] = np.clip(np.rint(drawn), self.min_tokens, self.max_tokens).astype(np.int64)
        return tokens

    @property
    def mean_tokens(self) -> float:
        """Expected length with the cuts (rounding left out)."""
        mean = math.exp(math.log(self.median_tokens) + self.sigma**2 / 2)
        if self.sigma == 0:
            return min(max(mean, self.min_tokens), self.max_tokens)
        low, high = (math.log(cut / self.median_tokens) / self.sigma for cut in (self.min_tokens, self.max_tokens))
        within = mean * (_below(high - self.sigma) - _below(low - self.sigma))
        return self.min_tokens * _below(low) + within + self.max_tokens * (1 - _below(high))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Lengths of one kind of traffic; prompt and answer are independent."""

    name: str
    prompt: Lognormal
    output: Lognormal


SHAREGPT: Final = Dataset("sharegpt", Lognormal(79, 1.29, 4, 1024), Lognormal(237, 1.0, 4, 1024))
"""Means 161 and 338 tokens as the vLLM paper counts them (arXiv 2309.06180, section 6.1); the spreads and the cuts at 1,024
tokens each, as benchmarks of a 2,048-token context make them, are assumed."""

ALPACA: Final = Dataset("alpaca", Lognormal(17, 0.5, 4, 256), Lognormal(42, 0.8, 2, 512))
"""Means 19 and 58 tokens as the vLLM paper counts them; the spreads are assumed."""

SPEC_BENCH: Final = Dataset("spec-bench", Lognormal(67, 1.55, 6, 1536), Lognormal(190, 0.7, 8, 512))
"""Spec-Bench (hemingkx/Spec-Bench): median and spread of its first turns' words, counted at 1.35 tokens a word (short questions
beside long texts to summarise). Answers are assumed: its runs let a model write up to 1,024 tokens, most stop far earlier."""

AZURE_CONVERSATION: Final = Dataset("azure-conversation", Lognormal(830, 0.98, 1, 4096), Lognormal(134, 0.86, 1, 1000))
"""Azure LLM inference trace 2023, conversations: logarithms' mean and spread of its 19,366 rows."""

DATASETS: Final[Mapping[str, Dataset]] = {dataset.name: dataset for dataset in (SHAREGPT, ALPACA, SPEC_BENCH, AZURE_CONVERSATION)}


def _below(z: float) -> float:
    """Probability that a standard normal lies below `z`."""
    return 0.5 * math.erfc(-z / math.sqrt(2))
