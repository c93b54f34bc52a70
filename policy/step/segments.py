"""Exploration segments inside one engine: which one asks for a K now, and how many clean steps it still wants.

The policy sends its open segments again with each settings until it has heard that they finished, so a segment is
known by its id: it runs once, keeps its progress and its deadline when it is sent again, and never starts over.
Fails quiet: a segment whose batch never comes is dropped at its deadline, and the plan's K ran all the while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nightjar.policy.wire.settings import ExplorationSegment

REMEMBERED_IDS: Final = 1024
"""Closed segments that are remembered: many times what one settings can hold, so none in flight can be forgotten."""


@dataclass(slots=True)
class _Open:
    segment: ExplorationSegment
    expires_s: float
    clean_steps_left: int


class Segments:
    """The open segments of one policy incarnation, in the order the policy gave them."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._closed_ids: dict[int, None] = {}
        self.finished_segment_id = 0

    def replace(self, segments: Iterable[ExplorationSegment], now_s: float) -> None:
        """Take the policy's present list: known segments go on, closed ones stay closed, missing ones are dropped."""
        known = {entry.segment.segment_id: entry for entry in self._open}
        self._open = [
            known.get(segment.segment_id) or _Open(segment, now_s + segment.time_to_live_s, segment.clean_steps)
            for segment in segments
            if segment.segment_id not in self._closed_ids
        ]

    def at(self, decode_batch_size: int, now_s: float) -> ExplorationSegment | None:
        """The first open segment whose range holds `decode_batch_size`. Closes those past their deadline."""
        if not self._open:
            return None
        for expired in [entry for entry in self._open if entry.expires_s <= now_s]:
            self._close(expired)
        entry = self._find(decode_batch_size)
        return entry.segment if entry else None

    def count(self, decode_batch_size: int, num_speculative_tokens: int, *, has_prefill: bool = False) -> None:
        """Count one clean step, or one with prefill, for the segment that asked for it; the last one closes and finishes it."""
        if not self._open:
            return
        entry = self._find(decode_batch_size)
        if entry is None or entry.segment.num_speculative_tokens != num_speculative_tokens:
            return
        if has_prefill and not entry.segment.beside_prefill:
            return
        entry.clean_steps_left -= 1
        if entry.clean_steps_left == 0:
            self.finished_segment_id = max(self.finished_segment_id, entry.segment.segment_id)
            self._close(entry)

    def _find(self, decode_batch_size: int) -> _Open | None:
        for entry in self._open:
            if entry.segment.first_batch_size <= decode_batch_size <= entry.segment.last_batch_size:
                return entry
        return None

    def _close(self, entry: _Open) -> None:
        self._open.remove(entry)
        self._closed_ids[entry.segment.segment_id] = None
        if len(self._closed_ids) > REMEMBERED_IDS:
            del self._closed_ids[next(iter(self._closed_ids))]
