"""Which missing draft tokens a step recomputes: the requests for which it pays most first, never more than was ordered.

A request that is about to end is not worth catching up: the draft would read a long context for a few tokens. It then gets no
drafts until it ends, and its lag does not count for the restart. How long a request still runs is not known; what it generated so
far is the best guess (a long one probably stays long), within what `max_tokens` allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

WORTHWHILE_LAG_PER_TOKEN: Final = 64
"""Lag tokens that a request may miss per token that it is still expected to generate. A recomputed token costs 0.0005 (GPU) to
0.005 (CPU) of a step (policy.evidence.catch_up), and each generated one saves its share of a third of a step or so."""
UNBOUNDED_TOKENS: Final = 1 << 40
LEAST_EXPECTED_TOKENS: Final = 16
"""A request that has just begun is expected to generate so many at least."""


class Candidate(NamedTuple):
    """A decoding request that is behind."""

    request_id: str
    valid_tokens: int
    lag_tokens: int
    own_tokens: int
    """Tokens that the target reads of it in this step."""
    expected_tokens: int
    """Tokens that it is expected to generate still."""
    most_expected_tokens: int = 0
    """The most that will ever be expected of it, as it goes on."""

    @property
    def is_worthwhile(self) -> bool:
        """Whether it is likely to earn what its catch-up costs."""
        return self.lag_tokens <= WORTHWHILE_LAG_PER_TOKEN * self.expected_tokens

    @property
    def may_become_worthwhile(self) -> bool:
        """Whether it would be, once it has generated more."""
        return self.lag_tokens <= WORTHWHILE_LAG_PER_TOKEN * self.most_expected_tokens


class Portion(NamedTuple):
    """What is recomputed of one request in this step."""

    request_id: str
    first_token: int
    last_token_exclusive: int
    own_tokens: bool
    """Whether the tokens of this step are read as well: everything before them is there then."""


def expected_tokens(num_output_tokens: int, max_tokens: int | None) -> int:
    """Tokens that a request still generates, as a guess.

    >>> expected_tokens(0, None), expected_tokens(200, 1000), expected_tokens(200, 210)
    (16, 200, 10)
    """
    guess = max(num_output_tokens, LEAST_EXPECTED_TOKENS)
    return guess if max_tokens is None else max(min(guess, max_tokens - num_output_tokens), 1)


def most_expected_tokens(num_output_tokens: int, max_tokens: int | None) -> int:
    """The most that `expected_tokens` will say of a request from now on: it grows up to half of what `max_tokens` allows.

    >>> most_expected_tokens(0, 1000), most_expected_tokens(700, 1000), most_expected_tokens(0, None) > 1 << 30
    (500, 300, True)
    """
    if max_tokens is None:
        return UNBOUNDED_TOKENS
    return max(expected_tokens(num_output_tokens, max_tokens), max_tokens // 2 if num_output_tokens < max_tokens // 2 else 0)


def plan_catch_up(candidates: Iterable[Candidate], max_tokens: int, *, reads_own_tokens: bool) -> Sequence[Portion]:
    """Portions of at most `max_tokens` tokens together, most expected tokens per lag token first.

    With `reads_own_tokens` (the drafter does not propose in this step) a request whose lag is gone also has this step's tokens
    read; they count, but a request is never left with only those missing.

    >>> rows = [Candidate("a", 10, 6, 1, 100), Candidate("b", 0, 40, 1, 100)]
    >>> [tuple(portion) for portion in plan_catch_up(rows, 20, reads_own_tokens=True)]
    [('a', 10, 16, True), ('b', 0, 13, False)]
    """
    portions = []
    left = max_tokens
    for row in sorted(candidates, key=_lag_per_expected_token):
        own = row.own_tokens if reads_own_tokens else 0
        if left <= 0:
            break
        tokens = min(row.lag_tokens, left)
        is_whole = tokens == row.lag_tokens
        left -= tokens + (own if is_whole else 0)
        portions.append(Portion(row.request_id, row.valid_tokens, row.valid_tokens + tokens, is_whole and own > 0))
    return portions


def _lag_per_expected_token(row: Candidate) -> tuple[float, str]:
    return row.lag_tokens / row.expected_tokens, row.request_id
