"""What a restart costs and what it earns, in tokens, and what follows for the bounds that replicas are given.

Cost: recomputing a replica's lag makes its steps longer (policy.evidence.catch_up). Gain: what speculation adds until the load
leaves (on_time.py). Fails towards no restart: what is not known to pay is not granted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.step.drafter import MAX_CHUNK_TOKENS

MICRO_SECONDS: Final = 0.03
MICRO_STEPS: Final = 0.5
"""A micro-restart may cost at most 3 % of a second, or half an OFF step where steps are long: all replicas may do one in the
same second."""
LEAST_CHUNK_TOKENS: Final = 16
PLANNED_SHARE: Final = 0.9
"""Of the slowdown that is allowed, on average: steps scatter, and what a request notices is the longest of a restart."""
OVERHEAD: Final = 2.0
"""A step that catches up takes at least so many times as long as its fixed part: smaller chunks would pay that too often."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the prices of one replica follow from: its group's, in the bucket where it is."""

    off_step_seconds: float
    off_tokens_per_s: float
    decode_rows: float
    cost: CatchUpCost
    chunk_tokens: int

    @property
    def chunk_seconds(self) -> float:
        """What a full chunk makes a step longer."""
        return self.cost.of_chunk(self.chunk_tokens)

    def catch_up_steps(self, lag_tokens: float) -> int:
        """Steps until the drafter runs again: a chunk is what one takes off the lag, the tokens of this step come on top."""
        return max(math.ceil(lag_tokens / self.chunk_tokens), 1)

    def catch_up_seconds(self, lag_tokens: float) -> float:
        """The same in seconds."""
        return self.catch_up_steps(lag_tokens) * self.off_step_seconds + self.lost_seconds(lag_tokens)

    def slowdown(self, lag_tokens: float) -> float:
        """Share of the engine's capacity that the restart takes, 0..1, of the second that it lasts or of each second."""
        share = self.chunk_seconds / (self.off_step_seconds + self.chunk_seconds)
        return min(share, self.lost_seconds(lag_tokens))

    def lost_seconds(self, lag_tokens: float) -> float:
        """Engine time that recomputing takes in all.

        Rows are caught up one after the other, so that half of them, on average, fall behind by another token in each step but the
        last.
        """
        steps = self.catch_up_steps(lag_tokens)
        return self.cost.step_seconds * steps + self.cost.token_seconds * (lag_tokens + (steps - 1) * self.decode_rows / 2.0)


@dataclass(frozen=True, slots=True)
class Price:
    """One restart: tokens it earns until the load leaves, tokens it costs, seconds until it earns."""

    value_tokens: float
    cost_tokens: float
    catch_up_seconds: float

    @property
    def pays(self) -> bool:
        """Whether it is worth its cost."""
        return self.value_tokens > self.cost_tokens

    @property
    def gain_per_second(self) -> float:
        """Tokens gained per second of catch-up: what is granted first."""
        return (self.value_tokens - self.cost_tokens) / self.catch_up_seconds


def price(
    engine: Engine,
    lag_tokens: float,
    value_tokens: float,
    gain_tokens_per_s: float,
    first_step_seconds: float,
    reload_seconds: float,
) -> Price:
    """The price of one restart.

    While it catches up the replica earns nothing of `gain_tokens_per_s`, which `value_tokens` counts from now on. It loses the time
    that recomputing takes, and that of the first drafting step, which verifies nothing and takes `first_step_seconds` longer.
    A reload leaves the engine serving; its seconds are only waited for.
    """
    seconds = engine.catch_up_seconds(lag_tokens) + reload_seconds
    cost_tokens = (first_step_seconds + engine.lost_seconds(lag_tokens)) * engine.off_tokens_per_s
    return Price(max(value_tokens - gain_tokens_per_s * seconds, 0.0), cost_tokens, seconds)


def chunk_tokens(off_step_seconds: float, cost: CatchUpCost, decode_rows: float, catch_up_slowdown: float) -> int:
    """Tokens that one step may recompute: those that make it longer by PLANNED_SHARE of `catch_up_slowdown`, or by OVERHEAD times
    the fixed part where that is more. On a coarse grid, so that noise moves it seldom; never less than twice the rows, whose lag
    grows meanwhile.

    >>> chunk_tokens(0.25, CatchUpCost(0.025, 1.35e-3), 4, 0.2), chunk_tokens(0.022, CatchUpCost(0.0059, 2.9e-6), 8, 0.2)
    (16, 1536)
    """
    longer = max(PLANNED_SHARE * catch_up_slowdown * off_step_seconds, OVERHEAD * cost.step_seconds)
    wanted = half_octave((longer - cost.step_seconds) / cost.token_seconds)
    return min(max(wanted, LEAST_CHUNK_TOKENS, power_of_two(4.0 * decode_rows)), MAX_CHUNK_TOKENS)


def micro_restart_tokens(engine: Engine, value_tokens: float, first_step_seconds: float) -> int:
    """The largest lag that a replica may catch up without a lease: little enough to go unnoticed, and worth it.

    A power of two, for the same reason as a chunk.
    """
    unnoticed_s = max(MICRO_SECONDS, MICRO_STEPS * engine.off_step_seconds)
    worth_s = value_tokens / engine.off_tokens_per_s - first_step_seconds
    left_s = min(unnoticed_s, worth_s)
    full_chunks = max(int(left_s / engine.chunk_seconds), 0)
    rest = (left_s - full_chunks * engine.chunk_seconds - engine.cost.step_seconds) / engine.cost.token_seconds
    return power_of_two(full_chunks * engine.chunk_tokens + max(rest, 0.0))


def half_octave(value: float) -> int:
    """The highest of 1, 2, 3, 4, 6, 8, 12, ... that is not above `value`; 0 below 1.

    >>> [half_octave(value) for value in (0.5, 1.0, 2.9, 3.0, 5.9, 47.0, 48.0)]
    [0, 1, 2, 3, 4, 32, 48]
    """
    octave = power_of_two(value)
    return octave + octave // 2 if value >= 1.5 * octave else octave


def power_of_two(value: float) -> int:
    """The highest power of two that is not above `value`; 0 below 1.

    >>> [power_of_two(value) for value in (0.5, 1.0, 3.9, 1024.0)]
    [0, 1, 2, 1024]
    """
    return 1 << (int(value).bit_length() - 1) if value >= 1.0 else 0
