"""Steady loads: the planner against off and against the best static K, at three numbers of requests in flight.

Users ask in closed loops, so prompts are read and answers end all the time, as they do in service; only how many are in flight
stands still. Odd rounds pick the best static arm of a load and teach the policy, which learns in every mode; the planner alone goes
on until it measures nothing any more; even rounds score it against off and the best. A round plays the same prompts in the same
order for every arm, within a minute or two, at places that a Latin rectangle deals.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nightjar.loadtests.arms.statistics import RESAMPLED, Pair, Ratio, Speed, matched, paired_ratio
from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.live.applications import OURS
from tests.benchmarks.live.arms import AUTO, OFF, PAPER, STATIC, length_of
from tests.benchmarks.live.crowd import Deck
from tests.benchmarks.live.effort import MAX_TOKENS, Effort, SteadyLoad
from tests.benchmarks.live.playing import Player, Window, goodput_cell, goodput_title, question
from tests.benchmarks.measuring.outcome import Lines, Outcome, Tell
from tests.benchmarks.measuring.repeats import latin_rectangle

TURNS: Final = 4
"""Rounds are so many turns of all users apart in the list of questions."""
WARM_UP_S: Final = 3.0
"""Of a load, before it is measured: an engine's first steps at a batch are slow."""

Half = Literal["odd", "even"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One arm at one load in one round."""

    load: SteadyLoad
    half: Half
    number: int
    arm: str
    window: Window

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        return {
            "load": self.load.name, "rows": self.load.rows, "half": self.half, "round": self.number + 1, "arm": self.arm,
            "seconds": round(self.window.seconds, 3), "tokens": self.window.tokens,
            "steady_tokens": round(self.window.steady_tokens, 1), "steps": self.window.steps_by_k,
            "goodput": self.window.goodput.model_dump(exclude_none=True) if self.window.goodput else None,
        }  # fmt: skip


@dataclass(slots=True)
class Segments:
    """Of a run, in the order in which they were played."""

    played: list[Segment] = field(default_factory=list)

    def of(self, load: str, arm: str, half: Half | None = None) -> list[Segment]:
        """Of one load and arm; both halves where none is named."""
        return [one for one in self.played if (one.load.name, one.arm) == (load, arm) and half in {None, one.half}]

    def speed(self, load: str, arm: str, half: Half | None = None) -> float:
        """Tokens per second of both replicas."""
        windows = [one.window for one in self.of(load, arm, half)]
        return sum(window.steady_tokens for window in windows) / sum(window.seconds for window in windows)

    def best(self, load: str) -> str:
        """The static arm that odd rounds pick."""
        return max(STATIC, key=lambda arm: self.speed(load, arm, "odd"))

    def pairs(self, load: str, arm: str, other: str) -> list[Pair]:
        """Two arms in the even rounds."""
        one, two = (
            {segment.number: Speed(segment.window.steady_tokens, segment.window.seconds) for segment in self.of(load, name, "even")}
            for name in (arm, other)
        )
        return matched(one, two)

    def speeds_by_k(self, load: str) -> dict[int, float]:
        """Tokens per second of one replica at each static K, in the fastest of its odd rounds: who shares the machine only ever
        slows one down, at times by a third for half a minute."""
        return {length_of(arm): max(one.window.steady_speed for one in self.of(load, arm, "odd")) / len(OURS) for arm in STATIC}


def measure_steady(
    player: Player, effort: Effort, rng: random.Random, seed: int, tell: Tell, *, with_paper: bool = False
) -> tuple[Outcome, Segments]:
    """All loads, one after the other; `with_paper`: the paper's planner is scored beside ours."""
    papers = (PAPER,) if with_paper else ()
    segments = Segments()
    for load in effort.loads:
        _play(player, load, AUTO, 0, lambda _: None, settle_s=WARM_UP_S, measure_s=0.0)
        _rounds(player, segments, load, "odd", effort, STATIC, rng, tell)
        best = segments.best(load.name)
        for number in effort.lessons.numbers():
            if len(_play(player, load, AUTO, number, tell).steps_by_k) == 1:
                break
        scored = tuple(dict.fromkeys((AUTO, OFF, best, *papers)))
        for arm in papers:  # as long as the planner at most: it learns in every engine for itself
            for number in effort.lessons.numbers():
                _play(player, load, arm, number, tell)
        _rounds(player, segments, load, "even", effort, scored, rng, tell)
        speeds = ", ".join(f"{arm} {segments.speed(load.name, arm, 'even'):.1f}" for arm in scored)
        tell(f"load {load.name}: best {best}; tokens/s of even rounds: {speeds}")
    outcome = _outcome(segments, effort, seed)
    if papers:
        outcome.facts["paper"], table = papers_findings(segments, effort, seed)
        outcome.tables.append(table)
    if player.target:
        outcome.tables.append(_goodput_table(segments, effort, player.target))
    return outcome, segments


def _rounds(
    player: Player,
    segments: Segments,
    load: SteadyLoad,
    half: Half,
    effort: Effort,
    arms: Sequence[str],
    rng: random.Random,
    tell: Tell,
) -> None:
    rounds = effort.odd_rounds if half == "odd" else effort.even_rounds
    orders = latin_rectangle(arms, rounds.most, rng)
    for number in rounds.numbers():
        place = 2 * number + (half == "even")
        for arm in orders[number]:
            segments.played.append(Segment(load, half, number, arm, _play(player, load, arm, place, tell)))


def _play(
    player: Player,
    load: SteadyLoad,
    arm: str,
    place: int,
    tell: Tell,
    settle_s: float | None = None,
    measure_s: float | None = None,
) -> Window:
    deck = Deck(question, place * TURNS * load.rows * len(OURS), load.rows, MAX_TOKENS, is_staggered=True)
    window = player.steady(
        arm, load.rows, deck, load.settle_s if settle_s is None else settle_s, load.measure_s if measure_s is None else measure_s
    )
    tell(f"  {load.name}, {arm}: {window.steady_speed:.1f} tokens/s, steps {window.steps_by_k}")
    return window


def _outcome(segments: Segments, effort: Effort, seed: int) -> Outcome:
    loads = [load.name for load in effort.loads]
    best = {load: segments.best(load) for load in loads}
    over_best = {load: paired_ratio(segments.pairs(load, AUTO, best[load]), seed) for load in loads}
    over_off = {load: paired_ratio(segments.pairs(load, AUTO, OFF), seed) for load in loads}
    outcome = Outcome(
        bars=[
            _bar("fleet_over_best_min", "the best of off, K=1, 2, 3, 5, picked on odd rounds", 0.98, over_best, best),
            _bar("fleet_over_off_min", "those with speculation off", 1.0, over_off, dict.fromkeys(loads, OFF)),
        ]
    )
    outcome.facts = {
        load: {
            "best": best[load],
            "over_best": over_best[load].plain(),
            "over_off": over_off[load].plain(),
            "odd_tokens_per_s": {arm: round(segments.speed(load, arm, "odd"), 2) for arm in STATIC},
            "even_tokens_per_s": {
                arm: round(segments.speed(load, arm, "even"), 2) for arm in (AUTO, *STATIC) if segments.of(load, arm, "even")
            },
            "lengths_run_by_auto": _lengths(segments.of(load, AUTO, "even")),
        }
        for load in loads
    }
    outcome.rows["steady"] = [segment.plain() for segment in segments.played]
    outcome.tables.append(_table(segments, effort, over_best, over_off))
    curves = {
        arm: [(float(load.rows), segments.speed(load.name, arm)) for load in effort.loads if segments.of(load.name, arm)]
        for arm in (*STATIC, AUTO)
    }
    outcome.charts.append(Lines("Tokens per second by load", "rows", curves))
    return outcome


def papers_findings(segments: Segments, effort: Effort, seed: int) -> tuple[dict[str, Any], Grid]:
    """The paper's planner over off and over the planner, in the even rounds, and the K that it ran."""
    facts: dict[str, Any] = {}
    lines = []
    for load in effort.loads:
        over = {arm: paired_ratio(segments.pairs(load.name, PAPER, arm), seed) for arm in (OFF, AUTO)}
        speed, lengths = segments.speed(load.name, PAPER, "even"), _lengths(segments.of(load.name, PAPER, "even"))
        facts[load.name] = {
            "tokens_per_s": round(speed, 2), "lengths_run": lengths,
            **{f"over_{arm}": ratio.plain() for arm, ratio in over.items()},
        }  # fmt: skip
        lines.append([load.name, f"{speed:.1f}", *map(str, over.values()), str(lengths)])
    title = f"The paper's planner in every engine: even rounds (95 % by resampling {RESAMPLED})"
    return facts, Grid(title, ("load", "tokens/s", "over off", "over auto", "steps by K"), lines)


def _bar(name: str, rival: str, limit: float, ratios: dict[str, Ratio], rivals: dict[str, str]) -> Bar:
    """The load whose interval ends lowest among those that decide: below the limit whole, else not above it, else any."""
    worst = min(ratios, key=lambda load: (ratios[load].interval.high >= limit, ratios[load].interval.low))
    return Bar(
        name=name,
        meaning=f"steady loads, what clients got: tokens/s of the planner over {rival}; worst of the loads",
        direction="at least",
        limit=limit,
        value=ratios[worst].value,
        interval=ratios[worst].interval,
        judged="interval",
        at=f"load {worst}, against {rivals[worst]}, {ratios[worst].rounds} rounds",
        cells=len(ratios),
    )


def _lengths(segments: Sequence[Segment]) -> dict[str, int]:
    """Steps that ran each K."""
    counts: dict[str, int] = {}
    for segment in segments:
        for name, steps in segment.window.steps_by_k.items():
            counts[name] = counts.get(name, 0) + steps
    return dict(sorted(counts.items()))


def _table(segments: Segments, effort: Effort, over_best: dict[str, Ratio], over_off: dict[str, Ratio]) -> Grid:
    lines = []
    for load in effort.loads:
        speeds = [
            f"{segments.speed(load.name, arm):.1f} ({len(played)})" if (played := segments.of(load.name, arm)) else "-"
            for arm in (*STATIC, AUTO)
        ]
        ratios = [str(over_best[load.name]), str(over_off[load.name])]
        lines.append([f"{load.name} ({load.rows} a replica)", *speeds, segments.best(load.name), *ratios])
    title = f"Steady loads: tokens/s of both replicas (segments), ratios of even rounds (95 % by resampling {RESAMPLED})"
    return Grid(title, ("load", *STATIC, AUTO, "best", "auto over best", "auto over off"), lines)


def _goodput_table(segments: Segments, effort: Effort, target: GoodputTarget) -> Grid:
    lines = [
        [load.name, *(goodput_cell([one.window for one in segments.of(load.name, arm)]) for arm in (*STATIC, AUTO))]
        for load in effort.loads
    ]
    return Grid(goodput_title("Steady loads", target), ("load", *STATIC, AUTO), lines)
