"""Bursts of long prompts with short answers: what users wait for at off, at the best fixed K and under the planner.

Open loop on the engine's own clock: requests come when they are due, whoever is still being served, and while nobody is there the
bench waits as long as the engine would. Arrivals stop, the engine goes on to the last answer, and every request counts. They come
at LOAD of what off carries, which is measured first, in an engine that always has prompts to read. Prompts, and the times at which
they come, are drawn by round and are the same for each of its arms, which take turns in a drawn order.

The first round has every K that may be best, each with one burst: by its mean time end to end the best is picked, and the planner
learns what it reports. Then the planner plays alone, unscored. The rounds that score have off, the best K above 0 and the planner.
Reported are time to the first token, time of each later one, and end to end, whose sum is the area under the number of requests in
the system (Little). Fails with RuntimeError where a request was not answered in full.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Protocol

import numpy as np

from nightjar.loadtests.arms.statistics import of_times, paired_ratio
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.engine.effort import Bursts
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import burst_question
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.measured import AUTO, OFF, arm_name
from tests.benchmarks.engine.step_record import Step, core_share
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.repeats import latin_rectangle

ANSWER_TOKENS: Final = 8
LOAD: Final = 0.8
"""Of what off carries of the same requests."""
BURST_SHARE: Final = 0.25
"""Of the time from one burst to the next, in which the burst's requests come."""
WANTED: Final = 0.95
PICKS: Final = 0
"""The round that picks; lessons and rounds that score have the numbers after it."""
NAP_S: Final = 0.5
"""Between two looks at an idle engine: as often as a replica's agent reports."""


@dataclass(frozen=True, slots=True)
class Answer:
    """When a request was due, and when its first and its last token came, in seconds of the run."""

    due_s: float
    first_s: float
    last_s: float

    @property
    def ttft_s(self) -> float:
        """Time to its first token."""
        return self.first_s - self.due_s

    @property
    def tpot_s(self) -> float:
        """Time of each later one."""
        return (self.last_s - self.first_s) / (ANSWER_TOKENS - 1)

    @property
    def e2e_s(self) -> float:
        """Time end to end."""
        return self.last_s - self.due_s


@dataclass(frozen=True, slots=True)
class Run:
    """The bursts of a round once through one arm."""

    number: int
    arm: str
    answers: tuple[Answer, ...]
    steps: tuple[Step, ...]

    @property
    def last_answer_s(self) -> float:
        """From the first request to the last answer."""
        return max(answer.last_s for answer in self.answers)


Measure = Callable[[Run], list[float]]
MEASURES: Final[dict[str, tuple[str, Measure]]] = {
    "e2e": ("mean time end to end", lambda run: [answer.e2e_s for answer in run.answers]),
    "ttft": ("mean time to the first token", lambda run: [answer.ttft_s for answer in run.answers]),
    "tpot": ("mean time of a later token", lambda run: [answer.tpot_s for answer in run.answers]),
    "last_answer": ("time to the last answer", lambda run: [run.last_answer_s]),
}
"""By name: what it is, and its values in a run."""


class Served(Protocol):
    """An engine that can be given bursts."""

    def submit(self, numbers: range) -> Sequence[int]:
        """Add requests of a round; the rows that they have in steps."""

    def step(self) -> Step | None:
        """Run a step; None without requests."""

    def wait(self, seconds: float) -> None:
        """Let time go by without requests."""


def arrivals(bursts: int, size: int, requests_per_s: float, rng: random.Random) -> list[float]:
    """When the requests of a run come, in seconds, ascending from 0: `size` of them in the first BURST_SHARE of each burst's time.

    >>> [round(due_s) for due_s in arrivals(2, 3, 0.1, random.Random(1))]
    [0, 5, 5, 31, 32, 33]
    """
    apart_s = size / requests_per_s
    due_s = [burst * apart_s + rng.uniform(0.0, BURST_SHARE * apart_s) for burst in range(bursts) for _ in range(size)]
    return [one - min(due_s) for one in sorted(due_s)]


def play(engine: Served, due_s: Sequence[float]) -> tuple[tuple[Answer, ...], tuple[Step, ...]]:
    """Serve requests that are due at these times to the last answer; their answers, in this order, and the steps.

    Raises RuntimeError where one got less than its answer.
    """
    now_s, came = 0.0, 0
    steps: list[Step] = []
    number_of: dict[int, int] = {}
    first_s: dict[int, float] = {}
    last_s: dict[int, float] = {}
    while True:
        due = bisect_right(due_s, now_s)
        if due > came:
            numbers = range(came, due)
            number_of |= zip(engine.submit(numbers), numbers, strict=True)
            came = due
        step = engine.step()
        if step is not None:
            steps.append(step)
            now_s += step.seconds
            for row in step.rows:
                if row.generated and not row.position:
                    first_s[number_of[row.row]] = now_s
                if row.position + row.generated >= ANSWER_TOKENS:
                    last_s[number_of[row.row]] = now_s
        elif came < len(due_s):
            engine.wait(due_s[came] - now_s)
            now_s = due_s[came]
        else:
            break
    if unanswered := set(range(len(due_s))) - last_s.keys():
        raise RuntimeError(f"{len(unanswered)} of {len(due_s)} requests got less than {ANSWER_TOKENS} tokens")
    return tuple(Answer(due, first_s[number], last_s[number]) for number, due in enumerate(due_s)), tuple(steps)


class RealEngine:
    """An engine of this benchmark with a round's prompts, and whatever steers it looking at each step and while it waits."""

    def __init__(self, engine: Engine, first_question: int, requests: int, after_step: Callable[[Step], None]) -> None:
        self._engine = engine
        self._after_step = after_step
        self._prompts = engine.encode([burst_question(first_question + number) for number in range(requests)])

    def submit(self, numbers: range) -> list[int]:
        """As `Served.submit`."""
        return self._engine.add([self._prompts[number] for number in numbers], ANSWER_TOKENS)

    def step(self) -> Step | None:
        """As `Served.step`."""
        taken = self._engine.run()
        if not taken:
            return None
        self._after_step(taken[0])
        return taken[0]

    def wait(self, seconds: float) -> None:
        """As `Served.wait`: the clock of the policy goes on, and so does its engine's."""
        while seconds > 0.0:
            nap_s = min(NAP_S, seconds)
            time.sleep(nap_s)
            self._after_step(Step(nap_s, 0.0, 0, 0, 0, ()))
            seconds -= nap_s


class BurstRounds:
    """Runs of this section, one after the other."""

    def __init__(self, engine: Engine, link: FleetLink, bursts: Bursts, seed: int, tell: Tell) -> None:
        self._engine = engine
        self._link = link
        self._bursts = bursts
        self._seed = seed
        self._tell = tell
        self.requests_per_s = LOAD * self._carried_by_off()
        tell(f"bursts of {bursts.size} prompts, {self.requests_per_s:.3f} requests/s: {LOAD:.0%} of what off carries")

    def run(self, number: int, arm: str, count: int, what: str = "") -> Run:
        """A round's first `count` bursts through an arm."""
        if arm == AUTO:
            self._link.take_over()
        else:
            self._engine.hold(int(arm.removeprefix("K=")))
        due_s = arrivals(count, self._bursts.size, self.requests_per_s, random.Random(f"{self._seed} bursts {number}"))
        after_step = self._link.after if arm == AUTO else self._link.beside
        first_question = number * self._bursts.count * self._bursts.size
        answers, steps = play(RealEngine(self._engine, first_question, len(due_s), after_step), due_s)
        self._link.report()
        done = Run(number, arm, answers, steps)
        told = ", ".join(f"{name} {fmean(values(done)):.2f} s" for name, (_, values) in MEASURES.items())
        self._tell(f"bursts, {what}{arm}: {told}; core {core_share(steps):.2f}")
        return done

    def _carried_by_off(self) -> float:
        """Requests a second while the engine always has a prompt to read: answers are generated beside them."""
        self._engine.hold(0)
        requests = self._bursts.saturating
        _, steps = play(RealEngine(self._engine, 0, requests, self._link.beside), [0.0] * requests)
        return requests / sum(step.seconds for step in steps[: last_prefill(steps) + 1])


def measure_bursts(
    engine: Engine,
    link: FleetLink,
    bursts: Bursts,
    rng: random.Random,
    seed: int,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """The bars of this section, and what they are made of."""
    began_s = clock()
    rounds = BurstRounds(engine, link, bursts, seed, tell)
    fixed = [arm_name(length) for length in bursts.lengths]
    picking = [rounds.run(PICKS, arm, 1, "picks, ") for arm in rng.sample(fixed, len(fixed))]
    lessons = [rounds.run(PICKS + 1 + number, AUTO, 1, "not scored, ") for number in bursts.lessons.numbers(clock)]
    best = best_fixed(picking)
    arms = list(dict.fromkeys([OFF, best_fixed([run for run in picking if run.arm != OFF]), AUTO]))
    tell(f"bursts: {best} is the best fixed K; in the rounds that score are {', '.join(arms)}")
    scoring: list[Run] = []
    longest_s = 0.0
    for number, order in enumerate(latin_rectangle(arms, bursts.rounds.most, rng)):
        round_began_s = clock()
        if not bursts.rounds.has(number, round_began_s + longest_s - began_s):
            break
        scoring += [rounds.run(PICKS + 1 + bursts.lessons.most + number, arm, bursts.count) for arm in order]
        longest_s = max(longest_s, clock() - round_began_s)
    return burst_outcome(picking, lessons, scoring, best, rounds.requests_per_s, seed)


def last_prefill(steps: Sequence[Step]) -> int:
    """Which step was the last that read a prompt."""
    return max(number for number, step in enumerate(steps) if step.prefill_tokens)


def best_fixed(runs: Sequence[Run]) -> str:
    """The arm with the least mean time end to end."""
    return min(dict.fromkeys(run.arm for run in runs), key=lambda arm: fmean(_values(runs, arm, "e2e")))


def burst_outcome(
    picking: Sequence[Run], lessons: Sequence[Run], scoring: Sequence[Run], best: str, requests_per_s: float, seed: int
) -> Outcome:
    """Bars over the rounds that score; `best` was picked in others."""
    arms = list(dict.fromkeys(run.arm for run in sorted(scoring, key=lambda run: (run.arm == AUTO, run.arm))))
    outcome = Outcome(bars=burst_bars(scoring, best, seed))
    outcome.facts = {
        "bursts_requests_per_s": round(requests_per_s, 4),
        "bursts_best_fixed": best,
        "bursts_end_to_end_where_it_was_picked_s": {run.arm: round(fmean(_values([run], run.arm, "e2e")), 3) for run in picking},
        "bursts_by_arm": {arm: _told(scoring, arm) for arm in arms},
        "bursts_share_of_the_planners_steps": {
            which: shares_by_length([step for run in scoring if run.arm == AUTO for step in run.steps if kept(step)])
            for which, kept in STEPS.items()
        },
    }
    phases = {"picks": picking, "teaches": lessons, "scores": scoring}
    outcome.rows["bursts"] = [
        {"round": run.number, "arm": run.arm, "phase": phase, "due_s": round(answer.due_s, 3), "ttft_s": round(answer.ttft_s, 4),
         "tpot_s": round(answer.tpot_s, 4), "e2e_s": round(answer.e2e_s, 4), "core_share": round(core_share(run.steps), 4)}
        for phase, runs in phases.items() for run in runs for answer in run.answers
    ]  # fmt: skip
    outcome.rows["bursts_steps"] = [
        {"round": run.number, "arm": run.arm, "phase": phase, "seconds": round(step.seconds, 5), "rows": step.decode_rows,
         "prefill_tokens": step.prefill_tokens, "num_speculative_tokens": step.num_speculative_tokens,
         "recomputed_tokens": step.recomputed_tokens, "generated": step.generated, "waiting": step.waiting}
        for phase, runs in phases.items() for run in runs for step in run.steps
    ]  # fmt: skip
    outcome.tables.append(_table(scoring, arms))
    return outcome


def burst_bars(runs: Sequence[Run], best: str, seed: int) -> list[Bar]:
    """The best fixed K's times over the planner's, and off's: above 1 the planner is faster. One has a limit."""
    rounds = len({run.number for run in runs})
    bars = []
    for rival, name in ((best, "best"), (OFF, "off")):
        for measure, (meaning, _) in MEASURES.items():
            theirs, ours = (_by_round(runs, arm, measure) for arm in (rival, AUTO))
            ratio = paired_ratio(of_times(theirs, ours), seed)
            is_judged = (name, measure) == ("best", "e2e")
            bars.append(
                Bar(
                    name=f"bursts_{measure}_over_{name}",
                    meaning=f"bursts of long prompts with short answers: {meaning}, "
                    f"{'the best fixed K' if name == 'best' else 'off'}'s over the planner's",
                    direction="at least" if is_judged else "stated",
                    limit=WANTED if is_judged else 0.0,
                    value=ratio.value,
                    interval=ratio.interval,
                    judged="interval",
                    at=f"{rival} {fmean(theirs):.3g} s, planner {fmean(ours):.3g} s",
                    cells=rounds,
                )
            )
    return bars


STEPS: Final[dict[str, Callable[[Step], bool]]] = {
    "all": lambda step: True,
    "with_prefill": lambda step: step.prefill_tokens > 0,
    "without_prefill": lambda step: step.prefill_tokens == 0,
}
"""Which steps of the planner it is told of, what they drafted."""


def shares_by_length(steps: Sequence[Step]) -> dict[str, float]:
    """Share of the steps that drafted each K.

    >>> shares_by_length([Step(1.0, 1.0, length, 0, 0, ()) for length in (0, 5, 5, 5)])
    {'K=0': 0.25, 'K=5': 0.75}
    """
    counts = Counter(step.num_speculative_tokens for step in steps)
    return {arm_name(length): round(counts[length] / len(steps), 4) for length in sorted(counts)}


def _values(runs: Sequence[Run], arm: str, measure: str) -> list[float]:
    return [value for run in runs if run.arm == arm for value in MEASURES[measure][1](run)]


def _by_round(runs: Sequence[Run], arm: str, measure: str) -> list[float]:
    """Its mean in each round, in their order."""
    own = sorted((run for run in runs if run.arm == arm), key=lambda run: run.number)
    return [fmean(MEASURES[measure][1](run)) for run in own]


def _told(runs: Sequence[Run], arm: str) -> dict[str, Any]:
    own = [run for run in runs if run.arm == arm]
    told: dict[str, Any] = {"rounds": len(own), "requests": sum(len(run.answers) for run in own)}
    for name in ("ttft", "tpot", "e2e"):
        values = _values(runs, arm, name)
        told |= {f"{name}_mean_s": round(fmean(values), 4), f"{name}_p95_s": round(float(np.percentile(values, 95)), 4)}
    told["request_seconds"] = round(sum(_values(runs, arm, "e2e")), 2)
    told["last_answer_s"] = round(fmean(_values(runs, arm, "last_answer")), 3)
    told["core_share"] = round(core_share(step for run in own for step in run.steps), 4)
    return told


def _table(runs: Sequence[Run], arms: Sequence[str]) -> Grid:
    columns = ("arm", "rounds", "TTFT, p95", "TPOT, p95", "end to end, p95", "request-seconds", "last answer", "core")
    lines = []
    for arm in arms:
        one = _told(runs, arm)
        pairs = (f"{one[f'{name}_mean_s']:.2f}, {one[f'{name}_p95_s']:.2f}" for name in ("ttft", "tpot", "e2e"))
        last = (f"{one['request_seconds']:.0f}", f"{one['last_answer_s']:.1f}", f"{one['core_share']:.2f}")
        lines.append([arm, str(one["rounds"]), *pairs, *last])
    return Grid("Bursts of long prompts to the last answer: mean seconds", columns, lines)
