"""How seldom the policy's process looks for reference cycles, so that decisions are not held up by it.

A decision for 1,000 replicas makes 40,000 records and drops as many old ones, none of them in a cycle. CPython takes that for
garbage piling up: by its own thresholds it walks the young ones a hundred times a decision, and the whole fleet in most of them
(`make bench-scale ARGS=--often` shows what that costs). Cycles that Ray, asyncio and tracebacks leave are found later: as before by
how many objects are new, but of many more.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""Net new objects after which young ones are looked through. A pass takes 2 ms."""


def collect_seldom() -> None:
    """Set this process' collector so. What exists by now (modules, mostly) is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
