"""How many restarts by lease ran at once, counted from what engines did, not from what the policy believes (INV-6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Span = tuple[float, float]
"""Begin and end in seconds; a span does not hold its end."""


def most_at_once(spans: Sequence[Span]) -> int:
    """The largest number of spans that hold one moment.

    >>> most_at_once([(0, 2), (1, 3), (2, 4)]), most_at_once([])
    (2, 0)
    """
    return max((present for _, present in _begun(spans)), default=0)


def begun_above(spans: Sequence[Span], allowed: Callable[[float], int]) -> int:
    """Spans that began while as many as `allowed` at that time, or more, ran already.

    >>> begun_above([(0, 2), (1, 3), (1, 4), (5, 6)], lambda at_s: 2)
    1
    """
    return sum(present > allowed(begin_s) for begin_s, present in _begun(spans))


def _begun(spans: Sequence[Span]) -> Iterator[tuple[float, int]]:
    """Every begin, and how many ran from then on; at one moment ends come before begins."""
    moves = sorted([(begin_s, 1) for begin_s, _ in spans] + [(end_s, -1) for _, end_s in spans])
    present = 0
    for at_s, move in moves:
        present += move
        if move == 1:
            yield at_s, present
