"""What a simulated run gave: totals after warm-up, latencies, a row a second, and what the policy ended with.

Values only. `RunResult.to_bytes` is the same for the same scenario on every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import add, attrgetter, sub
from typing import Any

import numpy as np

from nightjar.loadtests.load.goodput import Goodput
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.canary.trial import Trial


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over engine steps. Tokens are generated ones; seconds are virtual.

    `k_sum` is K summed over pure decode steps (`decode_steps`). `regret_tokens` is what the best K of every step would have
    given more, `best_tokens` what it would have given, both expected, 0 unless tracked.
    """

    tokens: float = 0.0
    busy_s: float = 0.0
    steps: int = 0
    decode_steps: int = 0
    steps_off: int = 0
    k_sum: int = 0
    restarts: int = 0
    catch_up_tokens: int = 0
    preemptions: int = 0
    expected_tokens: float = 0.0
    best_tokens: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(add, _values(self), _values(other)))

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*map(sub, _values(self), _values(other)))

    @property
    def goodput(self) -> float:
        """Tokens per busy engine-second; 0 where none was busy."""
        return self.tokens / self.busy_s if self.busy_s else 0.0

    @property
    def mean_num_speculative_tokens(self) -> float:
        """Mean K over pure decode steps."""
        return self.k_sum / self.decode_steps if self.decode_steps else 0.0

    @property
    def off_share(self) -> float:
        """Share of pure decode steps at K = 0."""
        return self.steps_off / self.decode_steps if self.decode_steps else 0.0

    @property
    def regret_tokens(self) -> float:
        """Expected tokens that the best K of every step would have given more."""
        return self.best_tokens - self.expected_tokens


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds over requests, or over outputs; all nan without any."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        """Mean and quantiles of some durations."""
        if not len(seconds):
            return cls(math.nan, math.nan, math.nan, math.nan)
        values = np.asarray(seconds, dtype=float)
        p50, p95, p99 = (float(value) for value in np.quantile(values, (0.5, 0.95, 0.99)))
        return cls(float(values.mean()), p50, p95, p99)

    @classmethod
    def weighted(cls, seconds: Sequence[float], weights: Sequence[int]) -> Quantiles:
        """The same where each duration came `weights` times: the least one that so many of all did not exceed.

        >>> Quantiles.weighted([3.0, 1.0], [1, 199])
        Quantiles(mean=1.01, p50=1.0, p95=1.0, p99=1.0)
        >>> Quantiles.weighted([3.0, 1.0], [3, 197]).p99
        3.0
        """
        if not len(seconds):
            return cls(math.nan, math.nan, math.nan, math.nan)
        values, counts = np.asarray(seconds, dtype=float), np.asarray(weights, dtype=float)
        order = np.argsort(values)
        reached = np.cumsum(counts[order])
        places = np.searchsorted(reached, np.array((0.5, 0.95, 0.99)) * reached[-1])
        p50, p95, p99 = (float(value) for value in values[order][places])
        return cls(float(values @ counts / reached[-1]), p50, p95, p99)


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """One replica: its totals from when it joined or the warm-up ended, and the plan it ran last.

    `plan` is K by batch bucket without measurements under way; None where the engine decides by itself or knows no settings.
    `plan_without_liar` is what it would be had the policy never heard the scenario's liar; None without one.
    """

    replica_id: str
    joined_s: float
    totals: Totals
    plan: tuple[int, ...] | None
    plan_without_liar: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Second:
    """What happened in the second that ends at `at_s`, over the whole service, and how it stands then."""

    at_s: float
    totals: Totals
    decode_rows: int
    waiting: int
    restarting: int
    serving: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run's measures, all after warm-up unless said otherwise.

    Latencies are of requests that arrived after warm-up and were answered in full: time to first token, time per output token
    after it, end to end. `itl_s` is over the outputs of all requests after warm-up: what passed since the request's output before
    (one step; what a preemption takes until the request decodes again is no part of it). `unfinished` were asked after warm-up and
    not answered at the end; `last_answer_s` is when the last request was answered, 0 without any. `asked_tokens` are those of all
    answers asked for after warm-up, infinite where closed-loop users ask, for they ask by what they get. `max_leases_in_flight` and
    `budget_violations` count what engines did from the start: the most restarts by lease at once, and those that began above the
    operator's budget, in the group or on a node (INV-6). `refused_reports`, `guard_trips` and `steps_with_warm_up` count from
    the start, too. `request_seconds` is the area under the number of requests in the system that arrived after warm-up; where all
    were answered it is the sum of their times end to end (Little). `under_target` is of the answered requests that arrived after
    warm-up, and of those that could no longer keep the scenario's target at the end; None without one.
    """

    planner: str
    seed: int
    measured_s: float
    totals: Totals
    replicas: tuple[ReplicaResult, ...]
    answered: int
    unfinished: int
    last_answer_s: float
    asked_tokens: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    itl_s: Quantiles
    e2e_s: Quantiles
    max_leases_in_flight: int
    budget_violations: int
    refused_reports: int
    guard_trips: int
    incarnation: int
    steps_with_warm_up: int
    request_seconds: float = 0.0
    under_target: Goodput | None = None
    seconds: tuple[Second, ...] = ()
    learned: LearnedTables | None = None
    canary: Trial | None = None

    @property
    def goodput(self) -> float:
        """Tokens per busy engine-second, of no more tokens than were asked for in that time: who brings a backlog along is not
        credited for working it off."""
        busy_s = self.totals.busy_s
        return min(self.totals.tokens, self.asked_tokens) / busy_s if busy_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of virtual time, all replicas together."""
        return self.totals.tokens / self.measured_s

    def to_bytes(self) -> bytes:
        """A canonical form: equal results give equal bytes."""
        records = {"learned": self.learned, "under_target": self.under_target}
        told = None if self.canary is None else self.canary.in_words()
        dumped = {name: None if one is None else one.model_dump(mode="json") for name, one in records.items()}
        plain = asdict(replace(self, canary=None)) | {"canary": told} | dumped
        return json.dumps(plain, sort_keys=True).encode()


_values: Callable[[Totals], tuple[Any, ...]] = attrgetter(*Totals.__dataclass_fields__)
