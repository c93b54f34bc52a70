"""What Prometheus kept of vLLM's engines: the series that are read, by their names, and each engine's samples.

vLLM exports `vllm:name` by itself and `ray_vllm_name` through Ray (vllm/v1/metrics/loggers.py, ray_wrappers.py). Every engine of a
process has labels of its own, so series with equal labels (but for `position`) are one engine's. Fails towards less: a series that
an engine does not have is one that nothing is known of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PREFIXES: Final = ("vllm:", "ray_vllm_")
"""Of a plain vLLM, and of one whose metrics Ray exports."""
POSITION: Final = "position"
"""Label of accepted tokens by draft position, from 0."""
MODEL: Final = "model_name"


class Metric(StrEnum):
    """A series that is read, without its prefix. All but the first are counters."""

    RUNNING = "num_requests_running"
    DRAFTS = "spec_decode_num_drafts_total"
    """Decode rows that verified drafts."""
    DRAFT_TOKENS = "spec_decode_num_draft_tokens_total"
    ACCEPTED_TOKENS = "spec_decode_num_accepted_tokens_total"
    ACCEPTED_AT = "spec_decode_num_accepted_tokens_per_pos_total"
    GENERATED_TOKENS = "generation_tokens_total"
    PROMPT_TOKENS = "prompt_tokens_total"
    CACHED_TOKENS = "prompt_tokens_cached_total"
    """Prompt tokens that a prefix cache held."""
    STEP_SECONDS = "inter_token_latency_seconds_sum"
    """Of each decode row of each step: seconds since the request's output before."""
    STEP_ROWS = "inter_token_latency_seconds_count"
    """Decode rows of all steps."""
    ANSWERS = "request_generation_tokens_count"
    ANSWER_TOKENS = "request_generation_tokens_sum"
    ANSWERED_PROMPT_TOKENS = "request_prompt_tokens_sum"


@dataclass(frozen=True, slots=True)
class Series:
    """Samples in order of time (seconds since the epoch)."""

    times_s: Floats
    values: Floats

    @classmethod
    def of(cls, samples: Iterable[tuple[float, float]]) -> Self:
        """From samples in any order; of several at one time one counts, and what is no number does not."""
        pairs = sorted((at, value) for at, value in dict(samples).items() if math.isfinite(value))
        return cls(np.array([at for at, _ in pairs]), np.array([value for _, value in pairs]))

    def increase_between(self, times_s: Floats) -> Floats:
        """What a counter counted between each two neighbours of `times_s`, as of the last sample at or before each.

        >>> Series.of([(0, 5), (10, 9), (20, 2)]).increase_between(np.array([0.0, 10.0, 20.0, 30.0])).tolist()
        [4.0, 2.0, 0.0]
        """
        if not len(self.values):
            return np.zeros(max(len(times_s) - 1, 0))
        counted = np.concatenate(([0.0], np.cumsum(increases(self.values))))
        places = np.searchsorted(self.times_s, times_s, side="right") - 1
        increase: Floats = np.diff(counted[np.maximum(places, 0)])
        return increase


def increases(values: Floats) -> Floats:
    """What a counter counted from each sample to the next. It falls where its process began anew, and counts from 0 there.

    >>> increases(np.array([3.0, 7.0, 7.0, 2.0, 5.0])).tolist()
    [4.0, 0.0, 2.0, 3.0]
    """
    added: Floats = np.where(values[1:] >= values[:-1], values[1:] - values[:-1], values[1:])
    return added


_NOTHING: Final = Series.of(())


@dataclass(frozen=True, slots=True)
class EngineScrapes:
    """One engine's samples. `accepted_at` are its counters of accepted tokens by draft position."""

    labels: Mapping[str, str]
    series: Mapping[Metric, Series]
    accepted_at: Sequence[Series] = field(default=())

    @property
    def model(self) -> str:
        """The name under which it serves."""
        return self.labels.get(MODEL, "")

    def get(self, metric: Metric) -> Series:
        """The samples of a series; none where the engine does not have it."""
        return self.series.get(metric, _NOTHING)


class Collector:
    """Puts samples together that come series by series and hour by hour."""

    def __init__(self) -> None:
        self._samples: dict[tuple[frozenset[tuple[str, str]], Metric, int], list[tuple[float, float]]] = {}

    def add(self, labels: Mapping[str, str], samples: Iterable[tuple[float, float]]) -> None:
        """Take samples of the series whose labels, `__name__` among them, are `labels`; one that is not read is left out."""
        metric = _metric_of(labels.get("__name__", ""))
        if metric is None:
            return
        position = _position_of(labels) if metric is Metric.ACCEPTED_AT else 0
        if position is None:
            return
        engine = frozenset((name, value) for name, value in labels.items() if name not in {"__name__", POSITION})
        self._samples.setdefault((engine, metric, position), []).extend(samples)

    def engines(self) -> list[EngineScrapes]:
        """Every engine of which requests in flight were scraped."""
        by_engine: dict[frozenset[tuple[str, str]], dict[tuple[Metric, int], Series]] = {}
        for (engine, metric, position), samples in self._samples.items():
            by_engine.setdefault(engine, {})[metric, position] = Series.of(samples)
        return [_engine(engine, series) for engine, series in by_engine.items() if (Metric.RUNNING, 0) in series]


def _engine(labels: frozenset[tuple[str, str]], found: Mapping[tuple[Metric, int], Series]) -> EngineScrapes:
    positions = [position for metric, position in found if metric is Metric.ACCEPTED_AT]
    return EngineScrapes(
        dict(sorted(labels)),
        {metric: series for (metric, _), series in found.items() if metric is not Metric.ACCEPTED_AT},
        tuple(found.get((Metric.ACCEPTED_AT, position), _NOTHING) for position in range(max(positions, default=-1) + 1)),
    )


def _metric_of(name: str) -> Metric | None:
    for prefix in PREFIXES:
        if name.startswith(prefix) and name.removeprefix(prefix) in _METRICS:
            return Metric(name.removeprefix(prefix))
    return None


def _position_of(labels: Mapping[str, str]) -> int | None:
    text = labels.get(POSITION, "")
    return int(text) if text.isdecimal() and int(text) < MOST_POSITIONS else None


_METRICS: Final = frozenset(Metric)
MOST_POSITIONS: Final = 32
"""Draft positions that are read: as many as a K may have (policy.wire.record)."""
