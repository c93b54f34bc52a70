"""Whose turn is when: rounds of arms in an order that favours none, and what happens to a turn that fails.

Every round has each arm once, so that what drifts over minutes touches all of them. The first rounds may be lessons: planners learn
the load, caches fill, and nothing is counted. Data and arithmetic only.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

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


def latin_rectangle(arms: Sequence[T], rounds: int, rng: random.Random) -> list[list[T]]:
    """Orders in which no arm stands twice at the same place while rounds are no more than arms.

    So no arm has only easy texts or only long contexts. Shuffled by rows, columns and names.
    """
    size = len(arms)
    names, columns = rng.sample(list(arms), size), rng.sample(range(size), size)
    rows: list[int] = []
    while len(rows) < rounds:
        rows += rng.sample(range(size), size)
    return [[names[(row + column) % size] for column in columns] for row in rows[:rounds]]


def there_and_back(arms: Sequence[T], rounds: int, rng: random.Random) -> list[list[T]]:
    """Shuffled, and each round once more in the opposite order: on average every arm stands in the same place.

    >>> there_and_back(["auto"], 1, random.Random(0))
    [['auto', 'auto']]
    """
    return [[*order, *reversed(order)] for order in shuffled(arms, rounds, rng)]


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
