"""How much is measured: everything that trades time for certainty, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts of one run. Tokens are per row."""

    off_pairs: int
    off_segment_steps: int
    batches: tuple[int, ...]
    rounds: Mapping[str, int]
    """Rounds of each half of a steady batch; a round is one in-flight batch in which every arm has one segment."""
    slot_tokens: Mapping[int, int]
    """What a slot of a round is long, by batch."""
    loads: int
    """Runs of each arm under the changing load."""
    restart_rounds: int
    """Rounds of restarts; each has one restart per time off and batch."""
    watched_rounds: int
    """Of those, how many also count acceptance afterwards."""
    extra_batch_rounds: int
    """Rounds at the batch that only the simulator's prediction is held against."""


FULL: Final = Effort(
    off_pairs=24,
    off_segment_steps=5,
    batches=(1, 2, 4, 8, 16, 32),
    rounds={"odd": 5, "even": 6},
    slot_tokens={1: 36, 2: 30, 4: 24, 8: 18, 16: 12, 24: 12, 32: 10},
    loads=2,
    restart_rounds=4,
    watched_rounds=2,
    extra_batch_rounds=3,
)
QUICK: Final = Effort(
    off_pairs=12,
    off_segment_steps=3,
    batches=(1, 4, 16, 32),
    rounds={"odd": 2, "even": 3},
    slot_tokens={1: 24, 2: 24, 4: 16, 8: 12, 16: 10, 24: 10, 32: 8},
    loads=1,
    restart_rounds=2,
    watched_rounds=1,
    extra_batch_rounds=1,
)
