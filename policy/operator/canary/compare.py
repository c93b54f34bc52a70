"""What one block of time says of canary and control: goodput at the same batch, weighted by the batches that both saw.

Goodput is generated tokens per busy second of an engine, everything included: prefill, catch-up, steps in transition. Each report
counts for the batch bucket of its mean decode batch, so that a canary is not called better for being given more requests.
A canary that is slow fills up, and soon runs batches that its control does not. There the control's goodput is bounded from below:
goodput does not fall with the batch, and does not rise by more than the batch does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES

LEAST_SHARE: Final = 0.05
"""Of a block, for which canary and control must have been busy beside one another."""
LEAST_TOKENS: Final = 0.5
"""Of an engine that was busy and finished none."""

Place = tuple[str, int]
"""A group's id and a batch bucket."""


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that engines generated in so many busy seconds."""

    tokens: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(self.tokens + other.tokens, self.seconds + other.seconds)

    @property
    def log_goodput(self) -> float:
        """Logarithm of tokens a busy second."""
        return math.log(max(self.tokens, LEAST_TOKENS) / self.seconds)


Works = Mapping[Place, Work]


def together(works: Works, more: Iterable[tuple[Place, Work]]) -> dict[Place, Work]:
    """Works by place, with more of them."""
    summed = dict(works)
    for place, work in more:
        if work.seconds > 0.0:
            summed[place] = summed[place].plus(work) if place in summed else work
    return summed


def compare(canary: Works, control: Works, block_s: float) -> tuple[float | None, float | None]:
    """Logarithm of the canary's goodput over the control's: at batches that both saw, and at all of the canary's at best.

    None where they were busy beside one another for too little of a block of `block_s` seconds.

    >>> both = {("chat", 3): Work(100.0, 2.0)}
    >>> compare(both, both, 2.0)
    (0.0, 0.0)
    >>> seen, at_best = compare({("chat", 5): Work(50.0, 2.0)}, both, 2.0)
    >>> seen, round(at_best or 0.0, 2)
    (None, -0.69)
    """
    seen, at_best = [], []
    for place, mine in canary.items():
        theirs = control.get(place)
        if theirs is not None:
            difference = mine.log_goodput - theirs.log_goodput
            seen.append((_weight(mine, theirs), difference))
            at_best.append(seen[-1])
        elif (found := _at_least(place, control)) is not None:
            log_goodput, theirs = found
            at_best.append((_weight(mine, theirs), mine.log_goodput - log_goodput))
    return _mean(seen, LEAST_SHARE * block_s), _mean(at_best, LEAST_SHARE * block_s)


def _weight(one: Work, other: Work) -> float:
    return one.seconds * other.seconds / (one.seconds + other.seconds)


def _mean(weighted: list[tuple[float, float]], least_s: float) -> float | None:
    whole = sum(weight for weight, _ in weighted)
    return sum(weight * number for weight, number in weighted) / whole if whole >= least_s and whole > 0.0 else None


def _at_least(place: Place, control: Works) -> tuple[float, Work] | None:
    """What the control would give at a place that it did not see, at least, and the work that says so."""
    group_id, bucket = place
    seen = sorted(other for group, other in control if group == group_id)
    below, above = [other for other in seen if other < bucket], [other for other in seen if other > bucket]
    if below:
        theirs = control[group_id, below[-1]]
        return theirs.log_goodput, theirs
    if above:
        theirs = control[group_id, above[0]]
        most = FIRST_BATCH_SIZES[above[0] + 1] - 1 if above[0] + 1 < len(FIRST_BATCH_SIZES) else FIRST_BATCH_SIZES[-1]
        return theirs.log_goodput + math.log(FIRST_BATCH_SIZES[bucket] / most), theirs
    return None
