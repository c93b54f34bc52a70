"""How many KV blocks an engine may promise, so that lending the draft's memory to the target never needs more than there is.

An elastic engine plans base + borrowable blocks (kv_pool.py). With the draft loaded, the base blocks hold the KV of target and
draft; with the draft offloaded, its weights and its layers' KV pages of all base blocks are released, and the same bytes hold
target KV of the borrowable blocks. Bytes are whole-engine bytes of one rank. Fails towards small: everything is rounded down,
and a total that cannot hold a single base block is refused. Whoever releases memory in pages rounds once more.
"""

from __future__ import annotations


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
