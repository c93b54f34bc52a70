"""Which cores of a machine its engines are pinned to, so that no two of them share one while others idle.

Serve counts replicas by deployment: the first replica of each application would take the first core. So each engine notes its cores
in its folder (engine_folder.py), and the next one takes those that the fewest live engines hold, whichever application they are of.
Fails open: where nothing can be noted or read, the caller counts by deployment as before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from nightjar.deployments.engine.engine_folder import folders_beside

_LOCK: Final = "nightjar-cores-{user}.lock"
_CORES: Final = "cores.json"

log = structlog.get_logger(__name__)


def least_used(allowed: Sequence[int], used: Counter[int], count: int) -> tuple[int, ...]:
    """`count` of the `allowed` cores, or all where there are fewer: those that the fewest hold, the first of equals.

    >>> least_used((0, 2, 4), Counter({0: 1}), 1), least_used((0, 2, 4), Counter({0: 1, 2: 1, 4: 1}), 2)
    ((2,), (0, 2))
    """
    return tuple(sorted(sorted(allowed, key=lambda core: (used[core], core))[:count]))


def claim_cores(folder: Path, allowed: Sequence[int], count: int) -> tuple[int, ...]:
    """Take `count` cores for the engine of `folder`, for as long as the folder lives. Empty where they cannot be noted."""
    try:
        with _one_at_a_time(folder.parent):
            used = Counter(core for other in folders_beside(folder) for core in _noted(other))
            cores = least_used(allowed, used, count)
            (folder / _CORES).write_text(json.dumps(cores))
    except OSError as error:
        log.warning("cores_not_claimed", folder=str(folder), error=str(error), consequence="cores are counted by deployment")
        return ()
    return cores


def _noted(folder: Path) -> list[int]:
    """The cores of one engine; none where it noted none, or what is no list of cores."""
    try:
        cores = json.loads((folder / _CORES).read_text())
    except (OSError, ValueError):
        return []
    return [core for core in cores if isinstance(core, int)] if isinstance(cores, list) else []


@contextlib.contextmanager
def _one_at_a_time(parent: Path) -> Iterator[None]:
    lock = os.open(parent / _LOCK.format(user=os.getuid()), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
