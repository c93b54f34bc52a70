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
    load_repeats: int
    """How often the load crosses the crossover in a run."""
    restart_rounds: int
    """Rounds of restarts, two at least; each has one restart per time off and batch."""
    watched_rounds: int
    """Of those, how many also count acceptance afterwards."""
    extra_batch_rounds: int
    """Rounds at the batch that only the simulator's prediction is held against."""
    pressure_rounds: int
    """Runs of each engine under KV pressure."""


FULL: Final = Effort(
    off_pairs=15,
    off_segment_steps=3,
    batches=(1, 4, 8, 16, 32),
    rounds={"odd": 2, "even": 2},
    slot_tokens={1: 24, 2: 20, 4: 16, 8: 12, 16: 8, 24: 8, 32: 8},
    loads=2,
    load_repeats=1,
    restart_rounds=4,
    watched_rounds=2,
    extra_batch_rounds=2,
    pressure_rounds=2,
)
"""Sized for a core without AVX-512, where an OFF step takes 0.25 s with one row and 0.9 s with 32."""
QUICK: Final = Effort(
    off_pairs=12,
    off_segment_steps=2,
    batches=(1, 4, 16, 32),
    rounds={"odd": 1, "even": 1},
    slot_tokens={1: 16, 2: 16, 4: 10, 8: 8, 16: 6, 24: 6, 32: 5},
    loads=1,
    load_repeats=1,
    restart_rounds=2,
    watched_rounds=1,
    extra_batch_rounds=1,
    pressure_rounds=1,
)
