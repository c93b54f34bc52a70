"""Sizes of the elastic KV pool: what is lent never needs more memory than the draft gave up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.engine.memory.offload_config import base_blocks, borrowable_blocks

BYTES = st.integers(1, 1 << 40)
DRAFT_KV_BYTES = st.integers(0, 1 << 40)


@given(base=st.integers(1, 1 << 20), weights=BYTES, target=BYTES, draft=DRAFT_KV_BYTES)
def test_a_grown_pool_fills_the_memory_of_the_draft_and_no_more(base: int, weights: int, target: int, draft: int) -> None:
    lent = borrowable_blocks(base, draft_weight_bytes=weights, target_block_bytes=target, draft_block_bytes=draft)
    with_draft = weights + base * (target + draft)
    assert (base + lent) * target <= with_draft < (base + lent + 1) * target


@given(total=st.integers(1, 1 << 20), weights=st.integers(0, 1 << 40), target=BYTES, draft=DRAFT_KV_BYTES)
def test_the_base_is_the_largest_that_leaves_room_for_what_it_lends(total: int, weights: int, target: int, draft: int) -> None:
    def needed(base: int) -> int:
        return base + borrowable_blocks(base, draft_weight_bytes=weights, target_block_bytes=target, draft_block_bytes=draft)

    try:
        base = base_blocks(total, draft_weight_bytes=weights, target_block_bytes=target, draft_block_bytes=draft)
    except ValueError:
        base = 0
    assert base == 0 or needed(base) <= total
    assert needed(base + 1) > total


def test_a_total_smaller_than_what_the_weights_lend_is_refused() -> None:
    with pytest.raises(ValueError, match="3 KV blocks are fewer"):
        base_blocks(3, draft_weight_bytes=100, target_block_bytes=10, draft_block_bytes=1)
