"""What is measured off line, before a service runs: the step times that model-based rivals plan with, and speeds for a table.

TurboSpec and vLLM's adaptive verification decide from step costs that were measured before serving. A profile taken elsewhere, or
on another day, is wrong by some percent, so the simulator hands all of them one and the same prior whose cells are off by a seeded
factor. Tables come from step times as they are, once per profile at nominal acceptance, as a careful operator measures them.
Fails closed: text that is no grid of step times raises ValueError.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES

Grid = tuple[tuple[tuple[float, ...], ...], ...]

CONTEXTS: Final = (64, 512, 2048, 8192)
"""Context tokens of a row at which a profile is taken."""

MOST_ERROR: Final = 0.2
"""Share by which a cell of the prior may be off."""

_CONTEXT_GRAIN_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a pure decode step: seconds[batch][context][K]. Batches and contexts (tokens of one row) ascend."""

    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: Grid

    @property
    def max_num_speculative_tokens(self) -> int:
        """The largest K of the grid."""
        return len(self.seconds[0][0]) - 1

    def at(self, decode_rows: int, context_tokens: float) -> tuple[float, ...]:
        """Seconds by K at a batch and its context tokens (sum over rows); linear in the grid, level outside it."""
        low, high, share = _between(self.batch_sizes, decode_rows)
        left, right, part = _between(self.contexts, context_tokens / max(decode_rows, 1))
        return tuple(
            (1 - share) * ((1 - part) * a + part * b) + share * ((1 - part) * c + part * d)
            for a, b, c, d in zip(
                self.seconds[low][left],
                self.seconds[low][right],
                self.seconds[high][left],
                self.seconds[high][right],
                strict=True,
            )
        )

    def with_errors(self, seed: int, most: float = MOST_ERROR) -> StepTimes:
        """The same grid, every (batch, K) off by a factor uniform in 1 - `most` .. 1 + `most`, the same at all contexts."""
        rng = Random(seed)  # noqa: S311 - an error to plan with, no secret
        off = []
        for by_context in self.seconds:
            factors = [rng.uniform(1.0 - most, 1.0 + most) for _ in by_context[0]]
            off.append(tuple(tuple(value * factor for value, factor in zip(by_k, factors, strict=True)) for by_k in by_context))
        return StepTimes(self.batch_sizes, self.contexts, tuple(off))

    def to_text(self) -> str:
        """The grid as an option's text, microseconds in six digits."""
        rounded = [[[float(f"{value * 1e6:.6g}") for value in by_k] for by_k in by_context] for by_context in self.seconds]
        return json.dumps(
            {"batch_sizes": self.batch_sizes, "contexts": self.contexts, "microseconds": rounded}, separators=(",", ":")
        )

    @classmethod
    def from_text(cls, text: str) -> StepTimes:
        """Read what `to_text` wrote. Raises ValueError for anything else."""
        try:
            plain = json.loads(text)
            times = cls(
                tuple(int(size) for size in plain["batch_sizes"]),
                tuple(int(context) for context in plain["contexts"]),
                tuple(
                    tuple(tuple(float(value) / 1e6 for value in by_k) for by_k in by_context)
                    for by_context in plain["microseconds"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no grid of step times ({type(error).__name__}: {error})") from error
        times.check()
        return times

    def check(self) -> None:
        """Raise ValueError unless the axes ascend, the grid is full and every time is above zero."""
        for axis in (self.batch_sizes, self.contexts):
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < 1:
                raise ValueError(f"an axis of step times must ascend from 1 or more, got {axis}")
        widths = {len(by_k) for by_context in self.seconds for by_k in by_context}
        full = len(self.seconds) == len(self.batch_sizes) and {len(row) for row in self.seconds} == {len(self.contexts)}
        if not full or len(widths) != 1 or not all(value > 0 for plane in self.seconds for row in plane for value in row):
            raise ValueError("step times must be above zero at every batch, context and K")


StepSeconds = Callable[[int, int, int], float]
"""Seconds of a pure decode step by decode rows, context tokens (sum over the rows) and K."""


def measure(step_seconds: StepSeconds, *, max_num_seqs: int, max_num_speculative_tokens: int) -> StepTimes:
    """Profile an engine off line: one time for every batch bucket's first size and the largest batch, context and K."""
    sizes = sorted({size for size in FIRST_BATCH_SIZES if size < max_num_seqs} | {max_num_seqs})
    ks = range(max_num_speculative_tokens + 1)
    grid = tuple(tuple(tuple(step_seconds(size, size * context, k) for k in ks) for context in CONTEXTS) for size in sizes)
    return StepTimes(tuple(sizes), CONTEXTS, grid)


class StepTimesLookup:
    """`StepTimes.at` for the hot loop: remembers what it interpolated, contexts in steps of 64 tokens a row."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._known: dict[tuple[int, int], tuple[float, ...]] = {}

    def at(self, decode_rows: int, context_tokens: int) -> tuple[float, ...]:
        """Seconds by K."""
        grain = context_tokens // (max(decode_rows, 1) * _CONTEXT_GRAIN_TOKENS)
        found = self._known.get((decode_rows, grain))
        if found is None:
            found = self._times.at(decode_rows, (grain + 0.5) * _CONTEXT_GRAIN_TOKENS * decode_rows)
            self._known[decode_rows, grain] = found
        return found


def nominal_speeds(
    step_seconds: StepSeconds, survival: Sequence[float], ks: Sequence[int], *, max_num_seqs: int, context_tokens_per_row: int
) -> dict[int, dict[int, float]]:
    """Tokens per second of a row, by decode batch size from 1 to `max_num_seqs` and K of `ks`.

    survival[i] is the probability that more than i draft tokens are accepted.
    """
    tokens = {k: 1.0 + sum(survival[:k]) for k in ks}
    return {
        rows: {k: tokens[k] / step_seconds(rows, rows * context_tokens_per_row, k) for k in ks}
        for rows in range(1, max_num_seqs + 1)
    }


def _between(axis: Sequence[int], value: float) -> tuple[int, int, float]:
    """The axis' indices round a value and how far it lies between them, 0..1."""
    upper = bisect_right(axis, value)
    if upper == 0 or upper == len(axis):
        edge = min(upper, len(axis) - 1)
        return edge, edge, 0.0
    return upper - 1, upper, (value - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
