"""Which faults come in which order, drawn from a seed: the same seed, the same schedule.

Pure. How a fault is brought about is faults.py.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FaultKind(StrEnum):
    """Everything that may go wrong."""

    POLICY_KILLED = "policy actor killed"
    CONTROLLER_KILLED = "Serve's controller killed"
    REPLICA_KILLED = "replica killed"
    NODE_KILLED = "node killed"
    POLICY_STOPPED = "policy actor stopped and continued"
    REPLICA_STOPPED = "replica stopped and continued"
    DELAYED = "messages delayed"
    DROPPED = "messages dropped"
    DOUBLED = "messages doubled"
    PARTITION = "partition in mid restart"
    UPDATED = "application updated"
    FLOODED = "policy actor flooded"
    DISK_FULL = "disk full"
    CLOCK_STEPPED = "wall clock stepped"


ENDS_A_MEASURED_PROCESS: Final = frozenset(
    {
        FaultKind.POLICY_KILLED,
        FaultKind.REPLICA_KILLED,
        FaultKind.NODE_KILLED,
        FaultKind.UPDATED,
        FaultKind.CLOCK_STEPPED,  # an actor reads the clock when it starts
    }
)
"""Those after which the policy actor or a replica is another process."""
LEAST_GAP_S: Final = 0.5
MOST_GAP_S: Final = 2.0
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the `number`-th of its schedule, after `gap_s` seconds in which all is well.

    `pick`, 0 to 1, chooses which replica or node is hit. `share` of the messages is touched by a fault of the network; the clock
    steps by `clock_step_s`.
    """

    number: int
    kind: FaultKind
    gap_s: float
    pick: float
    share: float
    clock_step_s: float


def schedule(seed: int, kinds: Collection[FaultKind] = tuple(FaultKind)) -> tuple[Fault, ...]:
    """Each of `kinds` once, in an order drawn from the seed."""
    rng = random.Random(seed)
    order = sorted(kinds)
    rng.shuffle(order)
    return tuple(_draw(rng, number, kind) for number, kind in enumerate(order, start=1))


def _draw(rng: random.Random, number: int, kind: FaultKind) -> Fault:
    return Fault(
        number=number,
        kind=kind,
        gap_s=rng.uniform(LEAST_GAP_S, MOST_GAP_S),
        pick=rng.random(),
        share=rng.uniform(0.4, 0.7),
        clock_step_s=rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 24.0) * HOUR_S,
    )
