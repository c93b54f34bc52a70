"""How seldom the policy's process looks for reference cycles, so that decisions are not held up.

A decision for 1,000 replicas makes 40,000 records and drops as many old ones, none in a cycle. CPython takes that for garbage
piling up: by its own thresholds it walks young objects a hundred times a decision and the whole fleet in every second one, which
makes a decision half as long again, at worst twice as long. Cycles that Ray, asyncio and tracebacks leave wait a little longer.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""Objects more than were freed, after which young ones are looked through: 2 ms of work, about 10 MB at most."""


def collect_seldom() -> None:
    """Set this process' collector so. What exists by now (modules, mostly) is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
