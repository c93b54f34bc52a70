"""How well the simulator predicts this very engine: a profile fitted at some batches, held against others and a changing load.

The profile is the simulator's own data file. Fitted are step times at batches 1, 4, 16 and 32 (step_times.py fills its table
between them), acceptance by question (each is a class of its own), prefill, catch-up and the tax of stock K=0; noise is left out,
since speeds are compared.
Predicted are tokens/s at batches 2, 8 and 24 and of the whole changing load, in virtual time, many seeds; all of them were measured
in turns with the batches of the fit, so that a machine that is slower for minutes is slower for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np

from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.profiles import (
    AcceptanceClass,
    Drafter,
    Limits,
    MeasuredTable,
    Mechanics,
    Profile,
    StepNoise,
)
from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.wire.settings import IssuedSettings, SettingsVersion
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import Engine, held
from tests.benchmarks.engine.fixture import (
    ARMS,
    DISTINCT_QUESTIONS,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    MAX_NUM_SPECULATIVE_TOKENS,
    questions,
    says,
)
from tests.benchmarks.engine.fleet_link import GROUP
from tests.benchmarks.engine.measured import OFF, Segment, acceptance_counts, arm_name, speed
from tests.benchmarks.engine.sections.changing_load import Run, play, requests
from tests.benchmarks.engine.sections.crossover import Cells, Sample
from tests.benchmarks.engine.sections.off import OffTimes
from tests.benchmarks.engine.sections.step_times import fitted_step_times
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.statistics import line_through, range_of, relative_error, survival

FITTED: Final = (1, 4, 16, 32)
TABLE: Final = tuple(rows for rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if rows <= MAX_NUM_SEQS)
PREDICTED: Final = (2, 8, 24)
LENGTHS: Final = (0, 1, 3)
PREDICTED_ARMS: Final = tuple(arm_name(length) for length in LENGTHS)
"""What is predicted, at other batches and under the changing load."""
ERROR_WANTED: Final = 0.15
SEEDS: Final = 40
STEADY_STEPS: Final = 60
SETTLED_STEPS: Final = 4
PRIOR_ROWS: Final = 6.0
"""Rows of the average question that are added to each one's own."""
BLOCK_SIZE: Final = 128
BLOCKS: Final = 180
NAME: Final = "cpu-smollm2-engine"


def held_against(effort: Effort) -> dict[int, Sample]:
    """What has to be measured for the predictions' sake alone: the batches that nobody else looks at."""
    return {
        batch: Sample(PREDICTED_ARMS, effort.extra_batch_rounds, effort.slot_tokens[batch])
        for batch in PREDICTED
        if batch not in effort.batches
    }


def measure_simulator(
    engine: Engine, cells: Cells, runs: Sequence[Run], times: OffTimes, cost: CatchUpCost, effort: Effort
) -> tuple[Outcome, Profile]:
    """Fit, and predict what was measured in turns with what it is fitted to."""
    asked = max(
        *(segment.first_question + segment.batch for segment in cells.segments), *(requests(run.round_number).stop for run in runs)
    )
    prompt_tokens = [len(prompt) for prompt in engine.encode(questions(asked))]
    profile = fitted_profile(cells, times, cost, prompt_tokens)
    rows: list[dict[str, Any]] = []
    for batch in PREDICTED:
        for length in LENGTHS:
            measured = cells.of(batch, arm_name(length))
            firsts = [segment.first_question for segment in measured]
            predicted = fmean(
                steady_speed(profile, prompt_tokens, firsts[seed % len(firsts)], batch, length, seed) for seed in range(SEEDS)
            )
            rows.append(_prediction(f"batch {batch}, K={length}", predicted, speed(measured)))
    for length in LENGTHS:
        played_for_real = [run for run in runs if run.arm == arm_name(length)]
        played = [
            play(SimulatedPlay(profile, prompt_tokens, length, seed), effort.load, run.round_number)
            for run in played_for_real for seed in range(SEEDS)
        ]  # fmt: skip
        predicted = sum(tokens for _, tokens in played) / sum(seconds for seconds, _ in played)
        actual = sum(run.tokens for run in played_for_real) / sum(run.seconds for run in played_for_real)
        rows.append(_prediction(f"changing load, K={length}", predicted, actual))
    errors = [row["error"] for row in rows]
    worst = max(rows, key=lambda row: row["error"])
    bar = Bar(
        name="simulator_error",
        meaning="error of the simulator's tokens/s, fitted at other batches: the largest of all predictions",
        direction="at most",
        limit=ERROR_WANTED,
        value=worst["error"],
        interval=range_of(errors, "predictions"),
        at=str(worst["at"]),
        cells=len(rows),
    )
    outcome = Outcome(bars=[bar], rows={"simulator": rows})
    outcome.rows["predicted"] = [segment.plain() for segment in cells.segments if segment.batch in PREDICTED]
    outcome.facts["simulator_error_median"] = round(sorted(errors)[len(errors) // 2], 4)
    lines = [[row["at"], f"{row['predicted']:.1f}", f"{row['measured']:.1f}", f"{row['error']:.1%}"] for row in rows]
    outcome.tables.append(Grid("The simulator, fitted at batches 1, 4, 16, 32", ("at", "predicted", "measured", "error"), lines))
    return outcome, profile


def fitted_profile(cells: Cells, times: OffTimes, cost: CatchUpCost, prompt_tokens: Sequence[int]) -> Profile:
    """A profile of this engine from what was measured at the fitted batches."""
    known = [segment for segment in cells.segments if segment.batch in FITTED and segment.arm.startswith("K=")]
    step_times = fitted_step_times({(batch, length): _mean_ms(known, batch, length) for batch in FITTED for length in ARMS})
    milliseconds = tuple(tuple(step_times.of(batch, length) for length in ARMS) for batch in TABLE)
    tax = {batch: fmean(times.stock_seconds[batch]) / fmean(times.off_seconds[batch]) for batch in times.off_seconds}
    contexts = [(batch, *_context(segment, prompt_tokens)) for segment in known if segment.arm == OFF for batch in [segment.batch]]
    largest = [(context, seconds) for batch, context, seconds in contexts if batch == FITTED[-1]]
    slope = max(line_through(*zip(*largest, strict=True))[1], 0.0) if len(largest) > 2 else 0.0
    prefill_seconds = sum(step.seconds for step in cells.prefills) / sum(step.prefill_tokens for step in cells.prefills)
    return Profile(
        name=NAME,
        description=f"Measured by make bench-engine on one CPU core: {says()}.",
        group=GROUP,
        limits=Limits(
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            block_size=BLOCK_SIZE,
            num_blocks=BLOCKS,
        ),
        drafter=Drafter(
            kind="draft_model",
            off=Mechanics.DORMANT,
            arms=ARMS,
            catch_up_seconds=cost.step_seconds,
            catch_up_seconds_per_token=cost.token_seconds,
        ),
        step_cost=MeasuredTable(
            kind="table",
            batch_sizes=TABLE,
            lengths=ARMS,
            milliseconds=milliseconds,
            stock_off_milliseconds=tuple(
                line[0] * float(np.interp(batch, sorted(tax), [tax[one] for one in sorted(tax)]))
                for batch, line in zip(TABLE, milliseconds, strict=True)
            ),
            draft_share=0.5,
            context_tokens_per_row=fmean(context / batch for batch, context, _ in contexts),
            seconds_per_context_token=slope,
            prefill_seconds_per_token=prefill_seconds,
        ),
        acceptance_classes=_classes(known, min(len(prompt_tokens), DISTINCT_QUESTIONS)),
        step_noise=StepNoise(lognormal_sd=0.0),
        sources={
            "limits": "The engine's arguments; blocks by rounding.",
            "drafter": "Measured: the line through catch-up steps that policy.evidence.catch_up fits.",
            "step_cost": "Fitted to mean steps at 1, 4, 16 and 32 rows, arms interleaved in a batch, and drawn on from there; "
            "stock K=0 beside OFF at 1, 4 and 16, its share at 16 taken over to more rows; draft_share assumed; context by a line "
            "through OFF steps at 32.",
            "acceptance_classes": "Measured, one class for each question; drawn to the mean of all by six rows.",
            "step_noise": "Left out: only means are predicted.",
        },
    )


class SimulatedPlay:
    """The simulated engine under the changing load, at one K."""

    def __init__(self, profile: Profile, prompt_tokens: Sequence[int], length: int, seed: int) -> None:
        self.engine = simulated_engine(profile, length, seed)
        self._prompt_tokens = prompt_tokens
        self._number = 0

    def submit(self, numbers: range, max_tokens: int) -> None:
        """As `Played.submit`."""
        for number in numbers:
            self._number += 1
            kind = number % DISTINCT_QUESTIONS
            request = SimulatedRequest(self._number, self.engine.now_s, self._prompt_tokens[number], max_tokens, kind)
            self.engine.submit(request)

    def step(self) -> tuple[float, int] | None:
        """As `Played.step`."""
        if not self.engine.has_work:
            return None
        totals = self.engine.totals
        seconds, tokens = totals.busy_s, totals.tokens
        self.engine.step()
        return totals.busy_s - seconds, totals.tokens - tokens


def simulated_engine(profile: Profile, length: int, seed: int) -> SimulatedEngine:
    """An engine that holds one K."""
    engine = SimulatedEngine(profile, replica_id="simulated", mechanics=Mechanics.DORMANT, seed=seed, local_planners=LOCAL_PLANNERS)
    refused = engine.adopt(IssuedSettings(version=SettingsVersion(incarnation=1, sequence=1), settings=held(length)))
    if refused:
        raise RuntimeError(refused)
    return engine


def steady_speed(profile: Profile, prompt_tokens: Sequence[int], first_question: int, batch: int, length: int, seed: int) -> float:
    """Tokens per second of so many questions, decoding."""
    play_of = SimulatedPlay(profile, prompt_tokens, length, seed)
    play_of.submit(range(first_question, first_question + batch), STEADY_STEPS * (MAX_NUM_SPECULATIVE_TOKENS + 1) * 2)
    while play_of.engine.decode_batch_size < batch:
        play_of.step()
    for _ in range(SETTLED_STEPS):
        play_of.step()
    steps = [step for _ in range(STEADY_STEPS) if (step := play_of.step()) is not None]
    return sum(tokens for _, tokens in steps) / sum(seconds for seconds, _ in steps)


def _prediction(at: str, predicted: float, measured: float) -> dict[str, Any]:
    return {
        "at": at,
        "predicted": round(predicted, 3),
        "measured": round(measured, 3),
        "error": round(relative_error(predicted, measured), 4),
    }


def _mean_ms(segments: Sequence[Segment], batch: int, length: int) -> float:
    own = [one for one in segments if (one.batch, one.arm) == (batch, arm_name(length))]
    return 1e3 * fmean(step.seconds for one in own for step in one.steps)


def _context(segment: Segment, prompt_tokens: Sequence[int]) -> tuple[float, float]:
    """Mean context of the whole batch, and mean seconds of a step."""
    prompts = sum(prompt_tokens[segment.first_question : segment.first_question + segment.batch])
    contexts = [prompts + sum(row.position for row in step.rows) for step in segment.steps]
    return fmean(contexts), fmean(step.seconds for step in segment.steps)


def _classes(segments: Sequence[Segment], asked: int) -> tuple[AcceptanceClass, ...]:
    by_question: dict[int, list[Any]] = {number: [] for number in range(asked)}
    for segment in segments:
        for step in segment.steps:
            first = min(row.row for row in step.rows)
            for row in step.rows:
                number = (segment.first_question + row.row - first) % DISTINCT_QUESTIONS
                by_question[number].append(step._replace(rows=(row,)))
    everything = [step for steps in by_question.values() for step in steps]
    average = survival(*acceptance_counts(everything, MAX_NUM_SPECULATIVE_TOKENS))
    names = questions(asked)
    return tuple(
        AcceptanceClass(name=f"{number}: {names[number]}"[:64], share=1.0 / asked, survival=_drawn(steps, average))
        for number, steps in by_question.items()
    )


def _drawn(steps: Sequence[Any], average: Sequence[float]) -> tuple[float, ...]:
    reached, accepted = acceptance_counts(steps, MAX_NUM_SPECULATIVE_TOKENS)
    found: list[float] = []
    for rows, hits, mean in zip(reached, accepted, average, strict=True):
        share = (hits + PRIOR_ROWS * mean) / (rows + PRIOR_ROWS)
        found.append(min(share, found[-1] if found else 1.0))
    return tuple(found)
