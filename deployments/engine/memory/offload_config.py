"""What scheduler and workers must agree on before the first block is counted: whether the draft may be offloaded, and its sizes.

They live in different processes and never meet, so both read the same facts: what arguments.py wrote into vLLM's
`additional_config`, which reaches all of its processes, and the KV cache specs. The workers plan for base and borrowable blocks
together; the scheduler finds the base again from their sum. With the draft loaded, the base blocks hold the KV of target and
draft; with the draft offloaded, its weights and its layers' KV pages of all base blocks are released, and the same bytes hold
target KV of the borrowable blocks. Bytes are whole-engine bytes of one rank.

Fails closed: no entry, no offload. Fails towards small: everything is rounded down, and a total that cannot hold a single base
block is refused. Whoever releases memory in pages rounds once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec


ENTRY: Final = "nightjar"
DRAFT_WEIGHT_BYTES: Final = "draft_weight_bytes"
USERS_TABLE: Final = "users_table"
"""vLLM's rows of K by batch size as the user has them, where the table that vLLM is given names graph tiers beside."""
DRAFT_LAYER_PREFIX: Final = "draft_model."
"""vLLM 0.32, DraftModelProposer._get_model: the prefix of the draft's layers, and so of their KV."""


def with_entry(users: Mapping[str, Any] | None, **ours: object) -> dict[str, Any]:
    """The user's `additional_config` with ours in it, beside what stands there of ours.

    >>> with_entry({"theirs": 1, "nightjar": {"users_table": [[1, 8, 3]]}}, draft_weight_bytes=8)
    {'theirs': 1, 'nightjar': {'users_table': [[1, 8, 3]], 'draft_weight_bytes': 8}}
    """
    users = users or {}
    return {**users, ENTRY: {**users.get(ENTRY, {}), **ours}}


def entry_of(vllm_config: Any) -> Mapping[str, Any]:
    """Ours of the configuration that an engine was started with; empty where there is none."""
    return (getattr(vllm_config, "additional_config", None) or {}).get(ENTRY) or {}


def borrowable_blocks(base_blocks: int, *, draft_weight_bytes: int, target_block_bytes: int, draft_block_bytes: int) -> int:
    """Blocks of target KV that fit into what the draft's weights and its KV of `base_blocks` blocks hold.

    >>> borrowable_blocks(1000, draft_weight_bytes=1 << 30, target_block_bytes=2 << 20, draft_block_bytes=1 << 17)
    574
    >>> borrowable_blocks(10, draft_weight_bytes=5, target_block_bytes=4, draft_block_bytes=1)
    3
    """
    return (draft_weight_bytes + base_blocks * draft_block_bytes) // target_block_bytes


def base_blocks(total_blocks: int, *, draft_weight_bytes: int, target_block_bytes: int, draft_block_bytes: int) -> int:
    """The most base blocks that leave room for their borrowable ones among `total_blocks`.

    With t, d and W the three sizes, `floor((W + base * d) / t) <= total - base` says the same as
    `base * (t + d) < t * (total + 1) - W`. Raises ValueError where not even one base block is left.

    >>> base_blocks(1574, draft_weight_bytes=1 << 30, target_block_bytes=2 << 20, draft_block_bytes=1 << 17)
    1000
    >>> base_blocks(13, draft_weight_bytes=5, target_block_bytes=4, draft_block_bytes=1)
    10
    """
    blocks = (target_block_bytes * (total_blocks + 1) - draft_weight_bytes - 1) // (target_block_bytes + draft_block_bytes)
    if blocks < 1:
        raise ValueError(f"{total_blocks} KV blocks are fewer than a draft of {draft_weight_bytes} bytes would lend")
    return blocks


@dataclass(frozen=True, slots=True)
class OffloadConfig:
    """An engine whose draft may leave the accelerator."""

    draft_weight_bytes: int
    """Of one rank, as loaded."""

    def to_additional_config(self, users: Mapping[str, Any] | None) -> dict[str, Any]:
        """The user's `additional_config` with ours in it."""
        return with_entry(users, draft_weight_bytes=self.draft_weight_bytes)

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
        weight_bytes = entry_of(vllm_config).get(DRAFT_WEIGHT_BYTES)
        return None if weight_bytes is None else cls(int(weight_bytes))


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


def why_not_followed(groups: Sequence[KVCacheGroupSpec]) -> str:
    """Why no ledger of the draft's tokens can be kept of these groups' blocks; empty where one can.

    It takes one group of layers, whose blocks stay until their request leaves. For any other cache the drafter is kept in sync as
    vLLM does it, and its memory stays. Raises ImportError where vLLM's names moved.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, UniformTypeKVCacheSpecs

    # Exactly these: vLLM derives others from them that give blocks back while their request runs (R-SWA).
    keeps_every_block = {FullAttentionSpec, MLAAttentionSpec}
    if len(groups) != 1:
        return f"the engine has {len(groups)} KV cache groups, not one"
    spec = groups[0].kv_cache_spec
    of_layers = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else (spec,)
    others = sorted({type(each).__name__ for each in of_layers if type(each) not in keeps_every_block})
    return f"the KV cache is not full attention's ({', '.join(others)})" if others else ""
