"""Whether two greedy answers are the same: token by token, up to a near tie.

Sums in another order round otherwise, so where the two best tokens are nearly as likely the other may be picked. What follows such
a place is another text and not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

NEAR_TIE: Final = 1e-4
"""Difference of the two best logprobs below which rounding may decide, in float32."""
ROUNDED_NEAR_TIE: Final = 0.3
"""The same in bfloat16: it keeps 8 bits of logits about 20, an eighth apart, each rounded once more on the way (docs/gpu.md)."""


def first_difference(expected: Sequence[T], found: Sequence[T]) -> int | None:
    """Place of the first token that differs, or is missing in one of them; None where all are the same.

    >>> first_difference("abc", "abd"), first_difference("abc", "ab"), first_difference("abc", "abc")
    (2, 2, None)
    """
    same = min(len(expected), len(found))
    place = next((place for place in range(same) if expected[place] != found[place]), same)
    return None if len(expected) == len(found) == place else place
