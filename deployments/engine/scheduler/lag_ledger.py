"""Which tokens the draft model has in its KV cache, request by request and block by block: what a restart must recompute.

While the drafter sleeps the target goes on and the draft's KV falls behind. What is missing must be known exactly: drafting on it
gives drafts that are thrown away, recomputing what is there wastes the restart. A request's valid tokens are a prefix of its
context, because a token's draft KV is right only if all before it is. Blocks outlive their requests in the prefix cache, so each
block keeps a count of its own, written when its owner lets go of it and whenever another request may find it there. A block that
is handed out anew needs no reset while its owner runs, since the owner writes it before anyone reads it; those of requests that
enter are cleared first, because another may find them in the very same step.

Costs a step nothing while all rows are in sync, or all are behind. Fails towards recomputing: a count may be too low, never too
high. A wrong one would cost acceptance, not correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Lag(NamedTuple):
    """A request that is behind: positions `valid_tokens` to `known_tokens` of its context are to be recomputed."""

    request_id: str
    valid_tokens: int
    known_tokens: int
    """Tokens whose target KV is computed and whose ids the scheduler knows (under async scheduling the newest may be neither)."""

    @property
    def tokens(self) -> int:
        """Tokens to recompute."""
        return self.known_tokens - self.valid_tokens


class LagLedger:
    """The draft's valid tokens in an engine with one KV cache group of `num_blocks` blocks of `block_size` tokens.

    `blocks` gives a request's KV blocks (vLLM's, with `block_id`), in order. Requests are vLLM's (`num_computed_tokens`,
    `num_tokens`); every call is made with the counts as before the step that it is about.
    """

    def __init__(self, *, num_blocks: int, block_size: int, blocks: Callable[[str], Sequence[Any]]) -> None:
        self._block_size = block_size
        self._blocks = blocks
        self._valid_in_block = [0] * num_blocks
        self._behind: dict[str, int] = {}
        self._entries: dict[str, _Entry] = {}
        self._rows_may_be_in_sync = True

    @property
    def behind(self) -> Mapping[str, int]:
        """Valid tokens of each request that is not known to be in sync; a few of them may miss nothing."""
        return self._behind

    def knows(self, request_id: str) -> bool:
        """Whether the request has entered and not left."""
        return request_id in self._entries

    def is_behind(self, request: Any) -> bool:
        """Whether any draft KV of the request is missing."""
        valid = self._behind.get(request.request_id)
        return valid is not None and valid < known_tokens(request)

    def lag(self, request: Any) -> Lag | None:
        """What the request misses; None if nothing."""
        valid = self._behind.get(request.request_id)
        known = known_tokens(request)
        return None if valid is None or valid >= known else Lag(request.request_id, valid, known)

    def clear_new_blocks(self, request_id: str, num_computed_tokens: int) -> None:
        """Call before `enter`, for all requests that enter with a step: what their new blocks held of others is gone.

        Its first `num_computed_tokens` are in blocks that it found in the cache, the last of them perhaps in a copy of one. A
        session that goes on is left alone: its blocks are its own.
        """
        if request_id in self._entries:
            return
        first, found = divmod(num_computed_tokens, self._block_size)
        for block in self._blocks(request_id)[first:]:
            self._valid_in_block[block.block_id] = min(self._valid_in_block[block.block_id], found)
            found = 0

    def enter(self, request_id: str, num_computed_tokens: int, running: Iterable[Any]) -> None:
        """A request begins or resumes with `num_computed_tokens` found in the prefix cache, perhaps in blocks of `running` ones.

        One that is known is a session that goes on, cut back to so many of its own tokens (vLLM 0.32, resumable requests).
        """
        if (known := self._entries.get(request_id)) is not None:
            known.full_blocks = min(known.full_blocks, num_computed_tokens // self._block_size)
            known.valid_blocks = min(known.valid_blocks, known.full_blocks)
            if request_id in self._behind or not self._rows_may_be_in_sync:
                self._behind[request_id] = min(self._behind.get(request_id, num_computed_tokens), num_computed_tokens)
            return
        entry = self._entries[request_id] = _Entry(shared_blocks=num_computed_tokens // self._block_size)
        valid = 0
        if num_computed_tokens:
            for request in running:
                if request.request_id != request_id:
                    self._write(request)
            valid = self._valid_prefix(request_id, num_computed_tokens)
            entry.valid_blocks = valid // self._block_size
            entry.full_blocks = entry.shared_blocks
        if valid < num_computed_tokens or not self._rows_may_be_in_sync:
            self._behind[request_id] = valid

    def leave(self, request: Any) -> None:
        """The request is about to give its blocks back: finished, aborted or preempted."""
        self._write(request)
        self._entries.pop(request.request_id, None)
        self._behind.pop(request.request_id, None)

    def copied(self, source_block_id: int, target_block_id: int) -> None:
        """A block's content is copied (copy on write, relocation): what is valid of it goes along."""
        self._valid_in_block[target_block_id] = self._valid_in_block[source_block_id]

    def draft_sleeps(self, running: Iterable[Any]) -> None:
        """The drafter does not run in this step: its rows fall behind from here on."""
        if not self._rows_may_be_in_sync:
            return
        self._rows_may_be_in_sync = False
        for request in running:
            if request.request_id in self._entries:
                self._behind.setdefault(request.request_id, known_tokens(request))

    def draft_runs(self, requests: Mapping[str, Any]) -> None:
        """The drafter reads this step's tokens of all rows: those that miss nothing before them stay in sync, or are again."""
        self._rows_may_be_in_sync = True
        if not self._behind:
            return
        for request_id in [name for name, valid in self._behind.items() if valid >= requests[name].num_computed_tokens]:
            del self._behind[request_id]

    def read_together(
        self, entered: Iterable[tuple[str, int]], requests: Mapping[str, Any], num_scheduled_tokens: Mapping[str, int]
    ) -> None:
        """Call after `draft_runs`: rows of `entered` (with the tokens found in the cache) that stand on blocks which rows in
        sync fill in this very step miss nothing, since the draft reads both at once.

        vLLM hands blocks out as cached as soon as their tokens are scheduled: requests of one cold prompt share it at once.
        """
        waiting = [(request_id, found) for request_id, found in entered if request_id in self._behind]
        if not waiting:
            return
        filled: set[int] = set()
        for request_id, tokens in num_scheduled_tokens.items():
            if request_id not in self._behind:
                blocks = self._blocks(request_id)
                full = min((requests[request_id].num_computed_tokens + tokens) // self._block_size, len(blocks))
                filled.update(block.block_id for block in blocks[:full])
        for request_id, found in waiting:
            full = found // self._block_size
            prefix = [block.block_id for block in self._blocks(request_id)[:full]]
            counts, size = self._valid_in_block, self._block_size
            if found == full * size and all(block_id in filled or counts[block_id] == size for block_id in prefix):
                del self._behind[request_id]

    def recomputed(self, request_id: str, valid_tokens: int) -> None:
        """The draft has read the request's tokens up to `valid_tokens` once this step is done."""
        self._behind[request_id] = valid_tokens

    def forget(self) -> None:
        """The draft's KV is gone with its weights: nothing is valid any more, in any block or row."""
        self._rows_may_be_in_sync = False
        self._valid_in_block = [0] * len(self._valid_in_block)
        self._behind = dict.fromkeys(self._entries, 0)
        for entry in self._entries.values():
            entry.valid_blocks = 0

    def check_integrity(self, requests: Mapping[str, Any]) -> None:
        """Raise AssertionError where the ledger holds what cannot be."""
        unknown = sorted((self._behind.keys() - self._entries.keys()) | (self._entries.keys() - requests.keys()))
        assert not unknown, f"requests in the ledger that hold no blocks: {unknown}"
        wrong = [block_id for block_id, valid in enumerate(self._valid_in_block) if not 0 <= valid <= self._block_size]
        assert not wrong, f"blocks with impossible counts: {wrong[:10]}"

    def _write(self, request: Any) -> None:
        """Write the counts of the request's full blocks where they changed, and of the block that it fills now.

        A block that it shares with others keeps the higher count: whoever wrote that one had read all before it.
        """
        entry = self._entries.get(request.request_id)
        if entry is None:
            return
        block_size, known = self._block_size, known_tokens(request)
        valid = min(self._behind.get(request.request_id, known), known)
        valid_blocks, full_blocks = valid // block_size, known // block_size
        first = entry.full_blocks if valid_blocks == entry.valid_blocks else min(entry.valid_blocks, entry.full_blocks)
        blocks, counts = self._blocks(request.request_id), self._valid_in_block
        for index in range(first, min(full_blocks + 1, len(blocks))):
            block_id = blocks[index].block_id
            count = min(max(valid - index * block_size, 0), block_size)
            counts[block_id] = max(count, counts[block_id]) if index < entry.shared_blocks else count
        entry.valid_blocks, entry.full_blocks = valid_blocks, full_blocks

    def _valid_prefix(self, request_id: str, num_tokens: int) -> int:
        valid = 0
        for block in self._blocks(request_id):
            found = min(self._valid_in_block[block.block_id], num_tokens - valid)
            valid += found
            if found < self._block_size:
                break
        return valid


@dataclass(slots=True)
class _Entry:
    """What is written of a request's blocks."""

    shared_blocks: int
    valid_blocks: int = 0
    full_blocks: int = 0


def known_tokens(request: Any) -> int:
    """Tokens of the request whose KV the target has computed and whose ids the scheduler knows."""
    return min(request.num_computed_tokens, request.num_tokens)  # type: ignore[no-any-return]
