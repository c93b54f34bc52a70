"""How often something is measured: a count, and a clock so that a slow machine measures less and not longer.

What is compared is measured in turns: a machine that slows down for minutes then slows all of it; and in orders in which no arm
always has the better place.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nightjar.loadtests.arms.arm import shuffled

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repeats:
    """`least` times, and again up to `most` times while `seconds` have not gone by: a slow machine measures less, not longer."""

    least: int
    most: int
    seconds: float

    def has(self, number: int, spent_s: float) -> bool:
        """Whether there is a time of that number, the first is 0, after so many seconds.

        >>> [Repeats(2, 3, 10.0).has(number, 11.0) for number in range(4)], Repeats(2, 3, 10.0).has(2, 9.0)
        ([True, True, False, False], True)
        """
        return number < self.most and (number < self.least or spent_s <= self.seconds)

    def numbers(self, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
        """0, 1, ...

        >>> list(Repeats(2, 5, 10.0).numbers(iter([0.0, 8.0, 16.0]).__next__))
        [0, 1, 2]
        """
        began_s = clock()
        for number in range(self.most):
            if not self.has(number, clock() - began_s if number >= self.least else 0.0):
                return
            yield number


def in_turns(repeats: Mapping[int, Repeats], clock: Callable[[], float] = time.monotonic) -> Iterator[tuple[int, int | None]]:
    """(0, key), (0, next key), ..., (0, None), (1, key), ...: every key as often as its repeats say, None at the end of each turn.

    A key's seconds are those between it and what is asked for next.

    >>> ticks = iter([0.0, 9.0, 9.0, 10.0, 10.0, 11.0, 11.0, 12.0])
    >>> list(in_turns({4: Repeats(1, 3, 5.0), 16: Repeats(1, 2, 5.0)}, ticks.__next__))
    [(0, 4), (0, 16), (0, None), (1, 16), (1, None)]
    """
    spent_s = dict.fromkeys(repeats, 0.0)
    for number in range(max(one.most for one in repeats.values())):
        due = [key for key, one in repeats.items() if one.has(number, spent_s[key])]
        for key in due:
            began_s = clock()
            yield number, key
            spent_s[key] += clock() - began_s
        if due:
            yield number, None


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
