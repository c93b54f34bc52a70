"""From rows and samples to the table that a person reads: per mode and phase, in numbers that can be recomputed.

Requests belong to the phase in which they arrived, engine steps to the phase during which they ran; the last phase ends
when the last answer came. Pure functions of the recorded files, so `nightjar report` gives the same table as the run did.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from nightjar.loadtests.goodput import Goodput, GoodputTarget, goodput_of
from nightjar.loadtests.regimes import Regime
from nightjar.loadtests.rows import RequestRow, regime_start_s, timed
from nightjar.loadtests.samples import (
    EngineHistory,
    StatusSample,
    WorkByLength,
    all_work,
    mean_length,
    seconds_per_token,
    share_off,
)
from nightjar.policy.wire.record import Record

ALL_PHASES = "all"


class Times(Record):
    """Times of `n` requests, in seconds; None where no request was timed."""

    n: int
    p50_s: float | None = None
    max_s: float | None = None


class PhaseSummary(Record):
    """One row of the table. None stands where there was nothing to divide by.

    tokens_per_s  generated tokens of all engines over wall-clock seconds
    engine_seconds_per_token  step time of all engines over their generated tokens: what a token costs
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
    goodput: Goodput | None = None


class Check(Record):
    """One bar of the run: what must hold, what was counted, whether it held."""

    name: str
    passed: bool
    detail: str


class RunSummary(Record):
    """`summary.json`: everything that a run claims."""

    regime: str
    seed: int
    model: str
    modes: tuple[str, ...]
    phases: tuple[PhaseSummary, ...]
    checks: tuple[Check, ...] = ()
    policy_killed_at_s: float | None = None
    duration_s: float = 0.0
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
    for mode in modes:
        mine = [row for row in rows if row.mode == mode]
        history = EngineHistory([sample for sample in samples if sample.mode == mode])
        found = stretches(regime, mine)
        table += [_row(mode, stretch, [row for row in mine if row.phase == stretch.phase], history, target) for stretch in found]
        if found:
            table.append(_row(mode, Stretch(ALL_PHASES, found[0].start_s, found[-1].end_s), mine, history, target))
    return tuple(table)


def headline(phases: Sequence[PhaseSummary], baseline: str, modes: Sequence[str]) -> str:
    """One line: what a token cost in every other mode, as a multiple of `baseline`'s, in the first phase and in the busiest."""
    by_key = {(row.mode, row.phase): row for row in phases}
    real = [row for row in phases if row.mode == baseline and row.phase != ALL_PHASES]
    if not real:
        return "Nothing was measured."
    busiest = max(real, key=lambda row: row.requests / row.duration_s)
    words = []
    for mode in modes:
        costs = [
            f"{cost / reference:.2f} in {row.phase}"
            for row in dict.fromkeys((real[0], busiest))
            if (cost := _cost(by_key.get((mode, row.phase)))) and (reference := row.engine_seconds_per_token)
        ]
        if mode != baseline and costs:
            words.append(f"{mode} {', '.join(costs)}")
    return f"Engine time per token, as a multiple of {baseline}'s: {'; '.join(words) or 'nothing to compare'}."


def _cost(row: PhaseSummary | None) -> float | None:
    return row.engine_seconds_per_token if row else None


def _row(
    mode: str, stretch: Stretch, rows: Sequence[RequestRow], history: EngineHistory, target: GoodputTarget | None
) -> PhaseSummary:
    work: WorkByLength = history.work(stretch.start_s, stretch.end_s)
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
        mean_num_speculative_tokens=mean_length(work),
        share_of_steps_off=share_off(work),
        steps=all_work(work).steps,
        goodput=goodput_of(target, map(timed, whole), len(rows), duration_s) if target else None,
    )


def _times(seconds: Sequence[float]) -> Times:
    return Times(n=len(seconds), p50_s=median(seconds), max_s=max(seconds)) if seconds else Times(n=0)
