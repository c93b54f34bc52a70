"""Whether every draft of a step is written to a block of its own request: asked before the step runs.

A drafter with KV of its own writes past the last token that the target computes, and vLLM reserves blocks for that (0.32,
VllmConfig.num_lookahead_tokens). A draft past them would go to the block that an earlier request left in the row of the block
table: another request's, or one of the prefix cache. So the scheduler, which knows the blocks and the drafts, compares them in
every step whose drafter runs. It reads counts that the scheduler holds and waits for no device. The step loop fails open on a
breach: the step drafts nothing, and the engine runs its own K from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nightjar.deployments.drafter_kinds import kind_of


class DraftSlots:
    """The block tables of an engine, and how far its drafter writes.

    `tables` are the blocks of each request and the tokens of a block, for each KV cache group whose blocks stand in the order of
    positions. `own_slots` are slots that the drafter's first forward takes after the step's tokens: 1 for a separate draft model, 0
    for a head (0.32, SpeculativeConfig.max_num_new_slots_for_drafting). Each draft after the first takes another. `block_slots` are
    those of a drafter whose one forward drafts its maximum at every K alike, 0 for any other. `max_model_len` bounds the positions:
    vLLM writes a draft past it to the last position or into the last block, or nowhere.
    """

    def __init__(
        self,
        tables: Iterable[tuple[Mapping[str, Sequence[Any]], int]],
        *,
        own_slots: int,
        max_model_len: int,
        block_slots: int = 0,
    ) -> None:
        self._tables = tuple((blocks, block_tokens, defaultdict[str, int](int)) for blocks, block_tokens in tables)
        """With the tokens that each request's blocks held when last looked at: until it leaves they only become more."""
        self._own_slots = own_slots
        self._block_slots = block_slots
        self._max_model_len = max_model_len

    @classmethod
    def of(cls, config: Any, managers: Iterable[Any]) -> DraftSlots | None:
        """Of vLLM's configuration and its managers of the KV cache groups; None for a drafter that has no KV (ngram)."""
        if not config.num_lookahead_tokens:
            return None
        drafts_a_block = kind_of(config.speculative_config.method).drafts_a_block
        return cls(
            ((manager.req_to_blocks, manager.block_size) for manager in managers if _is_by_position(manager)),
            own_slots=config.speculative_config.max_num_new_slots_for_drafting,
            max_model_len=config.model_config.max_model_len,
            block_slots=config.num_lookahead_tokens if drafts_a_block else 0,
        )

    def breach(self, scheduler_output: Any, num_speculative_tokens: int) -> str:
        """What is wrong where drafts of the step at this K would be written past their request's blocks; empty where none would.

        Under async scheduling a request's computed tokens count drafts that may be rejected yet: the drafter writes no further.
        """
        past_step = self._block_slots or self._own_slots + (num_speculative_tokens or 1) - 1
        if not past_step:
            return ""  # every write is at a token that the target computes, too
        scheduled, cached = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_cached_reqs
        rows: Iterable[tuple[str, int]] = zip(cached.req_ids, cached.num_computed_tokens)  # noqa: B905 - both of one loop of vLLM's
        if scheduler_output.scheduled_new_reqs or len(self._tables) > 1:
            rows = [*rows, *((new.req_id, new.num_computed_tokens) for new in scheduler_output.scheduled_new_reqs)]
        most = max(scheduled.values()) + past_step
        for blocks, block_tokens, slots in self._tables:
            # This runs for every row of every step: it reads vLLM's lists, not its requests, and blocks only where it has to.
            for request_id, computed in rows:
                if slots[request_id] < computed + most:
                    held = slots[request_id] = len(blocks[request_id]) * block_tokens
                    if held < computed + most and held < min(computed + scheduled[request_id] + past_step, self._max_model_len):
                        return (
                            f"request {request_id}: at K = {num_speculative_tokens} its drafter writes "
                            f"{computed + scheduled[request_id] + past_step} tokens, and its blocks hold {held}: vLLM reserved "
                            "fewer slots than it writes, report this with the version of vLLM"
                        )
        return ""

    def leave(self, request_id: str) -> None:
        """The request gives its blocks back: it has finished, or is preempted and comes again with others."""
        for _, _, slots in self._tables:
            slots.pop(request_id, None)


def _is_by_position(manager: Any) -> bool:
    """Whether the manager gives a request one block for each so many positions, look-ahead included, as attention's managers do.

    Those of recurrent states, of a ring of blocks and of cross-attention give other counts (0.32,
    v1/core/single_type_kv_cache_manager.py): drafts of theirs are not checked.
    """
    from vllm.v1.core.single_type_kv_cache_manager import CrossAttentionManager, SingleTypeKVCacheManager

    if isinstance(manager, CrossAttentionManager):
        return False
    return all(
        getattr(type(manager), name) is getattr(SingleTypeKVCacheManager, name)
        for name in ("allocate_new_blocks", "get_num_blocks_to_allocate")
    )
