"""How many restarts by lease ran at once, counted from what engines did, not from what the policy believes (INV-6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class LeasedRestart(NamedTuple):
    """One restart under a lease, or the part of it that brings weights back; it does not hold its end, infinite while it runs."""

    begin_s: float
    end_s: float
    is_reload: bool


def most_at_once(restarts: Sequence[LeasedRestart]) -> int:
    """The largest number of restarts that ran in one moment.

    >>> spans = [LeasedRestart(0, 2, False), LeasedRestart(1, 3, False), LeasedRestart(2, 4, False)]
    >>> most_at_once(spans), most_at_once([])
    (2, 0)
    """
    return max((present for _, present in _begun(restarts)), default=0)


def begun_above(restarts: Sequence[LeasedRestart], allowed: Callable[[float], int]) -> int:
    """Restarts that began while as many as `allowed` at that time, or more, ran already.

    >>> spans = [LeasedRestart(0, 2, False), LeasedRestart(1, 3, False), LeasedRestart(1, 4, False), LeasedRestart(5, 6, False)]
    >>> begun_above(spans, lambda at_s: 2)
    1
    """
    return sum(present > allowed(begin_s) for begin_s, present in _begun(restarts))


def _begun(restarts: Sequence[LeasedRestart]) -> Iterator[tuple[float, int]]:
    """Every begin, and how many ran from then on; at one moment ends come before begins."""
    moves = [(restart.begin_s, 1) for restart in restarts] + [(restart.end_s, -1) for restart in restarts]
    present = 0
    for at_s, move in sorted(moves):
        present += move
        if move == 1:
            yield at_s, present
