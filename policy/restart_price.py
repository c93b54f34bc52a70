"""What a restart costs and what it earns, in tokens, and what follows for the bounds that replicas are given.

Cost: recomputing a replica's lag makes its steps longer, so many seconds a token, measured where it happens and pooled over
the group. Gain: what speculation adds until the load leaves (policy.on_time). Until measured, a token's price is set high,
so that the first restarts come in small chunks. Fails towards no restart: what is not known to pay is not granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from nightjar.policy.merging import capped_weights, quorum, robust_mean

PRIOR_STEP_SHARE: Final = 0.01
"""Seconds to recompute one token before evidence, as a share of an OFF step: dear on purpose. A draft of a fifth of the
target's size on a CPU took 0.005 (vLLM 0.32: 1.35 ms against 250 ms), a 0.5B draft beside a 7B target on a GPU 0.001."""
PRIOR_TOKENS: Final = 200.0
"""Tokens of evidence that the prior weighs as much as."""
HALF_LIFE_TOKENS: Final = 50_000.0
LEAST_TOKENS: Final = 32.0
"""Tokens that a replica must have recomputed before it has a voice on the price, where a quorum is asked."""
VALUE_OVER_COST: Final = 2.0
"""A restart must be worth twice its cost: expected ON times are wrong by about that much (docs/restarts.md)."""
MICRO_SECONDS: Final = 0.03
MICRO_STEPS: Final = 0.5
"""A micro-restart may cost at most 3 % of a second, or half an OFF step where steps are long: all replicas may do one in the
same second."""
LEAST_CHUNK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class CatchUpEvidence:
    """Decayed sums: draft tokens recomputed, and the seconds that this made steps longer."""

    tokens: float = 0.0
    seconds: float = 0.0

    def plus(self, newer: CatchUpEvidence) -> CatchUpEvidence:
        """This evidence aged by the newer tokens, and the newer."""
        share_left = 0.5 ** (newer.tokens / HALF_LIFE_TOKENS)
        return CatchUpEvidence(self.tokens * share_left + newer.tokens, self.seconds * share_left + newer.seconds)

    def seconds_per_token(self, off_step_seconds: float) -> float:
        """The price of one token of lag, shrunk to the prior.

        >>> CatchUpEvidence().seconds_per_token(0.25), CatchUpEvidence(200.0, 0.3).seconds_per_token(0.25)
        (0.0025, 0.002)
        """
        prior = PRIOR_STEP_SHARE * off_step_seconds
        return (self.seconds + PRIOR_TOKENS * prior) / (self.tokens + PRIOR_TOKENS)


@dataclass(frozen=True, slots=True)
class NewRestarts:
    """What a replica's counters added: tokens recomputed and what they took, restarts and those whose probe failed."""

    catch_up: CatchUpEvidence = field(default_factory=CatchUpEvidence)
    restarts: int = 0
    failed_probes: int = 0

    def plus(self, newer: NewRestarts) -> NewRestarts:
        """Both together."""
        return NewRestarts(
            self.catch_up.plus(newer.catch_up), self.restarts + newer.restarts, self.failed_probes + newer.failed_probes
        )


def merge_catch_up(
    known: CatchUpEvidence, pending: Mapping[str, CatchUpEvidence], replicas: int
) -> tuple[CatchUpEvidence, frozenset[str]]:
    """The group's evidence with what enough replicas of `replicas` report (INV-10), and whose pending evidence is used up."""
    needed = quorum(replicas)
    least = LEAST_TOKENS if needed > 1 else 1.0
    voices = {replica_id: waiting for replica_id, waiting in sorted(pending.items()) if waiting.tokens >= least}
    if len(voices) < needed:
        return known, frozenset()
    tokens = np.array([voice.tokens for voice in voices.values()])
    seconds = np.array([voice.seconds for voice in voices.values()])
    if needed > 1:
        weights = capped_weights(tokens)
        price = float(np.exp(robust_mean(np.log(np.maximum(seconds / tokens, 1e-12)), weights)))
    else:
        weights, price = tokens, float(seconds.sum() / tokens.sum())
    total = float(weights.sum())
    return known.plus(CatchUpEvidence(total, total * price)), frozenset(voices)


@dataclass(frozen=True, slots=True)
class Engine:
    """What the prices of one replica follow from: its group's, in the bucket where it is."""

    off_step_seconds: float
    off_tokens_per_s: float
    decode_rows: float
    seconds_per_token: float
    chunk_tokens: int

    @property
    def slowdown(self) -> float:
        """Share of the engine's capacity that a full chunk in every step takes, 0..1."""
        extra = self.seconds_per_token * self.chunk_tokens
        return extra / (self.off_step_seconds + extra)

    def catch_up_seconds(self, lag_tokens: float) -> float:
        """Until the drafter runs again. Every step of a catch-up adds a row's token to the lag of each row."""
        caught_up = max(self.chunk_tokens - self.decode_rows, self.chunk_tokens / 8.0)
        return max(lag_tokens / caught_up, 1.0) * (self.off_step_seconds + self.seconds_per_token * self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Price:
    """One restart: tokens it earns until the load leaves, tokens it costs, seconds until it earns."""

    value_tokens: float
    cost_tokens: float
    catch_up_seconds: float

    @property
    def pays(self) -> bool:
        """Whether it is worth its cost with a margin."""
        return self.value_tokens > VALUE_OVER_COST * self.cost_tokens

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
    cost_tokens = (first_step_seconds + engine.seconds_per_token * lag_tokens) * engine.off_tokens_per_s
    return Price(max(value_tokens - gain_tokens_per_s * seconds, 0.0), cost_tokens, seconds)


def chunk_tokens(off_step_seconds: float, seconds_per_token: float, decode_rows: float, catch_up_slowdown: float) -> int:
    """Tokens that one step may recompute: those that make it longer by the share `catch_up_slowdown`, a power of two so that
    noise moves it seldom; at least four times the rows, whose lag grows meanwhile.

    >>> chunk_tokens(0.02, 2e-5, 8, 0.2), chunk_tokens(0.25, 1.35e-3, 8, 0.2), chunk_tokens(0.25, 1.35e-3, 1, 0.2)
    (128, 32, 32)
    """
    wanted = catch_up_slowdown * off_step_seconds / seconds_per_token
    return max(power_of_two(wanted), LEAST_CHUNK_TOKENS, power_of_two(4.0 * decode_rows))


def micro_restart_tokens(engine: Engine, value_tokens: float, first_step_seconds: float) -> int:
    """The largest lag that a replica may catch up without a lease: little enough to go unnoticed, and worth it.

    A power of two, for the same reason as a chunk.
    """
    unnoticed_s = max(MICRO_SECONDS, MICRO_STEPS * engine.off_step_seconds)
    worth_s = value_tokens / VALUE_OVER_COST / engine.off_tokens_per_s - first_step_seconds
    return power_of_two(min(unnoticed_s, worth_s) / engine.seconds_per_token)


def power_of_two(value: float) -> int:
    """The highest power of two that is not above `value`; 0 below 1.

    >>> [power_of_two(value) for value in (0.5, 1.0, 3.9, 1024.0)]
    [0, 1, 2, 1024]
    """
    return 1 << (int(value).bit_length() - 1) if value >= 1.0 else 0
