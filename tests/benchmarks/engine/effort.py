"""How much is measured: everything that trades time for certainty, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.measuring.repeats import Repeats


@dataclass(frozen=True, slots=True)
class Load:
    """Lengths of a load that changes, in tokens of a request."""

    long_tokens: int
    """Of the requests that are there all the time."""
    burst_at_tokens: int
    """How far those have got when the burst comes."""
    burst_tokens: int
    """Of the requests of the burst."""


@dataclass(frozen=True, slots=True)
class Bursts:
    """How often bursts of long prompts are played, and how large they are."""

    lengths: tuple[int, ...]
    """K that may be the best, 0 among them; one burst does not tell a K from the next, so not all of them."""
    size: int
    """Requests of a burst."""
    count: int
    """Bursts of a run that scores; one that picks has a single burst."""
    saturating: int
    """Requests with which it is measured what off carries."""
    lessons: Repeats
    """Runs of the planner alone before it is scored."""
    rounds: Repeats
    """Those that score: a run of off, the best K above 0 and the planner each. Another one begins where it will be over when the
    seconds have gone by since the section began."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts of one run. Tokens are per row."""

    off_starts: int
    """How often plain, stock and our engines are started; three times each is the first of them once."""
    off_pairs: int
    """Per start and batch."""
    off_segment_steps: int
    batches: tuple[int, ...]
    rounds: Repeats
    """Odd ones of a steady batch, which pick and teach; a round is one in-flight batch in which every arm has one segment."""
    scored_rounds: Repeats
    """Even ones."""
    lessons: Repeats
    """Slots of the planner alone at each batch before it is scored, ended by the first in which it measures nothing."""
    slot_tokens: Mapping[int, int]
    """What a slot of a round is long, by batch."""
    loads: Repeats
    """Rounds of the changing load; only the first has every arm."""
    load: Load
    bursts: Bursts
    restart_batches: tuple[int, ...]
    restart_rounds: int
    """Rounds of restarts, two at least; each has one restart per time off and batch."""
    watched_rounds: int
    """Of those, how many also count acceptance afterwards."""
    move_rounds: int
    """Of those batches, how often a draft leaves and comes back in each."""
    extra_batch_rounds: Repeats
    """Rounds at the batches that only the simulator's prediction is held against."""
    pressure_rounds: Repeats
    """Runs of each engine under KV pressure."""
    pressure_requests: int


FULL: Final = Effort(
    off_starts=3,
    off_pairs=5,
    off_segment_steps=3,
    batches=(1, 4, 8, 16, 32),
    rounds=Repeats(2, 2, 60.0),
    scored_rounds=Repeats(3, 6, 80.0),
    lessons=Repeats(2, 8, 45.0),
    slot_tokens={1: 40, 2: 24, 4: 24, 8: 16, 16: 10, 24: 6, 32: 8},
    loads=Repeats(2, 3, 400.0),
    load=Load(long_tokens=128, burst_at_tokens=32, burst_tokens=32),
    bursts=Bursts(lengths=(0, 1, 3, 5), size=4, count=2, saturating=4, lessons=Repeats(1, 2, 30.0), rounds=Repeats(2, 8, 650.0)),
    restart_batches=(4, 8),
    restart_rounds=6,
    watched_rounds=2,
    move_rounds=3,
    extra_batch_rounds=Repeats(3, 6, 60.0),
    pressure_rounds=Repeats(1, 2, 200.0),
    pressure_requests=48,
)
QUICK: Final = Effort(
    off_starts=1,
    off_pairs=6,
    off_segment_steps=2,
    batches=(1, 4, 16, 32),
    rounds=Repeats(1, 1, 0.0),
    scored_rounds=Repeats(1, 1, 0.0),
    lessons=Repeats(1, 3, 10.0),
    slot_tokens={1: 16, 2: 32, 4: 12, 8: 8, 16: 6, 24: 6, 32: 5},
    loads=Repeats(1, 1, 0.0),
    load=Load(long_tokens=60, burst_at_tokens=15, burst_tokens=10),
    bursts=Bursts(lengths=(0, 5), size=2, count=1, saturating=1, lessons=Repeats(0, 0, 0.0), rounds=Repeats(1, 1, 0.0)),
    restart_batches=(4,),
    restart_rounds=2,
    watched_rounds=1,
    move_rounds=1,
    extra_batch_rounds=Repeats(1, 1, 0.0),
    pressure_rounds=Repeats(1, 1, 0.0),
    pressure_requests=36,
)
