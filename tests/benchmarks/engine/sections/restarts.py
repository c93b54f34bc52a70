"""What a restart costs: its longest step, its time against what the policy predicts, and acceptance after it.

A round is one batch in flight: off for some steps, then a K until the drafter has caught up and, in watched rounds, twenty steps
more; then off again for another time. Four ways: `bounded` is the product, its chunk priced with the cost that was measured before;
`unbounded` recomputes everything in one step, and prices the chunk; `none` pretends that nothing is missing; `never` was never off
and is what acceptance is compared with, over the very tokens of the same requests.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Final

from nightjar.loadtests.simulation.evidence.bars import Bar, Direction
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.restarts.price import chunk_tokens
from nightjar.policy.wire.operator import OperatorSettings
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import questions
from tests.benchmarks.engine.measured import LEAST_CORE_SHARE
from tests.benchmarks.engine.sections.restart_cost import cost_errors, fitted
from tests.benchmarks.engine.sections.restart_record import NEAR_STEPS, Restart
from tests.benchmarks.engine.step_record import RowStep, Step
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import range_of, resampled

OFF_STEPS: Final = (4, 12, 32)
LENGTH: Final = 2
"""K of the restarts: one that pays at the smaller batch."""
WATCHED_STEPS: Final = 20
UNWATCHED_STEPS: Final = 2
AFTER_STEPS: Final = 4
"""OFF steps after the last restart of a round."""
ROOM_TOKENS: Final = 24
MOST_TRIES: Final = 3
LONGEST_WANTED: Final = 1.5
ACCEPTANCE_WANTED: Final = 0.95
ERROR_WANTED: Final = 0.2


Drafted = dict[int, tuple[int, int]]
"""Drafts and how many were accepted, by the position they begin at, of one request."""


def measure_restarts(engine: Engine, effort: Effort, rng: random.Random, seed: int, tell: Tell) -> tuple[Outcome, CatchUpCost]:
    """All bars of this section, and the line that prices catching up."""
    restarts: list[Restart] = []
    kept_shares: list[tuple[int, int, float, float]] = []
    without: list[float] = []
    cost = CatchUpCost(0.0, 0.0)
    for batch in effort.restart_batches:
        prompts = engine.encode(questions(batch))
        engine.catch_up("unbounded")
        unbounded, _ = _undisturbed_round(engine, prompts, "unbounded", None, rng, UNWATCHED_STEPS)
        restarts += unbounded
        off_seconds = median(step.seconds for restart in unbounded for step in restart.before)
        cost = fitted(restarts, off_seconds)
        chunk = chunk_tokens(off_seconds, cost, batch, OperatorSettings().catch_up_slowdown)
        tell(
            f"batch {batch}: a catch-up step costs {1e3 * cost.step_seconds:.0f} ms and {1e3 * cost.token_seconds:.2f} ms a token, "
            f"so {chunk} tokens a step"
        )
        engine.catch_up("bounded")
        most_tokens = 0
        watched: list[tuple[Restart, list[int]]] = []
        for number in range(effort.restart_rounds):
            steps_after = WATCHED_STEPS if number < effort.watched_rounds else UNWATCHED_STEPS
            found, rows = _undisturbed_round(engine, prompts, "bounded", chunk, rng, steps_after)
            restarts += found
            if steps_after == WATCHED_STEPS:
                watched += [(restart, rows) for restart in found]
                most_tokens = max(most_tokens, _longest(found))
        engine.catch_up("none")
        believing, rows_believing = _round(engine, prompts, "none", chunk, rng, WATCHED_STEPS)
        engine.catch_up("bounded")
        most_tokens = max(most_tokens, _longest(believing))
        never = _never_off(engine, prompts, most_tokens)
        kept_shares += [_kept(restart, rows, never) for restart, rows in watched]
        without += [_share(_kept(restart, rows_believing, never)) for restart in believing]
        tell(f"batch {batch}: acceptance over never off {fmean(_share(one) for one in kept_shares[-len(watched) :]):.3f}")
    return _outcome(restarts, kept_shares, without, seed), cost


def _undisturbed_round(
    engine: Engine, prompts: Sequence[Sequence[int]], how: str, chunk: int | None, rng: random.Random, steps_after: int
) -> tuple[list[Restart], list[int]]:
    """A round in which nobody else had the core for long in any restart, or the last of MOST_TRIES."""
    for _ in range(MOST_TRIES):
        found, rows = _round(engine, prompts, how, chunk, rng, steps_after)
        if min(restart.core_share for restart in found) >= LEAST_CORE_SHARE:
            break
    return found, rows


def _round(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    how: str,
    chunk: int | None,
    rng: random.Random,
    steps_after: int,
) -> tuple[list[Restart], list[int]]:
    """One restart per time off, in a drawn order, within one batch in flight."""
    engine.hold(LENGTH)
    room = len(OFF_STEPS) * (ROOM_TOKENS + (LENGTH + 1) * (steps_after + 1)) + AFTER_STEPS + 1
    rows = engine.add(prompts, max_tokens=sum(OFF_STEPS) + room)
    engine.run_prefill()
    engine.settle(LENGTH)
    found: list[Restart] = []
    for off_steps in rng.sample(OFF_STEPS, len(OFF_STEPS)):
        before = _off(engine, off_steps)
        found[-1:] = [replace(one, after=tuple(before[:NEAR_STEPS])) for one in found[-1:]]
        lag = engine.lag_tokens()
        if how == "none":
            engine.catch_up("none")
        engine.hold(LENGTH, chunk_tokens=chunk)
        catching_up, drafting = _restart(engine)
        drafting += engine.run(steps_after)
        found.append(Restart(how, len(prompts), off_steps, lag, chunk, tuple(before), tuple(catching_up), tuple(drafting), ()))
    found[-1] = replace(found[-1], after=tuple(_off(engine, AFTER_STEPS + 1)))
    engine.abort()
    return found, rows


def _off(engine: Engine, steps: int) -> list[Step]:
    """So many OFF steps, without the first, which verifies the last drafts."""
    engine.hold(0)
    engine.run()
    return engine.run(steps - 1)


def _restart(engine: Engine) -> tuple[list[Step], list[Step]]:
    """Steps that recompute, and the first that drafts."""
    catching_up: list[Step] = []
    while True:
        (step,) = engine.run()
        if step.num_speculative_tokens:
            return catching_up, [step]
        catching_up.append(step)


def _never_off(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> dict[int, Drafted]:
    """Drafts of the same requests held at the K all the time, by the place of the request."""
    engine.hold(LENGTH)
    rows = engine.add(prompts, max_tokens=tokens + ROOM_TOKENS)
    return _drafts(engine.run_out(), rows)


def _drafts(steps: Sequence[Step], rows: Sequence[int]) -> dict[int, Drafted]:
    places = {row: place for place, row in enumerate(rows)}
    found: dict[int, Drafted] = {place: {} for place in places.values()}
    for step in steps:
        for row in step.rows:
            if row.drafted:
                found[places[row.row]][row.position] = (row.drafted, row.accepted)
    return found


def _kept(restart: Restart, rows: Sequence[int], never: dict[int, Drafted]) -> tuple[int, int, float, float]:
    """Batch, steps off, acceptance in the watched steps, and acceptance of the never-off run over the same tokens."""
    watched = restart.drafting[1:]
    own = _drafts(watched, rows)
    ours: list[tuple[int, int]] = []
    theirs: list[tuple[int, int]] = []
    for place, drafts in own.items():
        if not drafts:
            continue
        first, last = min(drafts), max(drafts)
        ours += drafts.values()
        theirs += [drafted for position, drafted in never[place].items() if first <= position <= last]
    return restart.batch, restart.off_steps, _rate(ours), _rate(theirs)


def _rate(drafts: Sequence[tuple[int, int]]) -> float:
    return sum(accepted for _, accepted in drafts) / sum(drafted for drafted, _ in drafts)


def _share(kept: tuple[int, int, float, float]) -> float:
    return kept[2] / kept[3]


def _longest(restarts: Sequence[Restart]) -> int:
    """Tokens of the request that has got furthest."""
    rows: list[RowStep] = [row for restart in restarts for step in restart.drafting for row in step.rows]
    return max(row.position for row in rows)


def _outcome(
    restarts: Sequence[Restart], kept: Sequence[tuple[int, int, float, float]], without: Sequence[float], seed: int
) -> Outcome:
    bounded = [restart for restart in restarts if restart.how == "bounded"]
    unbounded = [restart for restart in restarts if restart.how == "unbounded"]
    errors, errors_of_all = (cost_errors(bounded, trimmed=trimmed) for trimmed in (True, False))
    longest = [restart.longest_over_before for restart in bounded]
    after, always = fmean(one[2] for one in kept), fmean(one[3] for one in kept)
    bars = [
        Bar(
            name="restart_longest_step",
            meaning="longest step that catches up over an OFF step before it, median over restarts",
            direction="at most",
            limit=LONGEST_WANTED,
            value=median(longest),
            interval=resampled(longest, longest, lambda one, _: median(one), seed, f"{len(longest)} restarts"),
            judged="interval",
            at=f"{len(bounded)} restarts",
            cells=len(bounded),
        ),
        Bar(
            name="restart_acceptance",
            meaning=f"accepted drafts in the {WATCHED_STEPS} steps after a restart over never off, over the same tokens",
            direction="at least",
            limit=ACCEPTANCE_WANTED,
            value=after / always,
            interval=resampled(
                kept, kept, lambda one, _: fmean(k[2] for k in one) / fmean(k[3] for k in one), seed, f"{len(kept)} restarts"
            ),
            judged="interval",
            at=f"{len(kept)} restarts, K={LENGTH}",
            cells=len(kept),
        ),
        *cost_bars(errors, errors_of_all),
    ]
    facts = {
        "restarts": len(bounded),
        "restart_longest_step_unbounded": round(median(restart.longest_over_before for restart in unbounded), 3),
        "restart_longest_step_unbounded_worst": round(max(restart.longest_over_before for restart in unbounded), 3),
        "restart_longest_step_worst": round(max(longest), 3),
        "first_drafting_step_over_before": round(median(restart.first_drafting_over_before for restart in bounded), 3),
        "restart_acceptance_without_catch_up": round(fmean(without), 3),
        "acceptance_after": round(after, 4),
        "acceptance_never_off": round(always, 4),
        "restart_cost_error_by_cell": {f"batch {batch}, off {off}": round(error, 3) for (batch, off), error in errors.items()},
        "restart_cost_error_of_all_by_cell": {
            f"batch {batch}, off {off}": round(error, 3) for (batch, off), error in errors_of_all.items()
        },
        "seconds_per_transition": {
            f"batch {batch}, off {off}": round(
                median(restart.catch_up_seconds for restart in bounded if (restart.batch, restart.off_steps) == (batch, off)), 3
            )
            for batch, off in errors
        },
    }
    outcome = Outcome(bars=bars, facts=facts, rows={"restarts": [restart.plain() for restart in restarts]})
    outcome.rows["restart_acceptance"] = [
        {"batch": batch, "off_steps": off, "acceptance": ours, "never_off": theirs} for batch, off, ours, theirs in kept
    ]
    outcome.tables.append(_table(bounded, unbounded, errors, errors_of_all))
    return outcome


def cost_bars(errors: Mapping[tuple[int, int], float], errors_of_all: Mapping[tuple[int, int], float]) -> list[Bar]:
    """The error of the price by cell of lag and batch: of restarts that nothing disturbed much, which has a limit, and of all."""
    return [
        _error_bar("restart_cost_error", "the middle half of each cell's restarts by cost", "at most", errors),
        _error_bar(
            "restart_cost_error_of_all", "all restarts, those in which others took the core among them", "stated", errors_of_all
        ),
    ]


def _error_bar(name: str, of: str, direction: Direction, errors: Mapping[tuple[int, int], float]) -> Bar:
    """Median over cells of lag and batch."""
    return Bar(
        name=name,
        meaning=f"error of the predicted cost of restarts, median over lag and batch, fitted to half of them: {of}",
        direction=direction,
        limit=ERROR_WANTED if direction != "stated" else 0.0,
        value=median(errors.values()),
        interval=range_of(list(errors.values()), "cells of lag and batch"),
        at=f"{len(errors)} cells, worst {max(errors.values()):.2f}",
        cells=len(errors),
    )


def _table(
    bounded: Sequence[Restart],
    unbounded: Sequence[Restart],
    errors: Mapping[tuple[int, int], float],
    errors_of_all: Mapping[tuple[int, int], float],
) -> Grid:
    lines = []
    for (batch, off), error in errors.items():
        own = [restart for restart in bounded if (restart.batch, restart.off_steps) == (batch, off)]
        whole = [restart for restart in unbounded if (restart.batch, restart.off_steps) == (batch, off)]
        lines.append(
            [
                str(batch),
                str(off),
                f"{fmean(restart.lag_tokens for restart in own):.0f}",
                f"{own[0].chunk_tokens}",
                f"{fmean(len(restart.catching_up) for restart in own):.1f}",
                f"{median(restart.longest_over_before for restart in own):.2f}",
                f"{median(restart.longest_over_before for restart in whole):.2f}",
                f"{median(restart.first_drafting_over_before for restart in own):.2f}",
                f"{median(restart.cost_seconds for restart in own):.3f}",
                f"{error:.0%}",
                f"{errors_of_all[batch, off]:.0%}",
            ]
        )
    heading = ("batch", "off steps", "lag", "chunk", "steps", "longest", "unbounded", "first drafting", "cost s", "error", "of all")
    return Grid("Restarts: longest and first drafting step over an OFF step, cost in seconds", heading, lines)
