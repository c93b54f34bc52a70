"""What is compared, and whose turn is when: arms, and rounds of them in an order that favours none.

An arm is a mode or a planner of one running system, or another server by its address. Every round has each arm once, so that what
drifts over minutes touches all of them. The first rounds may be lessons: planners learn the load, caches fill, and nothing is
counted. Data and arithmetic only. Fails closed: text that is no arm raises ArmError with what is allowed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, TypeVar

from pydantic import ValidationError

from nightjar.loadtests.load.openai_stream import AddressError, Server
from nightjar.policy.planners import LEARNING_PLANNERS, LOCAL_PLANNERS
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import PLANNER_NAMES, PlannerName
from nightjar.policy.wire.record import Record

PLANNERS: Final = tuple(name for name in PLANNER_NAMES if name != "off")
FORM: Final = (
    f"off, shadow, auto, pin=K, a planner ({', '.join(PLANNERS)}), each also with a name of its own (again=off), or the address of "
    "another server, always with one (plain=http://host:8001)"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,39}")


class ArmError(ValueError):
    """Text that names no arm, or arms that cannot be compared."""


class Arm(Record):
    """One of those compared. With a `url` it is another server, which nobody switches; else a mode, and a planner if named."""

    name: str
    mode: Mode | None = None
    planner: PlannerName | None = None
    url: str = ""

    @property
    def learns(self) -> bool:
        """Whether it is a planner that learns while it runs, as far as its name tells."""
        return self.mode is not None and self.mode.kind == "auto" and self.planner in {None, *LEARNING_PLANNERS, *LOCAL_PLANNERS}

    @property
    def meaning(self) -> str:
        """What it is, in words."""
        if self.url:
            return f"the server at {self.url}"
        if self.planner is not None:
            papers = ", the paper's, in every engine" if self.planner == "nightjar" else ""
            return f"the planner {self.planner}{papers}"
        return {"off": "no speculation", "auto": "the planner of the settings", "shadow": "the engine's own arguments"}.get(
            str(self.mode), f"{self.mode}: one K at every batch"
        )


def parse_arm(text: str) -> Arm:
    """One arm. Raises ArmError.

    >>> parse_arm("pin=5").name, parse_arm("low=pin=1").mode.num_speculative_tokens, parse_arm("nightjar").planner
    ('pin=5', 1, 'nightjar')
    """
    found = _of(text, text)
    if found is None:
        name, _, rest = text.partition("=")
        found = _of(name, rest)
    if found is None or not _NAME.fullmatch(found.name):
        raise ArmError(f"arm {text[:80]!r} is none of {FORM}")
    return found


def parse_arms(texts: Sequence[str]) -> tuple[Arm, ...]:
    """At least two arms with names of their own; the others are compared with the first. Raises ArmError."""
    arms = tuple(map(parse_arm, texts))
    if len(arms) < 2:
        raise ArmError(f"{len(arms)} arm: a comparison needs two at least, for example --arm off --arm fleet")
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArmError(f"arm {', '.join(twice)} is there more than once; give the second a name of its own, again={twice[0]}")
    return arms


def _of(name: str, what: str) -> Arm | None:
    if what in PLANNERS:
        return Arm(name=name, mode=Mode(kind="auto"), planner=what)
    if what.startswith(("http://", "https://")):
        try:
            return Arm(name=name, url=Server(what.rstrip("/")).url)
        except AddressError as error:
            raise ArmError(str(error)) from error
    try:
        return Arm(name=name, mode=Mode.parse(what))
    except ValidationError:
        return None


T = TypeVar("T")


class TurnError(Exception):
    """A turn that did not go as it was to: the system does not run the arm, or the load was not sent. The message is one line."""


class Turn(NamedTuple):
    """One arm in one round, the first is 1; lessons are the first rounds."""

    round: int
    arm: str
    is_lesson: bool


def shuffled(arms: Sequence[T], rounds: int, rng: random.Random) -> list[list[T]]:
    """An order of its own for each round, so that no arm always follows the same other. More rounds leave the first as they are."""
    return [rng.sample(list(arms), len(arms)) for _ in range(rounds)]


def turns(
    arms: Sequence[str], rounds: int, lessons: int = 0, *, seed: int = 0, done: Collection[tuple[int, str]] = ()
) -> list[Turn]:
    """The turns that are left, shuffled in each round; the same for the same seed. `done` are rounds and arms that were played.

    >>> [turn.round for turn in turns(["off", "fleet"], 2, 1)], len(turns(["off", "fleet"], 2, 1, done={(1, "off"), (1, "fleet")}))
    ([1, 1, 2, 2, 3, 3], 4)
    """
    rng = random.Random(f"{seed} order")  # noqa: S311 - an order, no secret
    orders = enumerate(shuffled(arms, lessons + rounds, rng), start=1)
    return [Turn(number, arm, number <= lessons) for number, names in orders for arm in names if (number, arm) not in done]
