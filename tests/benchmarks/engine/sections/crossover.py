"""Every K and the planner at steady batches: which one is fastest where, and how near the planner comes.

A round is one batch in flight in which every arm has a slot of so many tokens per row. The next round has other questions, since a
batch of one has no mix of its own, and the arms at other places (a Latin rectangle), so that no arm has the easy texts to itself.
After a switch of K the steps until the drafter has caught up, and two more, are not measured. Odd rounds pick the best K and teach
the policy, whose slots are twice as long there, to measure what it likes; after them it goes on alone until a slot ran what it
plans from end to end: steady. Even rounds score, and what it measures then is its loss. Compared are tokens/s at the acceptance
that all arms together show (time as measured, and nobody's luck with the texts), and beside them the tokens/s that each arm truly
made, in which an arm may have had the easier texts.

Batches take turns, round by round, and whoever else measures this engine comes between the turns: a machine that slows down for
minutes slows all of them, and the simulator is fitted to the machine that it is held against.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nightjar.loadtests.arms.statistics import Interval
from nightjar.loadtests.simulation.evidence.bars import Bar, Direction
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import SETTLE_STEPS, Engine
from tests.benchmarks.engine.fixture import ARMS, MAX_NUM_SPECULATIVE_TOKENS, questions
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.measured import (
    AUTO,
    LEAST_CORE_SHARE,
    Segment,
    acceptance_counts,
    arm_name,
    expected_speed,
    speed,
    speed_ratio,
    step_seconds,
)
from tests.benchmarks.engine.step_record import Step, core_share
from tests.benchmarks.measuring.outcome import Lines, Outcome, Tell
from tests.benchmarks.measuring.repeats import Repeats, in_turns, latin_rectangle
from tests.benchmarks.measuring.statistics import resampled, survival

LEAST_MEASURED_STEPS: Final = 2
ROOM_TOKENS: Final = 96
TAUGHT_SLOTS: Final = 2
"""Slots that the planner has in one where it is taught."""
MOST_DROPPED_STEPS: Final = 16
"""The planner may be measuring, or waiting: then what comes after counts as its time."""

AfterTurn = Callable[[int], object]
"""What comes between the turns, by the number of the turn that has ended."""


class Sample(NamedTuple):
    """What is measured of one batch: these arms, so often, each for so many tokens a row."""

    arms: Sequence[str]
    repeats: Repeats
    slot_tokens: int


@dataclass(slots=True)
class Cells:
    """Segments of a run, and the prefill steps between them."""

    segments: list[Segment] = field(default_factory=list)
    prefills: list[Step] = field(default_factory=list)
    thrown_away: int = 0

    def of(self, batch: int, arm: str, half: str = "") -> list[Segment]:
        """One cell; both halves where none is named."""
        return [one for one in self.segments if (one.batch, one.arm) == (batch, arm) and half in {"", one.half}]


def measure_crossover(
    engine: Engine,
    link: FleetLink,
    effort: Effort,
    rng: random.Random,
    seed: int,
    tell: Tell,
    beside: Mapping[int, Sample],
    after_turn: AfterTurn,
) -> tuple[Outcome, Cells]:
    """The steady batches; where they are scored, the batches `beside` take their turns too, and `after_turn` comes between."""
    outcome, cells = Outcome(), Cells()
    fixed = [arm_name(arm) for arm in ARMS]

    def samples(repeats: Repeats) -> dict[int, Sample]:
        return {batch: Sample([*fixed, AUTO], repeats, effort.slot_tokens[batch]) for batch in effort.batches}

    link.free_restarts = True
    measure_rounds(engine, link, cells, "odd", samples(effort.rounds), rng, lambda turn: tell(f"odd rounds, turn {turn + 1}"))
    taught: dict[int, bool] = {}
    for batch in effort.batches:
        taught[batch] = _teach(engine, link, batch, effort)
        tell(f"batch {batch}: {'steady' if taught[batch] else 'not steady yet'}, the plan says K={link.planned(batch)}")

    def between(turn: int) -> None:
        tell(f"even rounds, turn {turn + 1}")
        link.free_restarts = False
        after_turn(turn)
        link.free_restarts = True

    measure_rounds(engine, link, cells, "even", {**samples(effort.scored_rounds), **beside}, rng, between)
    link.free_restarts = False
    planned = {batch: link.planned(batch) for batch in effort.batches}
    found = {batch: over_best(cells, batch, fixed, seed) for batch in effort.batches}
    outcome.bars = crossover_bars(found, planned)
    outcome.facts = {
        "crossover": {
            str(batch): {
                "best": one.best,
                "planned": planned[batch],
                "steady_before_it_was_scored": taught[batch],
                "adaptive_over_best": round(one.ratio, 4),
                "interval": one.interval.model_dump(),
                "true_tokens_per_s": round(one.true_ratio, 4),
                "interval_of_true_tokens_per_s": one.true_interval.model_dump(),
                "lengths_run_by_auto": _lengths(cells.of(batch, AUTO)),
            }
            for batch, one in found.items()
        },
        "rounds_thrown_away_because_the_core_was_shared": cells.thrown_away,
    }
    outcome.rows = {"crossover": [segment.plain() for segment in cells.segments if segment.batch in found]}
    outcome.tables.append(_table(cells, effort.batches, [*fixed, AUTO]))
    curves = {arm: [(float(batch), speed(cells.of(batch, arm, "even"))) for batch in effort.batches] for arm in (*fixed, AUTO)}
    outcome.charts.append(Lines("Tokens per second by batch", "rows", curves))
    return outcome, cells


def measure_rounds(
    engine: Engine,
    link: FleetLink,
    cells: Cells,
    half: str,
    samples: Mapping[int, Sample],
    rng: random.Random,
    after_turn: AfterTurn,
) -> None:
    """Rounds of each batch's sample, in turns, added to the cells.

    A round in which somebody else had the core is run again, as often as there may be rounds of its batch in all.
    """
    orders = {batch: latin_rectangle(sample.arms, sample.repeats.most, rng) for batch, sample in samples.items()}
    again = {batch: sample.repeats.most for batch, sample in samples.items()}
    for number, batch in in_turns({batch: sample.repeats for batch, sample in samples.items()}):
        if batch is None:
            after_turn(number)
            continue
        order, slot_tokens = orders[batch][number], samples[batch].slot_tokens
        segments, prefills = _round(engine, link, batch, number * batch, half, order, slot_tokens)
        while again[batch] and core_share(step for segment in segments for step in segment.steps) < LEAST_CORE_SHARE:
            again[batch] -= 1
            cells.thrown_away += 1
            segments, prefills = _round(engine, link, batch, number * batch, half, order, slot_tokens)
        cells.segments += segments
        cells.prefills += prefills


def _round(
    engine: Engine, link: FleetLink, batch: int, first_question: int, half: str, order: Sequence[str], slot_tokens: int
) -> tuple[list[Segment], list[Step]]:
    prompts = engine.encode(questions(first_question + batch)[first_question:])
    engine.hold(0)
    engine.add(prompts, max_tokens=(slot_tokens + ROOM_TOKENS) * (len(order) + 1))
    prefills = engine.run_prefill()
    segments = []
    for arm in order:
        tokens = slot_tokens * batch
        if arm == AUTO:
            measured = _adaptive_slot(engine, link, tokens * TAUGHT_SLOTS if half == "odd" else tokens)
        else:
            length = int(arm.removeprefix("K="))
            engine.hold(length)
            engine.settle(length)
            measured = _measured(engine, tokens, link.beside)
        if any(step.decode_rows != batch for step in measured):
            raise RuntimeError(f"batch {batch}: a request ended inside a segment")
        segments.append(Segment(batch, arm, half, tuple(measured), first_question))
        link.report()
    engine.abort()
    return segments, prefills


def _teach(engine: Engine, link: FleetLink, batch: int, effort: Effort) -> bool:
    """The policy alone, one set of questions after the other, until it is steady; False where that took too long."""
    tokens = TAUGHT_SLOTS * effort.slot_tokens[batch]
    for number in effort.lessons.numbers():
        first = (max(effort.rounds.most, effort.scored_rounds.most) + number) * batch
        engine.hold(0)
        engine.add(engine.encode(questions(first + batch)[first:]), max_tokens=tokens + ROOM_TOKENS)
        engine.run_prefill()
        steps = _adaptive_slot(engine, link, tokens * batch)
        steady = all(step.num_speculative_tokens == link.planned(batch) for step in steps)
        link.report()
        engine.abort()
        if steady:
            return True
    return False


def _adaptive_slot(engine: Engine, link: FleetLink, tokens: int) -> list[Step]:
    """The policy steers; its first steps are dropped like any switch, until what it plans has run for two."""
    link.take_over()
    dropped = settled = 0
    while settled < SETTLE_STEPS and dropped < MOST_DROPPED_STEPS:
        (step,) = engine.run()
        dropped += 1
        link.after(step)
        runs_plan = step.num_speculative_tokens == link.planned(step.decode_rows) and not step.recomputed_tokens
        settled = settled + 1 if runs_plan else 0
    return _measured(engine, tokens, link.after)


def _measured(engine: Engine, tokens: int, after: Callable[[Step], None]) -> list[Step]:
    """Steps until so many tokens are generated, two at least."""
    measured: list[Step] = []
    while len(measured) < LEAST_MEASURED_STEPS or sum(step.generated for step in measured) < tokens:
        (step,) = engine.run()
        measured.append(step)
        after(step)
    return measured


@dataclass(frozen=True, slots=True)
class OverBest:
    """The planner over the best K at one batch: at the acceptance of all arms, and in the tokens/s that each truly made."""

    best: str
    ratio: float
    interval: Interval
    true_ratio: float
    true_interval: Interval


def crossover_bars(found: Mapping[int, OverBest], planned: Mapping[int, int]) -> list[Bar]:
    """The worst batch by either measure; only the one that texts do not decide has a limit."""
    meaning = "of the planner over those of the best K, picked on odd segments, scored on even ones; worst batch"

    def bar(name: str, meaning: str, direction: Direction, limit: float, ratios: Mapping[int, tuple[float, Interval]]) -> Bar:
        worst = min(ratios, key=lambda batch: (ratios[batch][1].high >= limit, ratios[batch][1].low))
        value, interval = ratios[worst]
        at = f"batch {worst}, best {found[worst].best}, planned K={planned[worst]}"
        return Bar(
            name=name,
            meaning=meaning,
            direction=direction,
            limit=limit,
            value=value,
            interval=interval,
            judged="interval",
            at=at,
            cells=len(ratios),
        )

    return [
        bar(
            "adaptive_over_best_min",
            f"steady batches, tokens/s at the acceptance that all arms together show: those {meaning}",
            "at least",
            0.95,
            {batch: (one.ratio, one.interval) for batch, one in found.items()},
        ),
        bar(
            "adaptive_over_best_min_true",
            f"steady batches, tokens/s that each truly made, whatever texts it had: those {meaning}",
            "stated",
            0.0,
            {batch: (one.true_ratio, one.true_interval) for batch, one in found.items()},
        ),
    ]


def over_best(cells: Cells, batch: int, arms: Sequence[str], seed: int) -> OverBest:
    """The best of the arms on odd segments, and the planner over it on even ones."""
    odd, even = (_acceptance(cells, batch, half) for half in ("odd", "even"))
    best = max(arms, key=lambda arm: expected_speed(cells.of(batch, arm, "odd"), odd))

    def ratio(one: Sequence[Segment], other: Sequence[Segment]) -> float:
        return expected_speed(one, even) / expected_speed(other, even)

    auto, rival = cells.of(batch, AUTO, "even"), cells.of(batch, best, "even")
    drawn = f"{len(auto)} and {len(rival)} segments of that batch"
    return OverBest(
        best,
        ratio(auto, rival),
        resampled(auto, rival, ratio, seed, drawn),
        speed_ratio(auto, rival),
        resampled(auto, rival, speed_ratio, seed, drawn),
    )


def _acceptance(cells: Cells, batch: int, half: str) -> tuple[float, ...]:
    """Survival over all arms at a batch: the same requests, whatever K they ran at."""
    steps = [step for one in cells.segments if (one.batch, one.half) == (batch, half) for step in one.steps]
    return survival(*acceptance_counts(steps, MAX_NUM_SPECULATIVE_TOKENS))


def _lengths(segments: Sequence[Segment]) -> dict[str, int]:
    """Steps that ran each K."""
    counts: dict[str, int] = {}
    for segment in segments:
        for step in segment.steps:
            name = arm_name(step.num_speculative_tokens)
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _table(cells: Cells, batches: Sequence[int], arms: Sequence[str]) -> Grid:
    lines = []
    for batch in batches:
        kept = {arm: cells.of(batch, arm, "even") for arm in arms}
        lines.append([str(batch), *(f"{speed(segments):.1f} ({1e3 * step_seconds(segments):.0f})" for segments in kept.values())])
    return Grid("Steady batches, even segments: tokens/s (median step, ms)", ("batch", *arms), lines)
