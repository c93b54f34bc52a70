"""How much of the processors programs that are not ours took meanwhile: what they take is missing in every time that was measured.

Modes run one after the other, so whatever ran beside one of them alone looks like the mode's own doing. What the machine did is
compared with what a tree of processes did (memory.tree), both in processor time. Linux only, and not behind a quota of processors,
where the machine's time says nothing of the container's share: then nothing is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from nightjar.loadtests.demo_needs import machine_facts
from nightjar.loadtests.memory import PROC, stat_fields, tree

MUCH: Final = 0.1
"""Of the machine's processor time: what others took from there on is told."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_BUSY: Final = (0, 1, 2, 5, 6, 7)
"""Of /proc/stat's first line: user, nice, system, interrupts of both kinds, stolen. Idle and waiting for a disk are not."""
_OWN: Final = slice(10, 14)
"""Of stat_fields: user and system time of the process, and of its children that ended."""


class Look(NamedTuple):
    """Processor time until now, in seconds: of the machine, and of the tree."""

    at_s: float
    busy_s: float
    own_s: float


def look(root: int | None = None, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> Look | None:
    """Of this process and all that it started, or of `root`'s tree. None where that cannot be known."""
    facts = machine_facts(proc)
    if facts.cores != os.cpu_count():
        return None
    try:
        machine = [int(word) for word in (proc / "stat").read_text(encoding="ascii").partition("\n")[0].split()[1:]]
        pids = tree(os.getpid() if root is None else root, proc)
    except (OSError, ValueError):
        return None
    busy = sum(ticks for place, ticks in enumerate(machine) if place in _BUSY)
    own = sum(sum(stat_fields(proc / str(pid))[_OWN]) for pid in pids)
    return Look(clock(), busy / _TICKS_PER_S, own / _TICKS_PER_S)


def share_of_others(before: Look | None, after: Look | None, cores: int) -> float | None:
    """What others took between two looks, of all that `cores` processors could give.

    >>> share_of_others(Look(0.0, 100.0, 50.0), Look(10.0, 118.0, 58.0), cores=2)
    0.5
    """
    if before is None or after is None or after.at_s <= before.at_s:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(others_s / (cores * (after.at_s - before.at_s)), 0.0)
