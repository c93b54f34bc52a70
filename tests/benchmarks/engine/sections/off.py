"""OFF must be off: the same work as vLLM without speculation, in the same time, and less time than vLLM's own K=0.

Three engines decode the same requests in turns, a few steps each, in an order that a seed draws; a pair is one turn of two engines,
its ratio that of their times for the same tokens. Every batch weighs the same. Which memory a process happens to get decides 5 %
and more for as long as it lives (of two plain engines the one started first was the slower): so all are started anew several times,
each of them once as the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Final

from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import Role, long_question, questions
from tests.benchmarks.engine.measured import LEAST_CORE_SHARE
from tests.benchmarks.engine.step_record import Step, core_share, tokens_per_second
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import geometric_mean_of_groups, interval_of_groups

BATCHES: Final = (1, 4, 16)
ROOM: Final = 3
"""At most so many times the wanted turns are measured until enough had the core to themselves; else the least disturbed count."""
WIDEST: Final = 0.06
RESAMPLED: Final = "pairs of turns within each batch"
"""What its intervals are made from."""
CHUNKED_ROWS: Final = 6
CHUNKED_TOKENS: Final = 12
LATER_AFTER_STEPS: Final = 4
WARM_UP_STEPS: Final = 3

ROLES: Final[tuple[Role, ...]] = ("plain", "stock", "nightjar")
OTHERS: Final = ROLES[:2]

Turn = dict[str, list[Step]]
"""Steps of each engine, by role, in the order in which they ran."""


@dataclass(slots=True)
class OffTimes:
    """OFF and stock step times by batch, which the simulator's profile takes over."""

    off_seconds: dict[int, list[float]] = field(default_factory=dict)
    stock_seconds: dict[int, list[float]] = field(default_factory=dict)


def measure_off(
    start: Callable[[Role], AbstractContextManager[Engine]], effort: Effort, rng: random.Random, seed: int, tell: Tell
) -> tuple[Outcome, OffTimes]:
    """All bars of this section; `start` starts an engine."""
    outcome, times = Outcome(), OffTimes()
    kept: dict[int, list[Turn]] = {batch: [] for batch in BATCHES}
    differing = compared = forwards = thrown_away = 0
    for number in range(effort.off_starts):
        with ExitStack() as stack:
            order = [ROLES[(number + place) % len(ROLES)] for place in range(len(ROLES))]
            tell(f"starting {', '.join(order)}")
            engines = {role: stack.enter_context(start(role)) for role in order}
            ours = engines["nightjar"]
            ours.hold(0)
            before = ours.probe_forwards()
            if not number:
                differing, compared = _token_difference(engines["plain"], ours, outcome)
                tell(f"scheduled tokens compared over {compared} steps: {differing} differ")
            prompts = ours.encode(questions(max(BATCHES)))
            for batch in BATCHES:
                turns = _turns([engines[role] for role in ROLES], prompts[:batch], effort, rng)
                best = sorted(turns, key=_core_share)[-effort.off_pairs :]
                kept[batch] += best
                thrown_away += len(turns) - len(best)
                outcome.rows.setdefault("off", []).extend(_row(number, batch, turn, is_kept=turn in best) for turn in turns)
                found = (geometric_mean(_ratios(best, other, tokens_per_second)) for other in OTHERS)
                tell(f"batch {batch}: OFF over plain {next(found):.3f}, over stock K=0 {next(found):.3f}; {len(turns)} turns")
            forwards += ours.probe_forwards() - before
    for batch, turns in kept.items():
        times.off_seconds[batch] = [step.seconds for turn in turns for step in turn["nightjar"]]
        times.stock_seconds[batch] = [step.seconds for turn in turns for step in turn["stock"]]
    shared = sum(_core_share(turn) < LEAST_CORE_SHARE for turns in kept.values() for turn in turns)
    ratios: dict[str, dict[int, list[float]]] = {
        other: {batch: _ratios(turns, other, tokens_per_second) for batch, turns in kept.items()} for other in OTHERS
    }
    outcome.bars = [
        _count_bar("off_draft_forwards", "forwards of the draft model while OFF (INV-2)", forwards, "every step of this section"),
        _count_bar(
            "off_token_difference",
            "steps whose scheduled tokens differ from plain vLLM's, with chunked prefill (INV-2)",
            differing,
            f"{compared} steps",
        ),
        _ratio_bar("off_over_plain", "tokens/s, OFF over vLLM without speculation", 0.97, ratios["plain"], seed),
        _ratio_bar("off_over_stock_k0", "tokens/s, OFF over vLLM's own K=0", 1.04, ratios["stock"], seed),
    ]
    width = outcome.bars[2].interval
    assert width is not None
    outcome.facts = {
        "starts": effort.off_starts,
        "pairs_per_batch": effort.off_starts * effort.off_pairs,
        "steps_per_segment": effort.off_segment_steps,
        "turns_thrown_away_because_the_core_was_shared": thrown_away,
        "turns_kept_though_the_core_was_shared": shared,
        "same_in_processor_time": {
            other: round(
                geometric_mean_of_groups({batch: _ratios(turns, other, _tokens_per_cpu_second) for batch, turns in kept.items()}), 4
            )
            for other in OTHERS
        },
        "off_over_plain_interval_width": round(width.width, 4),
        "off_over_plain_interval_width_wanted": f"<= {WIDEST}",
        "off_over_plain_interval_is_narrow_enough": width.width <= WIDEST,
        "cpu_seconds_per_step": {role: {batch: _cpu_seconds(outcome, role, batch) for batch in BATCHES} for role in ROLES},
    }
    outcome.tables.append(_table(ratios, outcome, seed))
    return outcome, times


def _turns(engines: Sequence[Engine], prompts: Sequence[Sequence[int]], effort: Effort, rng: random.Random) -> list[Turn]:
    """Turns of engines with the same requests, until enough of them had the core."""
    for engine in engines:
        engine.add(prompts, max_tokens=effort.off_pairs * effort.off_segment_steps * ROOM + 20)
        engine.run_prefill()
        engine.run(WARM_UP_STEPS)
    turns: list[Turn] = []
    undisturbed = 0
    while undisturbed < effort.off_pairs and len(turns) < effort.off_pairs * ROOM:
        turn: Turn = {engine.role: engine.run(effort.off_segment_steps) for engine in rng.sample(list(engines), len(engines))}
        turns.append(turn)
        undisturbed += _core_share(turn) >= LEAST_CORE_SHARE
    for engine in engines:
        engine.abort()
    return turns


def _token_difference(plain: Engine, ours: Engine, outcome: Outcome) -> tuple[int, int]:
    """Steps that scheduled other tokens than plain vLLM's did, of the same requests, and steps compared."""
    prompts = ours.encode([long_question(number) for number in range(CHUNKED_ROWS)])
    schedules = [_schedule(engine, prompts) for engine in (plain, ours)]
    longest = max(map(len, schedules))
    padded = [schedule + [()] * (longest - len(schedule)) for schedule in schedules]
    differing = sum(one != other for one, other in zip(*padded, strict=True))
    outcome.rows["off_schedule"] = [
        {"step": number, "plain": one, "nightjar": other} for number, (one, other) in enumerate(zip(*padded, strict=True))
    ]
    outcome.facts["chunked_prefill"] = max(sum(tokens for _, tokens in step) for step in schedules[0])
    return differing, longest


def _schedule(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[tuple[tuple[int, int], ...]]:
    """Tokens scheduled for each request in each step: most requests at once, two that come later."""
    first = engine.add(prompts[:-2], CHUNKED_TOKENS)[0]
    steps = engine.run(LATER_AFTER_STEPS)
    engine.add(prompts[-2:], CHUNKED_TOKENS)
    return [tuple((row.row - first, row.scheduled_tokens) for row in step.rows) for step in steps + engine.run_out()]


def _core_share(turn: Turn) -> float:
    """Of the engine that had least of its core."""
    return min(map(core_share, turn.values()))


def _tokens_per_cpu_second(steps: Sequence[Step]) -> float:
    return sum(step.generated for step in steps) / sum(step.cpu_seconds for step in steps)


def _ratios(turns: Sequence[Turn], other: str, speed: Callable[[list[Step]], float]) -> list[float]:
    """Speed of OFF over that of another engine, turn by turn."""
    return [speed(turn["nightjar"]) / speed(turn[other]) for turn in turns]


def _row(start: int, batch: int, turn: Turn, *, is_kept: bool) -> dict[str, object]:
    measured = {
        role: {
            "seconds": [round(step.seconds, 6) for step in steps],
            "cpu_seconds": round(sum(step.cpu_seconds for step in steps), 6),
            "tokens": sum(step.generated for step in steps),
        }
        for role, steps in turn.items()
    }
    return {"start": start, "batch": batch, "kept": is_kept, "order": list(turn), **measured}


def _cpu_seconds(outcome: Outcome, role: str, batch: int) -> float:
    kept = [row for row in outcome.rows["off"] if row["batch"] == batch and row["kept"]]
    steps = sum(len(row[role]["seconds"]) for row in kept)
    return float(round(sum(row[role]["cpu_seconds"] for row in kept) / steps, 5))


def _count_bar(name: str, meaning: str, value: int, at: str) -> Bar:
    return Bar(name=name, meaning=meaning, direction="at most", limit=0.0, value=float(value), at=at)


def _ratio_bar(name: str, meaning: str, limit: float, groups: dict[int, list[float]], seed: int) -> Bar:
    return Bar(
        name=name,
        meaning=f"{meaning}: geometric mean over batches {', '.join(map(str, groups))}",
        direction="at least",
        limit=limit,
        value=geometric_mean_of_groups(groups),
        interval=interval_of_groups(groups, seed, RESAMPLED),
        judged="interval",
        at=f"{min(map(len, groups.values()))} pairs per batch",
        cells=len(groups),
    )


def _table(ratios: dict[str, dict[int, list[float]]], outcome: Outcome, seed: int) -> Grid:
    cpu = outcome.facts["cpu_seconds_per_step"]
    lines = []
    for batch in BATCHES:
        cells = [str(batch)]
        for other in OTHERS:
            interval = interval_of_groups({batch: ratios[other][batch]}, seed, RESAMPLED)
            cells.append(f"{geometric_mean(ratios[other][batch]):.3f} ({interval})")
        lines.append([*cells, *(f"{cpu[role][batch]:.4f}" for role in ROLES)])
    return Grid(
        f"OFF: tokens/s over other engines (95 % by resampling {RESAMPLED}), processor seconds per step",
        ("batch", "over plain", "over stock K=0", "cpu s plain", "cpu s stock", "cpu s OFF"),
        lines,
    )
