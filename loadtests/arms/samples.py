"""Status samples of a run, and what the engines did between two of them.

Engines count cumulatively and never reset, so the difference of any two samples is exact however many were missed between. An
engine is known by its `engine_id`: a replaced one starts from zero, one that a restarted policy has not heard of yet
keeps what was last seen of it. Fails closed on reading: a line that is no sample raises `SamplesError` with its number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightjar.loadtests.load.rows import read_records
from nightjar.policy.wire.record import Record
from nightjar.policy.wire.report import SteeringLevel, StepTotals
from nightjar.policy.wire.status import FleetStatus, ReplicaStatus


class SamplesError(ValueError):
    """A file of samples that cannot be read."""


class StatusSample(Record):
    """One answer of `GET /nightjar/status`, or why there was none. `mode` is the mode that the run was measuring."""

    time_s: float
    mode: str = ""
    status: FleetStatus | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What engines did at one K: StepTotals without the rest. Sums of steps, seconds, rows and tokens."""

    steps: int = 0
    step_seconds: float = 0.0
    decode_rows: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))


WorkByK = Mapping[int, Work]
"""Work by num_speculative_tokens."""


class EngineHistory:
    """The cumulative counts of every engine at every moment of a run, from its samples in any order."""

    def __init__(self, samples: Sequence[StatusSample]) -> None:
        self._seen: dict[str, list[tuple[float, tuple[StepTotals, ...]]]] = {}
        for sample in sorted(samples, key=lambda sample: sample.time_s):
            for replica in sample.status.replicas if sample.status else ():
                if replica.engine_id:
                    self._seen.setdefault(replica.engine_id, []).append((sample.time_s, replica.totals))

    def work(self, from_s: float, to_s: float) -> WorkByK:
        """What all engines together did between two moments, by K; K without a step are left out.

        Counts at a moment are those last seen at or before it, so that the work of adjoining stretches adds up.
        An engine first seen after `from_s` counts from its first sample if that was before `to_s`: what it did before it
        was seen belongs to nobody.
        """
        total: dict[int, Work] = {}
        for seen in self._seen.values():
            times = [time_s for time_s, _ in seen]
            last = bisect_right(times, to_s) - 1
            if last < 0:
                continue
            first = max(bisect_right(times, from_s) - 1, 0)
            before, after = _by_k(seen[first][1]), _by_k(seen[last][1])
            for k, work in after.items():
                total[k] = total.get(k, Work()) + work - before.get(k, Work())
        return {k: work for k, work in sorted(total.items()) if work.steps}


def decoding_replicas(samples: Iterable[StatusSample], mode: str) -> Iterator[ReplicaStatus]:
    """Steered replicas that decode under settings of `mode` which they confirmed, in the order of the samples."""
    return (replica for replica in steered_replicas(samples, mode) if replica.load.decode_batch_size)


def steered_replicas(samples: Iterable[StatusSample], mode: str) -> Iterator[ReplicaStatus]:
    """The same, with those that do not decode."""
    for sample in samples:
        for replica in sample.status.replicas if sample.status and sample.mode == mode else ():
            if replica.settings_confirmed and replica.steering is not SteeringLevel.PLAINLY:
                yield replica


def all_work(by_k: WorkByK) -> Work:
    """The work at every K together."""
    return sum(by_k.values(), Work())


def mean_k(by_k: WorkByK) -> float | None:
    """Mean K over the steps; None without steps."""
    steps = all_work(by_k).steps
    return sum(k * work.steps for k, work in by_k.items()) / steps if steps else None


def share_off(by_k: WorkByK) -> float | None:
    """Share of the steps at K = 0, from 0 to 1; None without steps."""
    steps = all_work(by_k).steps
    return by_k.get(0, Work()).steps / steps if steps else None


def seconds_per_token(by_k: WorkByK) -> float | None:
    """Engine seconds per generated token, over all engines; None where no token was generated in a timed step."""
    work = all_work(by_k)
    return work.step_seconds / work.generated_tokens if work.generated_tokens and work.step_seconds else None


def acceptance_rate(by_k: WorkByK) -> float | None:
    """Accepted over verified draft tokens; None where none was verified."""
    work = all_work(by_k)
    return work.accepted_tokens / work.draft_tokens if work.draft_tokens else None


def read_samples(path: Path) -> tuple[StatusSample, ...]:
    """Every sample of a file, in its order. Raises SamplesError naming the line; a missing file raises OSError."""
    return read_records(path, StatusSample, "status sample", SamplesError)


def _by_k(totals: Sequence[StepTotals]) -> dict[int, Work]:
    return {
        total.num_speculative_tokens: Work(
            total.steps, total.step_seconds, total.decode_rows, total.generated_tokens, total.draft_tokens, total.accepted_tokens
        )
        for total in totals
    }
