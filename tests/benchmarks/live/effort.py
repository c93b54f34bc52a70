"""How much is measured: everything that trades time for certainty, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.benchmarks.engine.environment import has_bfloat16
from tests.benchmarks.engine.fixture import MAX_NUM_SEQS
from tests.benchmarks.live.arms import STATIC
from tests.benchmarks.measuring.repeats import Repeats


@dataclass(frozen=True, slots=True)
class SteadyLoad:
    """So many requests in flight at each replica, all the time."""

    name: str
    rows: int
    settle_s: float
    """Until all prompts of the first requests are read."""
    measure_s: float


@dataclass(frozen=True, slots=True)
class ChangingLoad:
    """Users of each replica: few, many, few again. The same answers whoever gives them, so what is compared is time."""

    few: int
    """They are there all the time."""
    many: int
    """With those of the surge, who ask once, all at the same moment."""
    max_tokens: int
    """Of an answer."""
    quiet_turns: int
    """Answers of one of the few before the surge."""
    turns: int
    """In all; of those about one during the surge."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts of one run."""

    loads: tuple[SteadyLoad, ...]
    odd_rounds: Repeats
    """Of every static arm at each load; they pick the best, and teach."""
    lessons: Repeats
    """Of the planner alone before it is scored, as long as a segment."""
    even_rounds: Repeats
    """Of the planner, off and the best at each load; they score."""
    changing: ChangingLoad
    changing_lessons: int
    """Runs of the planner before any is scored: it has not met these numbers of users."""
    changing_rounds: Repeats
    """Of the planner and the best static arm, each twice, and as many of the planner and the stock table; before them one of the
    planner and every static arm."""
    cold_rounds: int
    cold_s: float
    category_requests: int
    """Of each category, both replicas together."""
    category_tokens: int


MAX_TOKENS: Final = 64
"""Of an answer under load."""
ROWS: Final = (1, 4, 32) if has_bfloat16() else (1, 2, 12)
"""Requests in flight of each load. A processor that multiplies float32 alone has its crossover at three rows, not at ten, and steps
of seven seconds at 32, of which no segment would hold enough."""
MANY: Final = MAX_NUM_SEQS * 7 // 8 if has_bfloat16() else 10
"""Users of a replica under a surge: beyond the crossover, and nobody waits."""

FULL: Final = Effort(
    loads=(SteadyLoad("low", ROWS[0], 3.0, 12.0), SteadyLoad("middle", ROWS[1], 4.0, 12.0), SteadyLoad("full", ROWS[2], 8.0, 14.0)),
    odd_rounds=Repeats(2, 2, 0.0),
    lessons=Repeats(1, 2, 20.0),
    even_rounds=Repeats(3, 5, 160.0),
    changing=ChangingLoad(few=2, many=MANY, max_tokens=16, quiet_turns=4, turns=9),
    changing_lessons=1,
    changing_rounds=Repeats(2, 3, 300.0),
    cold_rounds=2,
    cold_s=50.0,
    category_requests=8,
    category_tokens=48,
)
QUICK: Final = Effort(
    loads=(SteadyLoad("low", ROWS[0], 1.5, 6.0), SteadyLoad("middle", ROWS[1], 2.5, 6.0), SteadyLoad("full", ROWS[2], 5.0, 6.0)),
    odd_rounds=Repeats(1, 1, 0.0),
    lessons=Repeats(1, 1, 0.0),
    even_rounds=Repeats(2, 2, 0.0),
    changing=ChangingLoad(few=2, many=MANY, max_tokens=10, quiet_turns=2, turns=5),
    changing_lessons=1,
    changing_rounds=Repeats(1, 1, 0.0),
    cold_rounds=1,
    cold_s=12.0,
    category_requests=4,
    category_tokens=12,
)

FIRST_START_S: Final = 110.0
START_S: Final = 60.0
"""Of one engine alone; two at once take half longer."""
STARTS_AT_ONCE: Final = 1.5
SWITCH_S: Final = 3.0
"""From one arm to the next."""
FEW_TOKENS_PER_S: Final = 12.0
MANY_TOKENS_PER_S: Final = 95.0
"""Of a replica, over all arms."""


def longest_s(effort: Effort, categories: int) -> float:
    """About how long a whole run takes at most where engines start as fast as above.

    >>> 40 < longest_s(FULL, categories=11) / 60 < 60, 14 < longest_s(QUICK, categories=11) / 60 < 20
    (True, True)
    """
    cold_s = (
        effort.cold_rounds * (START_S + 2 * (effort.cold_s + 4 * SWITCH_S)) + (effort.cold_rounds - 1) * START_S * STARTS_AT_ONCE
    )
    steady_s = 0.0
    for load in effort.loads:
        segment_s = load.settle_s + load.measure_s + SWITCH_S
        steady_s += segment_s + sum(
            _longest_s(repeats, arms * segment_s)
            for repeats, arms in ((effort.odd_rounds, len(STATIC)), (effort.lessons, 1), (effort.even_rounds, 3))
        )
    changing = effort.changing
    few_s = changing.few * (changing.turns - 1) * changing.max_tokens / FEW_TOKENS_PER_S
    run_s = few_s + changing.many * changing.max_tokens / MANY_TOKENS_PER_S + SWITCH_S
    first_runs = effort.changing_lessons + 1 + len(STATIC)
    changing_s = START_S * STARTS_AT_ONCE + first_runs * run_s + 2 * _longest_s(effort.changing_rounds, 2 * 2 * run_s)
    categories_s = categories * (effort.category_tokens / 4 + 2 * SWITCH_S)
    return FIRST_START_S + cold_s + steady_s + changing_s + categories_s


def _longest_s(repeats: Repeats, one_s: float) -> float:
    """The last one may begin just before the time is over."""
    return max(repeats.least * one_s, min(repeats.most * one_s, repeats.seconds + one_s))
