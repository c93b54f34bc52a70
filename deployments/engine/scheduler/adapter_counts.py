"""Acceptance by LoRA adapter. A draft model knows no adapters, so an adapter that changes the target's text loses its drafts: an
operator sees here which one does. Kept for the adapters that were seen first, as many as a report holds; engines without
adapters pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nightjar.policy.wire.report import MAX_ADAPTERS, AdapterCounters


class AdapterCounts:
    """Sums over the verified rows of each adapter."""

    def __init__(self) -> None:
        self._adapter_of: dict[str, str] = {}
        self._sums: dict[str, list[int]] = {}

    def add_request(self, request: Any) -> None:
        """Note a request's adapter (vLLM's `lora_request`), if it has one."""
        lora = getattr(request, "lora_request", None)
        if lora is not None:
            self._adapter_of[request.request_id] = str(lora.lora_name)[:256]

    def leave(self, request: Any) -> None:
        """Forget a request that has finished; one that is preempted comes again."""
        if self._adapter_of and request.is_finished():
            self._adapter_of.pop(request.request_id, None)

    def count(
        self, drafts: Mapping[str, Sequence[int]], sampled: Sequence[Sequence[int]], row_of: Mapping[str, int], requests: Any
    ) -> None:
        """Count the rows of a step's output that verified `drafts` and belong to an adapter."""
        if not self._adapter_of:
            return
        for request_id, adapter in self._adapter_of.items():
            num_drafts = len(drafts.get(request_id, ())) if request_id in requests else 0
            num_sampled = len(sampled[row_of[request_id]]) if num_drafts else 0
            if not num_sampled or (adapter not in self._sums and len(self._sums) == MAX_ADAPTERS):
                continue
            sums = self._sums.setdefault(adapter, [0, 0, 0])
            sums[0] += 1
            sums[1] += num_drafts
            sums[2] += num_sampled - 1

    def snapshot(self) -> tuple[AdapterCounters, ...]:
        """What was counted so far, by adapter."""
        return tuple(
            AdapterCounters(adapter=adapter, rows=rows, draft_tokens=drafts, accepted_tokens=accepted)
            for adapter, (rows, drafts, accepted) in sorted(self._sums.items())
        )
