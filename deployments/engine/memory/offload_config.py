"""What scheduler and workers must agree on before the first block is counted: whether the draft may be offloaded, and its sizes.

They live in different processes and never meet, so both read the same two facts: what arguments.py wrote into vLLM's
`additional_config`, and the KV cache specs. The workers plan for base and borrowable blocks together; the scheduler finds the base
again from their sum (kv_sizing.py). Fails closed: no such entry, no offload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nightjar.deployments.engine.memory.additional_config import DRAFT_WEIGHT_BYTES, told, with_told
from nightjar.deployments.engine.memory.kv_sizing import base_blocks, borrowable_blocks

DRAFT_LAYER_PREFIX: Final = "draft_model."
"""vLLM 0.32, DraftModelProposer._get_model: the prefix of the draft's layers, and so of their KV."""


@dataclass(frozen=True, slots=True)
class OffloadConfig:
    """An engine whose draft may leave the accelerator."""

    draft_weight_bytes: int
    """Of one rank, as loaded."""

    def to_additional_config(self, users: Mapping[str, Any] | None) -> dict[str, Any]:
        """The user's `additional_config` with ours in it."""
        return with_told(users, draft_weight_bytes=self.draft_weight_bytes)

    def base_blocks_of(self, kv_cache_config: Any) -> int:
        """Blocks that fit beside the loaded draft, of those that the workers planned for."""
        sizes = BlockBytes.of(layers_of(kv_cache_config))
        return base_blocks(
            kv_cache_config.num_blocks,
            draft_weight_bytes=self.draft_weight_bytes,
            target_block_bytes=sizes.target,
            draft_block_bytes=sizes.draft,
        )

    def moved_bytes(self, kv_cache_config: Any) -> int:
        """Bytes that one move frees and takes on a rank: weights, the draft's KV of the base, the target's of what is lent."""
        sizes, base = BlockBytes.of(layers_of(kv_cache_config)), self.base_blocks_of(kv_cache_config)
        lent_blocks: int = kv_cache_config.num_blocks - base
        return self.draft_weight_bytes + base * sizes.draft + lent_blocks * sizes.target

    def planned_bytes(self, available_bytes: int, sizes: BlockBytes) -> int:
        """Bytes of KV cache to plan for, base and borrowable blocks together, where `available_bytes` hold the base."""
        base = available_bytes // sizes.total
        borrowable = borrowable_blocks(
            base, draft_weight_bytes=self.draft_weight_bytes, target_block_bytes=sizes.target, draft_block_bytes=sizes.draft
        )
        return (base + borrowable) * sizes.total

    @classmethod
    def of(cls, vllm_config: Any) -> OffloadConfig | None:
        """What the engine was started with; None where its draft stays."""
        weight_bytes = told(vllm_config, DRAFT_WEIGHT_BYTES)
        return None if weight_bytes is None else cls(weight_bytes)


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Bytes of one KV block, over all layers of one rank."""

    target: int
    draft: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.target + self.draft

    @classmethod
    def of(cls, layers: Iterable[tuple[str, int]]) -> BlockBytes:
        """Sum up (layer name, bytes of its page of one block).

        >>> BlockBytes.of([("model.layers.0.attn", 8), ("model.layers.1.attn", 8), ("draft_model.layers.0.attn", 4)])
        BlockBytes(target=16, draft=4)
        """
        target = draft = 0
        for name, num_bytes in layers:
            if name.startswith(DRAFT_LAYER_PREFIX):
                draft += num_bytes
            else:
                target += num_bytes
        return cls(target, draft)


def layers_of(kv_cache_config: Any) -> list[tuple[str, int]]:
    """(layer name, bytes of its page of one block) of an engine with one KV cache group (vLLM 0.32, KVCacheConfig)."""
    (group,) = kv_cache_config.kv_cache_groups
    of_each = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return [(name, (group.kv_cache_spec if of_each is None else of_each[name]).page_size_bytes) for name in group.layer_names]
