"""What a comparison does: its arms, its load, and whose turn is when. Data and arithmetic only.

Every round has each arm once, in an order of its own, drawn from the seed: what drifts over minutes then touches all of them, and
none always follows the same other. The first rounds are lessons: planners learn the load, caches fill, and nothing is counted.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from nightjar.loadtests.compare.arms import Arm
from nightjar.policy.wire.record import Record

Learned = Literal["keep", "reset"]


class Load(Record):
    """What every turn sends: a regime, a trace joined with texts, or whatever `command` does.

    warm_up_s  at the beginning of a turn, not counted; a command's turns are counted whole
    """

    regime: str = ""
    trace: str = ""
    prompts: str = ""
    tokenizer: str = ""
    time_scale: float = 1.0
    trace_s: float = 0.0
    max_tokens: Annotated[int, Field(ge=2)] = 32
    command: str = ""
    warm_up_s: Annotated[float, Field(ge=0.0)] = 0.0

    def __str__(self) -> str:
        return self.command or (f"the trace {self.trace}" if self.trace else self.regime)


class ComparePlan(Record):
    """A whole comparison. `learned`: whether planners that learn go on from the turn before, or begin each turn anew."""

    arms: tuple[Arm, ...]
    url: str
    load: Load
    rounds: Annotated[int, Field(ge=1, le=1000)]
    lessons: Annotated[int, Field(ge=0, le=100)]
    seed: int = 0
    learned: Learned = "keep"

    def arm(self, name: str) -> Arm:
        """By its name."""
        return next(arm for arm in self.arms if arm.name == name)


class Turn(NamedTuple):
    """One arm in one round, the first is 1; lessons are the first rounds."""

    round: int
    arm: str
    is_lesson: bool


def turns(plan: ComparePlan, done: Collection[tuple[int, str]] = ()) -> list[Turn]:
    """Those that are left, in order; the same for the same plan. `done` are rounds and arms that were played.

    >>> from nightjar.loadtests.compare.arms import parse_arms
    >>> plan = ComparePlan(arms=parse_arms(["off", "fleet"]), url="", load=Load(), rounds=2, lessons=1)
    >>> [turn.round for turn in turns(plan)], len(turns(plan, {(1, "off"), (1, "fleet")}))
    ([1, 1, 2, 2, 3, 3], 4)
    """
    rng = random.Random(f"{plan.seed} order")  # noqa: S311 - an order, no secret
    names = [arm.name for arm in plan.arms]
    found = []
    for number in range(1, plan.lessons + plan.rounds + 1):
        found += [Turn(number, name, number <= plan.lessons) for name in rng.sample(names, len(names))]
    return [turn for turn in found if (turn.round, turn.arm) not in done]
