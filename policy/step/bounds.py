"""What disposes of a plan's proposal before the engine runs it: bounds and dwell, the same for every planner.

Pure functions around a planner's K ("policy proposes, guard disposes"), so each one is a property that a test can state.
Fails towards off: K = 0 is always among the allowed lengths and falling never waits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def allowed_lengths(wished: Sequence[int], max_num_speculative_tokens: int) -> tuple[int, ...]:
    """The K that may run, ascending: those wished that the engine can do, and 0 (off is always allowed).

    >>> allowed_lengths((5, 1, 9), 5)
    (0, 1, 5)
    """
    return tuple(sorted({0, *(length for length in wished if length <= max_num_speculative_tokens)}))


def bound(num_speculative_tokens: int, allowed: Sequence[int]) -> int:
    """The highest allowed K that is not above the proposal. `allowed` ascends from 0, as `allowed_lengths` gives it.

    >>> bound(4, (0, 1, 3, 5)), bound(9, (0, 1, 3, 5)), bound(0, (0, 1))
    (3, 5, 0)
    """
    return allowed[bisect_right(allowed, num_speculative_tokens) - 1]


def hold(proposed: int, current: int, held_steps: int, dwell_steps: int) -> int:
    """K after dwell: a rise waits until `current` has been held for `dwell_steps` steps, a fall happens at once.

    >>> hold(5, 0, held_steps=3, dwell_steps=4), hold(5, 0, held_steps=4, dwell_steps=4), hold(0, 5, held_steps=1, dwell_steps=4)
    (0, 5, 0)
    """
    return current if proposed > current and held_steps < dwell_steps else proposed
