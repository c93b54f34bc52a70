"""A load that crosses the crossover: two long requests, a burst of many short ones, the two alone again.

The work is the same for every arm of a round, token for token, and the burst comes when the long requests have got so far: an arm
that is faster meets it sooner and is done sooner. What an arm restarts while the long requests run, it pays for. Every round has
requests of its own: how well a draft guesses two long answers is no measure of how well it guesses others. The first round has
every arm; the two single K that are fastest there go on against the planner, and those that somebody wants to see again. The
planner plays once before any of it counts, since it has not met so many rows yet. Whether the load does cross the crossover is
told by what each K made while the two ran alone, and while the burst was there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.engine.effort import Effort, Load
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import ARMS, MAX_NUM_SEQS, questions
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.measured import AUTO, arm_name
from tests.benchmarks.engine.step_record import Step, core_share
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import range_of

LONG_ROWS: Final = 2
BURST_ROWS: Final = MAX_NUM_SEQS - LONG_ROWS
ALONE: Final = range(1, LONG_ROWS + 1)
FULL: Final = range(BURST_ROWS * 3 // 4, LONG_ROWS + BURST_ROWS + 1)
"""Decode rows of a step before and after the burst, and in it."""

FINALISTS: Final = 2
"""Single K that are played again."""


class Played(Protocol):
    """An engine, real or simulated, that can be given this load."""

    def submit(self, numbers: range, max_tokens: int) -> None:
        """Add requests, by the numbers of their questions."""

    def step(self) -> tuple[float, int] | None:
        """Run a step: its seconds and the tokens that it generated; None without work."""


@dataclass(frozen=True, slots=True)
class Run:
    """The load once through."""

    round_number: int
    arm: str
    seconds: float
    tokens: int
    restarts: int
    core_share: float
    steps: tuple[Step, ...] = ()

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def requests(round_number: int) -> range:
    """Numbers of the questions of a round: the long ones first."""
    first = round_number * (LONG_ROWS + BURST_ROWS)
    return range(first, first + LONG_ROWS + BURST_ROWS)


def play(engine: Played, load: Load, round_number: int) -> tuple[float, int]:
    """Seconds and tokens of the whole load, with the requests of that round."""
    seconds, tokens, burst_came = 0.0, 0, False
    numbers = requests(round_number)
    engine.submit(numbers[:LONG_ROWS], load.long_tokens)
    while (step := engine.step()) is not None:
        seconds += step[0]
        tokens += step[1]
        if not burst_came and tokens >= load.burst_at_tokens * LONG_ROWS:
            engine.submit(numbers[LONG_ROWS:], load.burst_tokens)
            burst_came = True
    return seconds, tokens


class RealEngine:
    """An engine of this benchmark, with whatever steers it looking at each step."""

    def __init__(self, engine: Engine, round_number: int, after_step: Callable[[Step], None]) -> None:
        self._engine = engine
        self._after_step = after_step
        self._prompts = engine.encode(questions(requests(round_number).stop))
        self.steps: list[Step] = []

    def submit(self, numbers: range, max_tokens: int) -> None:
        """As `Played.submit`."""
        self._engine.add([self._prompts[number] for number in numbers], max_tokens)

    def step(self) -> tuple[float, int] | None:
        """As `Played.step`."""
        taken = self._engine.run()
        if not taken:
            return None
        self.steps += taken
        self._after_step(taken[0])
        return taken[0].seconds, taken[0].generated


class ChangingLoad:
    """The planner and single K under the load, in turns; rounds come when whoever has the engine lets them."""

    def __init__(
        self, engine: Engine, link: FleetLink, effort: Effort, rng: random.Random, tell: Tell, every_round: Sequence[str] = ()
    ) -> None:
        """`every_round` names single K that play on whatever they made in the first round."""
        self.runs: list[Run] = []
        self._every_round = every_round
        self._engine = engine
        self._link = link
        self._effort = effort
        self._rng = rng
        self._tell = tell
        self._rounds = 0
        self._finalists = [arm_name(length) for length in ARMS]

    def play_round(self) -> bool:
        """The next round, before the first of which the planner plays once unscored; False where there is none any more."""
        number, repeats = self._rounds, self._effort.loads
        if not repeats.has(number, sum(run.seconds for run in self.runs)):
            return False
        if number == 0:
            self._played(repeats.most, AUTO, "not scored, ")
        self._rounds += 1
        arms = [AUTO, *dict.fromkeys((*self._finalists, *self._every_round))]
        self.runs += [self._played(number, arm, "") for arm in self._rng.sample(arms, len(arms))]
        self._finalists = sorted(self._finalists, key=lambda arm: speed_of(self.runs, arm), reverse=True)[:FINALISTS]
        return True

    def outcome(self) -> Outcome:
        """What all rounds show; those that are still to come are played first."""
        while self.play_round():
            pass
        return _outcome(self.runs, self._finalists[0])

    def _played(self, number: int, arm: str, what: str) -> Run:
        run = _run(self._engine, self._link, number, arm, self._effort.load)
        self._tell(f"changing load, {what}{arm}: {run.speed:.1f} tokens/s in {run.seconds:.0f} s, {run.restarts} restarts")
        return run


def _outcome(runs: Sequence[Run], best: str) -> Outcome:
    static = [arm_name(length) for length in ARMS]
    by_round = ratios_by_round(runs, best)
    bar = Bar(
        name="adaptive_over_best_static",
        meaning="a load that crosses the crossover: tokens/s of the planner over those of the best single K, 0 included",
        direction="at least",
        limit=1.0,
        value=planner_over(runs, best),
        interval=range_of(by_round, "rounds"),
        at=f"best static {best}, {len(by_round)} runs each",
        cells=len(by_round),
    )
    outcome = Outcome(bars=[bar])
    outcome.facts["changing_load_tokens_per_s"] = {arm: round(speed_of(runs, arm), 3) for arm in (*static, AUTO)}
    outcome.facts["planner_over_each_under_the_changing_load"] = {arm: round(planner_over(runs, arm), 4) for arm in static}
    outcome.facts["changing_load_ratio_by_run"] = [round(ratio, 4) for ratio in by_round]
    outcome.rows["changing_load"] = [
        {"round": run.round_number + 1, "arm": run.arm, "seconds": round(run.seconds, 4), "tokens": run.tokens,
         "restarts": run.restarts, "core_share": round(run.core_share, 4)}
        for run in runs
    ]  # fmt: skip
    outcome.rows["changing_load_steps"] = [
        {"round": run.round_number + 1, "arm": run.arm, "seconds": round(step.seconds, 5), "rows": step.decode_rows,
         "prefill_tokens": step.prefill_tokens, "num_speculative_tokens": step.num_speculative_tokens,
         "recomputed_tokens": step.recomputed_tokens, "generated": step.generated}
        for run in runs for step in run.steps
    ]  # fmt: skip
    lines = [
        [arm, f"{speed_of(runs, arm):.1f}", f"{planner_over(runs, arm):.3f}", str(sum(run.arm == arm for run in runs)),
         *(f"{decoding_speed(runs, arm, rows):.1f}" for rows in (ALONE, FULL))]
        for arm in (*static, AUTO)
    ]  # fmt: skip
    columns = ("arm", "tokens/s", "planner over it", "runs", "decoding alone", "decoding in the burst")
    outcome.tables.append(Grid("A load that crosses the crossover", columns, lines))
    return outcome


def speed_of(runs: Sequence[Run], arm: str) -> float:
    """Tokens per second of an arm, over all its runs."""
    own = [run for run in runs if run.arm == arm]
    return sum(run.tokens for run in own) / sum(run.seconds for run in own)


def planner_over(runs: Sequence[Run], arm: str) -> float:
    """Tokens per second of the planner over those of an arm, in the rounds that had it."""
    rounds = {run.round_number for run in runs if run.arm == arm}
    both = [run for run in runs if run.round_number in rounds]
    return speed_of(both, AUTO) / speed_of(both, arm)


def ratios_by_round(runs: Sequence[Run], arm: str) -> list[float]:
    """`planner_over` of each round that had the arm."""
    rounds = sorted({run.round_number for run in runs if run.arm == arm})
    return [planner_over([run for run in runs if run.round_number == number], arm) for number in rounds]


def decoding_speed(runs: Sequence[Run], arm: str, rows: range) -> float:
    """Tokens per second of an arm's steps that decode so many rows and read no prompt; 0 without any."""
    steps = [step for run in runs if run.arm == arm for step in run.steps if step.decode_rows in rows and not step.prefill_tokens]
    return sum(step.generated for step in steps) / sum(step.seconds for step in steps) if steps else 0.0


def _run(engine: Engine, link: FleetLink, number: int, arm: str, load: Load) -> Run:
    before = engine.restarts()
    if arm == AUTO:
        link.take_over()
        played = RealEngine(engine, number, link.after)
    else:
        engine.hold(int(arm.removeprefix("K=")))
        played = RealEngine(engine, number, link.beside)
    seconds, tokens = play(played, load, number)
    link.report()
    return Run(number, arm, seconds, tokens, engine.restarts() - before, core_share(played.steps), tuple(played.steps))
