"""How long prompts and answers are, by kind of data set.

A simulator needs numbers of tokens and no text, so each data set is two lognormal distributions, cut off where real services
cut off. Their parameters come from published means or from files that we can count; what is assumed is said beside them.
Fails closed: parameters that are no distribution raise ValueError with the field's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

LENGTHS: Final = 20_000
"""Answers drawn to know how long one is that is under way."""


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

    def draw(self, count: int, rng: np.random.Generator) -> Integers:
        """`count` independent lengths in tokens."""
        drawn = np.exp(rng.normal(math.log(self.median_tokens), self.sigma, count))
        tokens: Integers = np.clip(np.rint(drawn), self.min_tokens, self.max_tokens).astype(np.int64)
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
    """Lengths of one kind of traffic; prompt and answer are independent.

    `cached_share` of each prompt is found in the prefix cache: the conversation so far, say, of an agent that comes back with it.
    Nobody computes that part again, but the request holds its KV like any other. `max_model_len` is where a server of such
    traffic cuts prompt and answer together.
    """

    name: str
    prompt: Lognormal
    output: Lognormal
    cached_share: float = 0.0
    max_model_len: int = 2048

    def __post_init__(self) -> None:
        if not 0.0 <= self.cached_share < 1.0:
            raise ValueError(f"data set {self.name}: cached_share {self.cached_share:g}, allowed are 0 up to 1")

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Integers, Integers, Integers]:
        """Tokens of `count` prompts, of their answers, and of the prompts' cached part."""
        prompts, outputs = self.prompt.draw(count, rng), self.output.draw(count, rng)
        return prompts, outputs, (self.cached_share * prompts).astype(np.int64)

    @property
    def mean_prefill_tokens(self) -> float:
        """Expected prompt, without what the prefix cache holds."""
        return (1.0 - self.cached_share) * self.prompt.mean_tokens

    @property
    def mean_output_tokens(self) -> float:
        """Expected answer."""
        return self.output.mean_tokens

    @property
    def mean_context_tokens(self) -> float:
        """Mean context of a decoding request. Long answers stay longest, so a request that is met in the middle of its answer is
        longer than the average one."""
        lengths = self.output.draw(LENGTHS, np.random.default_rng(0)).astype(float)
        return self.prompt.mean_tokens + float((lengths**2).mean() / (2 * lengths.mean()))


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several kinds of traffic in one service; each request is of any of them with the same probability."""

    name: str
    parts: tuple[Dataset, ...]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Integers, Integers, Integers]:
        """As `Dataset.draw`."""
        kinds = rng.integers(len(self.parts), size=count)
        drawn = [np.stack(part.draw(count, rng)) for part in self.parts]
        prompts, outputs, cached = np.stack(drawn)[kinds, :, np.arange(count)].T
        return prompts, outputs, cached

    @property
    def max_model_len(self) -> int:
        """One server answers all of them."""
        return max(part.max_model_len for part in self.parts)

    @property
    def mean_prefill_tokens(self) -> float:
        """Expected prompt, without what the prefix cache holds."""
        return fmean(part.mean_prefill_tokens for part in self.parts)

    @property
    def mean_output_tokens(self) -> float:
        """Expected answer."""
        return fmean(part.mean_output_tokens for part in self.parts)

    @property
    def mean_context_tokens(self) -> float:
        """Mean context of a decoding request: who answers at length is met more often."""
        weights = [part.mean_output_tokens for part in self.parts]
        return fmean((part.mean_context_tokens for part in self.parts), weights)


Traffic = Dataset | Mixture


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


def retrieval(num_tokens: int) -> Dataset:
    """Questions about texts that come with them: prompts of 2,000 tokens, answers of 30 (assumed).

    `num_tokens` is what the KV cache holds. A prompt is an eighth of it at most, so that several requests run at once.
    """
    median = min(2000, num_tokens // 8)
    return Dataset("retrieval", Lognormal(median, 0.3, 16, 2 * median), Lognormal(30, 0.6, 2, 120), max_model_len=2 * median + 120)


def agents(num_tokens: int) -> Dataset:
    """Agents that come back with all that was said: prompts of 8,000 tokens (an eighth of the KV cache at most), nine tenths of it
    in the prefix cache, answers of 200 (assumed)."""
    median = min(8000, num_tokens // 8)
    prompt, output = Lognormal(median, 0.3, 16, 2 * median), Lognormal(200, 0.6, 8, 600)
    return Dataset("agents", prompt, output, cached_share=0.9, max_model_len=2 * median + 600)


def half_retrieval(chat: Dataset, num_tokens: int) -> Mixture:
    """Every other request is of the chat, the others are of `retrieval`."""
    return Mixture("half-retrieval", (chat, retrieval(num_tokens)))


DATASETS: Final[Mapping[str, Dataset]] = {dataset.name: dataset for dataset in (SHAREGPT, ALPACA, SPEC_BENCH, AZURE_CONVERSATION)}


def _below(z: float) -> float:
    """Probability that a standard normal lies below `z`."""
    return 0.5 * math.erfc(-z / math.sqrt(2))
