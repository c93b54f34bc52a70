"""Whether processes grow: the resident memory of each in the last third of a run, over that in the middle third.

Pure. The first third is left out, because caches fill then and processes are replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

MOST_GROWTH: Final = 1.05
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of one process at a time, in seconds since the middle third began."""

    process: str
    at_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one process: mean resident memory in the middle and in the last third."""

    process: str
    middle_bytes: float
    last_bytes: float

    @property
    def ratio(self) -> float:
        """Last over middle."""
        return self.last_bytes / self.middle_bytes


def growth(samples: Iterable[Sample], third_s: float) -> tuple[Growth, ...]:
    """Of each process, by name. Raises ValueError for one that was not there in both thirds."""
    middle: dict[str, list[int]] = defaultdict(list)
    last: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        (middle if sample.at_s < third_s else last)[sample.process].append(sample.resident_bytes)
    if odd := sorted(middle.keys() ^ last.keys()):
        raise ValueError(f"{', '.join(odd)}: seen in one third alone, so nothing can be said of growth")
    return tuple(Growth(name, fmean(middle[name]), fmean(last[name])) for name in sorted(middle))
