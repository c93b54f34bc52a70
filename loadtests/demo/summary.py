"""From rows and samples to the table that a person reads: per mode and phase, in numbers that can be recomputed.

Requests belong to the phase in which they arrived, engine steps to the phase during which they ran; the last phase ends
when the last answer came. Modes face the same arrivals, so a phase of one is compared with that of another in pieces of a few
seconds, paired by their time in the phase. Pure functions of the recorded files, so `nightjar report` gives the same table as the
run did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple

from nightjar.loadtests.arms.samples import (
    EngineHistory,
    StatusSample,
    WorkByK,
    all_work,
    mean_k,
    seconds_per_token,
    share_off,
)
from nightjar.loadtests.arms.statistics import Interval, Pair, Ratio, Speed, paired_ratio
from nightjar.loadtests.demo.memory import MemoryPeak
from nightjar.loadtests.load.goodput import Goodput, GoodputTarget, goodput_of
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.load.rows import RequestRow, regime_start_s, timed
from nightjar.loadtests.report.machine import RunFacts
from nightjar.policy.wire.record import Record

PIECES: Final = "pieces of the phase, each of both modes"
ALL_PHASES: Final = "all"
PIECE_S: Final = 5.0
"""About so long are the pieces that an interval is resampled from: longer than an answer takes in quiet."""


class Times(Record):
    """Times of `n` requests, in seconds; None where no request was timed."""

    n: int
    p50_s: float | None = None
    max_s: float | None = None


class PhaseSummary(Record):
    """One row of the table. None stands where there was nothing to divide by.

    tokens_per_s  generated tokens of all engines over wall-clock seconds
    engine_seconds_per_token  step time of all engines over their generated tokens: what a token costs
    speed  tokens per second of engine time over those of the first mode in the same phase; None for the first mode itself
    speed_interval  of this run alone: modes ran one after the other, so it does not hold what the machine did meanwhile
    mean_num_speculative_tokens, share_of_steps_off  over engine steps
    goodput  requests within a target, where one was asked for; their tokens per second are the clients' count
    """

    mode: str
    phase: str
    duration_s: float
    requests: int
    errors: int
    tokens_per_s: float
    engine_seconds_per_token: float | None
    ttft: Times
    tpot: Times
    mean_num_speculative_tokens: float | None
    share_of_steps_off: float | None
    steps: int
    speed: float | None = None
    speed_interval: Interval | None = None
    goodput: Goodput | None = None


class Check(Record):
    """One bar of the run: what must hold, what was counted, whether it held."""

    name: str
    passed: bool
    detail: str


class RunSummary(Record):
    """`summary.json`: everything that a run claims. `run` is how, where and when, `memory` what its processes held at most.

    `others` is what other programs took of the machine's processor time while a mode's load ran; absent where that is not known.
    """

    regime: str
    seed: int
    model: str
    modes: tuple[str, ...]
    phases: tuple[PhaseSummary, ...]
    checks: tuple[Check, ...] = ()
    policy_killed_at_s: float | None = None
    run: RunFacts | None = None
    memory: MemoryPeak | None = None
    others: Mapping[str, float] = {}
    headline: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)


class Stretch(NamedTuple):
    """A phase of one mode's run on the wall clock, in seconds since the epoch."""

    phase: str
    start_s: float
    end_s: float


def stretches(regime: Regime, rows: Sequence[RequestRow]) -> tuple[Stretch, ...]:
    """When each phase ran, as these rows of one mode tell; none without rows.

    The last one is extended to the last answer: the engines still work on what arrived.
    """
    start_s = regime_start_s(rows)
    if start_s is None:
        return ()
    found = [Stretch(phase.name, start_s + begin_s, start_s + end_s) for begin_s, end_s, phase in regime.schedule()]
    last_answer_s = max(row.start_s + row.e2e_s for row in rows)
    return (*found[:-1], found[-1]._replace(end_s=max(found[-1].end_s, last_answer_s)))


def summarise(
    regime: Regime,
    modes: Sequence[str],
    rows: Sequence[RequestRow],
    samples: Sequence[StatusSample],
    target: GoodputTarget | None = None,
) -> tuple[PhaseSummary, ...]:
    """The table: for every mode one row per phase and one for all of them; with the goodput under a target where there is one."""
    table: list[PhaseSummary] = []
    reference: dict[str, _Ran] = {}
    for mode in modes:
        mine = [row for row in rows if row.mode == mode]
        history = EngineHistory([sample for sample in samples if sample.mode == mode])
        ran = [_Ran(stretch, history) for stretch in stretches(regime, mine)]
        if ran:
            ran.append(_Ran(Stretch(ALL_PHASES, ran[0].stretch.start_s, ran[-1].stretch.end_s), history))
        for one in ran:
            arrived = [row for row in mine if one.stretch.phase in {row.phase, ALL_PHASES}]
            found = _speed(one, reference[one.stretch.phase]) if one.stretch.phase in reference else None
            table.append(_row(mode, one, arrived, found, target))
        reference = reference or {one.stretch.phase: one for one in ran}
    return tuple(table)


class _Ran(NamedTuple):
    """A phase of one mode's run, and the engines that ran it."""

    stretch: Stretch
    history: EngineHistory

    def pieces(self, count: int) -> Iterator[Speed]:
        """Tokens and engine seconds of as many pieces of equal length."""
        start_s, length_s = self.stretch.start_s, (self.stretch.end_s - self.stretch.start_s) / count
        for number in range(count):
            work = all_work(self.history.work(start_s + number * length_s, start_s + (number + 1) * length_s))
            yield Speed(work.generated_tokens, work.step_seconds)


def _speed(mine: _Ran, reference: _Ran) -> Ratio | None:
    """Tokens per second of engine time over those of the reference; None where one of them generated none.

    Pieces in which either did nothing are joined with the next, so that all pieces together are the whole phase.
    """
    shorter_s = min(one.stretch.end_s - one.stretch.start_s for one in (mine, reference))
    count = max(int(shorter_s / PIECE_S), 1)
    pairs: list[Pair] = []
    left = (Speed(0, 0), Speed(0, 0))
    for piece in zip(mine.pieces(count), reference.pieces(count), strict=True):
        left = _together(left, piece)
        if all(value > 0 for speed in left for value in speed):
            pairs.append(left)
            left = (Speed(0, 0), Speed(0, 0))
    if not pairs:
        return None
    pairs[-1] = _together(pairs[-1], left)
    return paired_ratio(pairs, seed=0, what=PIECES)


def _together(one: Pair, other: Pair) -> Pair:
    first, second = (Speed(a.tokens + b.tokens, a.seconds + b.seconds) for a, b in zip(one, other, strict=True))
    return first, second


def _row(mode: str, ran: _Ran, rows: Sequence[RequestRow], speed: Ratio | None, target: GoodputTarget | None) -> PhaseSummary:
    stretch = ran.stretch
    work: WorkByK = ran.history.work(stretch.start_s, stretch.end_s)
    duration_s = stretch.end_s - stretch.start_s
    whole = [row for row in rows if not row.error]
    return PhaseSummary(
        mode=mode,
        phase=stretch.phase,
        duration_s=duration_s,
        requests=len(rows),
        errors=sum(1 for row in rows if row.error),
        tokens_per_s=all_work(work).generated_tokens / duration_s,
        engine_seconds_per_token=seconds_per_token(work),
        ttft=_times([row.ttft_s for row in rows if row.ttft_s is not None]),
        tpot=_times([row.tpot_s for row in rows if row.tpot_s is not None]),
        mean_num_speculative_tokens=mean_k(work),
        share_of_steps_off=share_off(work),
        steps=all_work(work).steps,
        speed=speed.value if speed else None,
        speed_interval=speed.interval if speed and speed.rounds > 1 else None,
        goodput=goodput_of(target, map(timed, whole), len(rows), duration_s) if target else None,
    )


def _times(seconds: Sequence[float]) -> Times:
    return Times(n=len(seconds), p50_s=median(seconds), max_s=max(seconds)) if seconds else Times(n=0)
