"""What a simulated engine has summed up since it started."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


def _seconds() -> array[float]:
    return array("d")


def _rows() -> array[int]:
    return array("l")


@dataclass(slots=True)
class EngineTotals:
    """Sums over all steps; they only rise."""

    tokens: int = 0
    """Generated tokens, first tokens included."""
    busy_s: float = 0.0
    steps: int = 0
    decode_steps: int = 0
    """Steps with decode rows."""
    steps_off: int = 0
    """Those of them at K=0."""
    length_sum: int = 0
    """Sum of K over them."""
    restarts: int = 0
    catch_up_tokens: int = 0
    preemptions: int = 0
    offloads: int = 0
    reloads: int = 0
    expected_tokens: float = 0.0
    """What the pure decode steps' K yields on average in the time that they took; only where regret is tracked."""
    best_tokens: float = 0.0
    """What the best K would have yielded in that time. The difference is regret."""
    output_seconds: array[float] = field(default_factory=_seconds)
    """Of each step with decode rows, how long it took: what passed since each of these rows had its last output."""
    output_rows: array[int] = field(default_factory=_rows)
    """Decode rows of the same steps."""
