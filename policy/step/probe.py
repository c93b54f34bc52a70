"""Whether a drafter that came back agrees with the target as it did before it was switched off.

A draft model that drafts on missing or wrong KV fails in silence: the output stays right, every draft is thrown away and
each step is slower than without speculation. Fails towards off: what cannot be told apart from silence fails the probe.
"""

from __future__ import annotations

from typing import Final

PROBE_EXPECTED_HITS: Final = 32
PROBE_MAX_ROWS: Final = 256
PROBE_SHARE: Final = 0.25
"""A probe watches so many rows that acceptance as before would give 32 accepted first tokens (at most 256 rows), and passes
with a quarter of that. Drafting on missing KV gave 0.07 instead of 0.31 (vLLM 0.32, CPU): at a quarter it fails, while a
change of topic that halves acceptance passes. By chance a probe fails less than once in a million, where acceptance had been
above 0.12; below, less than once in five hundred."""
REFERENCE_ROWS: Final = 4096
"""Rows after which the memory of acceptance before a pause is halved."""


class Probe:
    """Acceptance of the first draft token: what it was while the drafter ran, and what it is since it came back."""

    def __init__(self) -> None:
        self._rows_before = self._hits_before = 0.0
        self._rows = self._hits = 0

    def remember(self, rows: int, hits: int) -> None:
        """Take `rows` that verified a draft while all was well, `hits` of which accepted the first token."""
        self._rows_before += rows
        self._hits_before += hits
        if self._rows_before > REFERENCE_ROWS:
            self._rows_before /= 2.0
            self._hits_before /= 2.0

    def begin(self) -> None:
        """The drafter has just come back."""
        self._rows = self._hits = 0

    def judge(self, rows: int, hits: int) -> bool | None:
        """Whether the probe passed; None while it cannot be told."""
        self._rows += rows
        self._hits += hits
        rows_needed, hits_needed = PROBE_MAX_ROWS, 1.0
        if self._rows_before >= PROBE_EXPECTED_HITS and self._hits_before:
            before = self._hits_before / self._rows_before
            rows_needed = min(max(round(PROBE_EXPECTED_HITS / before), PROBE_EXPECTED_HITS), PROBE_MAX_ROWS)
            hits_needed = PROBE_SHARE * before * rows_needed
        if self._hits >= hits_needed:
            return True
        return False if self._rows >= rows_needed else None
