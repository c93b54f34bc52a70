"""A load that crosses the crossover: few users, many, few again, against every static arm and against vLLM's own table.

The requests are the same for every arm, and so are the prompts: what counts is the time until all are answered. (By the clock a
surge holds two waves of answers or one, as a wave ends just before its end or just after.) What an arm restarts between surge and
calm, it pays for. The first round has the planner and every static arm; it picks the best of these, and by what they gave under the
surge, and on steady loads, the stock table is tuned. Later rounds alone score, the planner against one rival: the first has too
many arms for that, for minutes lie between two of them, in which whoever shares the machine comes or goes. First the best static
arm; then the table, which runs in replicas of its own, on the same two cores: they take turns with ours, and whoever waits takes no
processor time (it is measured and told). They start that late because four engines leave next to no memory free on a machine of 24
GiB: beside them everything is slower, off too. In a round that scores each arm runs twice, the second time in the opposite order,
so that a machine that slows down, or recovers, over the round does the same to both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any, Final

from nightjar.loadtests.arms.arm import shuffled
from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.arms.statistics import Pair, Speed, matched, paired_ratio
from nightjar.loadtests.arms.stock_table import TableRows, tuned_table
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.engine.fixture import MAX_NUM_SEQS
from tests.benchmarks.live.applications import OURS, STOCK
from tests.benchmarks.live.arms import AUTO, STATIC, TABLE, length_of
from tests.benchmarks.live.crowd import Crowd, Deck
from tests.benchmarks.live.effort import Effort
from tests.benchmarks.live.playing import Player, Window, goodput_cell, goodput_title, question, window
from tests.benchmarks.measuring.outcome import Lines, Outcome, Tell
from tests.benchmarks.measuring.repeats import there_and_back

PHASES: Final = ("quiet", "surge", "calm")
SURGE: Final = PHASES.index("surge")
FIRST_ROUND: Final = 0
RUNS_PER_ROUND: Final = 2
"""Of an arm in a round that scores."""
DRAFTER_TAX: Final = 1.2
"""Off over vLLM's own K = 0, tokens/s: `make bench-engine` measures 1.13 to 1.27 at batches of 1 to 16."""
FIRST_QUESTION_STEP: Final = 47
"""Between rounds: no two begin with the same texts, and this and their number have no divisor in common."""


@dataclass(frozen=True, slots=True)
class Run:
    """The load once through."""

    number: int
    """Of its round: the same texts."""
    arm: str
    whole: Window
    phases: tuple[Window, ...]
    idle_cpu_share: float
    """Of a core, taken by the replicas that had nothing to do."""

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        return {
            "round": self.number + 1, "arm": self.arm, "seconds": round(self.whole.seconds, 3), "tokens": self.whole.tokens,
            "tokens_by_phase": {name: phase.tokens for name, phase in zip(PHASES, self.phases, strict=True)},
            "steps_by_phase": {name: phase.steps_by_k for name, phase in zip(PHASES, self.phases, strict=True)},
            "idle_cpu_share": round(self.idle_cpu_share, 4),
        }  # fmt: skip


@dataclass(slots=True)
class Runs:
    """Of all arms."""

    played: list[Run] = field(default_factory=list)

    def of(self, arm: str) -> list[Run]:
        """Of one arm."""
        return [run for run in self.played if run.arm == arm]

    def speed(self, arm: str) -> float:
        """Tokens per second of both replicas."""
        own = self.of(arm)
        return sum(run.whole.tokens for run in own) / sum(run.whole.seconds for run in own)

    def phase_speed(self, arm: str, phase: int) -> float:
        """The same of one phase."""
        own = [run.phases[phase] for run in self.of(arm)]
        return sum(one.tokens for one in own) / sum(one.seconds for one in own)

    def best_static(self) -> str:
        """The static arm that the first round picks."""
        return max(STATIC, key=lambda arm: next(run.whole.speed for run in self.of(arm) if run.number == FIRST_ROUND))

    def pairs(self, arm: str, other: str) -> list[Pair]:
        """Two arms in the rounds that score: the first runs of both in a round, and the second ones."""
        return matched(self._scored(arm), self._scored(other))

    def _scored(self, arm: str) -> dict[int, Speed]:
        """By round and which of its two runs of a round it is."""
        speeds: dict[int, Speed] = {}
        for run in self.of(arm):
            if run.number > FIRST_ROUND:
                place = RUNS_PER_ROUND * run.number
                speeds[place + (place in speeds)] = Speed(run.whole.tokens, run.whole.seconds)
        return speeds


def measure_changing(
    player: Player, effort: Effort, speeds: Mapping[int, Mapping[int, float]], rng: random.Random, seed: int, tell: Tell
) -> Outcome:
    """Rounds of the load. `speeds` are those of steady loads, by requests in flight at a replica and K: they tune the table."""
    runs = Runs()

    def play(arms: Sequence[str], number: int) -> None:
        for arm in arms:
            runs.played.append(_told(_run(player, effort, arm, number), tell))

    for number in range(effort.changing_lessons):
        _told(_run(player, effort, AUTO, number), tell, "not scored, ")

    def rounds(rival: str, last: int) -> int:
        for _ in effort.changing_rounds.numbers():
            last += 1
            play(there_and_back((AUTO, rival), 1, rng)[0], last)
        return last

    play(shuffled((AUTO, *STATIC), 1, rng)[0], FIRST_ROUND)
    last = rounds(runs.best_static(), FIRST_ROUND)
    under_surge = {length_of(arm): runs.phase_speed(arm, SURGE) for arm in STATIC}
    table = tuned_table({**speeds, effort.changing.many: under_surge}, MAX_NUM_SEQS, DRAFTER_TAX)
    tell(f"starting stock vLLM twice, with the table {table}")
    player.system.add_stock(table)
    rounds(TABLE, last)
    outcome = _outcome(runs, table, seed)
    if player.target:
        arms = [arm for arm in (AUTO, *STATIC, TABLE) if runs.of(arm)]
        lines = [[arm, goodput_cell([run.whole for run in runs.of(arm)])] for arm in arms]
        outcome.tables.append(Grid(goodput_title("Changing load", player.target), ("arm", "within, tokens/s"), lines))
    return outcome


def _run(player: Player, effort: Effort, arm: str, number: int) -> Run:
    load = effort.changing
    busy, idle = (STOCK, OURS) if arm == TABLE else (OURS, STOCK)

    def turns(user: int) -> int:
        return load.turns if user < load.few else 1

    deck = Deck(question, number * FIRST_QUESTION_STEP, load.many, load.max_tokens, turns=turns)

    async def script(crowd: Crowd) -> list[StatusSample]:
        looks = [await player.look()]
        crowd.resize(load.few)
        await crowd.answered(load.quiet_turns * load.few * len(busy))
        looks.append(await player.look())
        crowd.resize(load.many)
        await crowd.finished(first_user=load.few)
        looks.append(await player.look())
        await crowd.finished()
        looks.append(await player.look())
        return looks

    before_s = player.system.cpu_seconds(idle)
    looks, answers = player.play(arm, busy, deck, script)
    idle_s = player.system.cpu_seconds(idle) - before_s
    whole = player.window(answers, looks[0], looks[-1])
    phases = tuple(window(answers, first, last) for first, last in pairwise(looks))
    return Run(number, arm, whole, phases, idle_s / whole.seconds)


def _told(run: Run, tell: Tell, what: str = "") -> Run:
    phases = ", ".join(f"{name} {phase.speed:.1f}" for name, phase in zip(PHASES, run.phases, strict=True))
    idle = f"idle replicas {run.idle_cpu_share:.1%} of a core"
    tell(f"  changing load, {what}{run.arm}: {run.whole.speed:.1f} tokens/s ({phases}); {idle}")
    return run


def _outcome(runs: Runs, table: TableRows, seed: int) -> Outcome:
    best = runs.best_static()
    ratios = {rival: paired_ratio(runs.pairs(AUTO, rival), seed) for rival in (best, TABLE)}
    limit = 1.0
    worst = min(ratios, key=lambda rival: (ratios[rival].interval.high >= limit, ratios[rival].interval.low))
    bar = Bar(
        name="fleet_over_static_changing",
        meaning="a load that crosses the crossover, the same requests: tokens/s of the planner over the best static K's and "
        "over the stock table's, the lower of the two",
        direction="at least",
        limit=limit,
        value=ratios[worst].value,
        interval=ratios[worst].interval,
        judged="interval",
        at=f"against {worst}, {ratios[worst].rounds} runs each",
        cells=len(ratios),
    )
    outcome = Outcome(bars=[bar])
    arms = [arm for arm in (AUTO, *STATIC, TABLE) if runs.of(arm)]
    outcome.facts = {
        "tokens_per_s": {arm: round(runs.speed(arm), 2) for arm in arms},
        "over_best_static": {"rival": best, **ratios[best].plain()},
        "over_stock_table": {"table": [list(row) for row in table], **ratios[TABLE].plain()},
        "most_of_a_core_taken_by_idle_replicas": round(max(run.idle_cpu_share for run in runs.played), 4),
    }
    outcome.rows["changing"] = [run.plain() for run in runs.played]
    lines = []
    for arm in arms:
        phases = [f"{runs.phase_speed(arm, phase):.1f}" for phase in range(len(PHASES))]
        lines.append([arm, f"{runs.speed(arm):.1f}", *phases, str(len(runs.of(arm)))])
    title = "A load that crosses the crossover: tokens/s of both replicas, with the round that only picks"
    outcome.tables.append(Grid(title, ("arm", "tokens/s", *PHASES, "runs"), lines))
    curves = {arm: _course(runs, arm) for arm in arms}
    outcome.charts.append(Lines("Tokens per second under the changing load by phase", "s", curves))
    return outcome


def _course(runs: Runs, arm: str) -> list[tuple[float, float]]:
    """An arm's speed of each phase, at the end of it."""
    ends = accumulate(fmean(run.phases[phase].seconds for run in runs.of(arm)) for phase in range(len(PHASES)))
    return [(end_s, runs.phase_speed(arm, phase)) for phase, end_s in enumerate(ends)]
