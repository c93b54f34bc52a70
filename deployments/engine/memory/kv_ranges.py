"""Which bytes of the KV cache a range of blocks is, in any layout, from the views' own addresses and strides.

One byte too many is another request's KV, silently zeroed. So nothing is taken from vLLM's layout names: a view's runs are
computed, joined where they touch, and cut to whole pages inwards. A layout that interleaves layers or heads costs bytes (small
runs hold few whole pages), never correctness; where not one page is whole, nothing is released.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nightjar.deployments.engine.memory.interface import KVCache, Layers, OffloadUnsupportedError


class ByteRange(NamedTuple):
    """Addresses of this process or device, the end exclusive."""

    start: int
    end: int


def block_bytes(kv_cache: KVCache, first_block: int, last_block_exclusive: int, layers: Layers) -> list[ByteRange]:
    """The bytes of the blocks in the range, disjoint and in order; views of the same bytes count once.

    Refuses blocks that requests may own, and the draft's share of memory that it does not have to itself.
    """
    lowest = 0 if layers == "draft" else kv_cache.num_base_blocks
    if not lowest <= first_block <= last_block_exclusive <= kv_cache.num_blocks:
        raise ValueError(
            f"blocks {first_block} to {last_block_exclusive} of {layers} layers: outside {lowest} to {kv_cache.num_blocks}"
        )
    draft = {name: view for name, view in kv_cache.layers.items() if name in kv_cache.draft_layers}
    target = {name: view for name, view in kv_cache.layers.items() if name not in kv_cache.draft_layers}
    chosen = {"all": kv_cache.layers, "target": target, "draft": draft}[layers]
    found = _blocks_of(chosen, kv_cache.num_blocks, first_block, last_block_exclusive)
    if layers == "draft" and overlap(found, _blocks_of(target, kv_cache.num_blocks, 0, kv_cache.num_blocks)):
        raise OffloadUnsupportedError("the draft's layers share their KV memory with the target's (vLLM overlays cache groups)")
    return found


def whole_pages(ranges: Iterable[ByteRange], page_bytes: int) -> list[ByteRange]:
    """Each range cut inwards to page boundaries; ranges that hold no whole page are left out.

    >>> whole_pages([ByteRange(4000, 12300), ByteRange(20000, 21000)], 4096)
    [ByteRange(start=4096, end=12288)]
    """
    cut = (ByteRange(-(-start // page_bytes) * page_bytes, end // page_bytes * page_bytes) for start, end in ranges)
    return [pages for pages in cut if pages.start < pages.end]


def joined(ranges: Iterable[ByteRange]) -> list[ByteRange]:
    """The same bytes as disjoint ranges in order, with those that touch or overlap made one.

    >>> joined([ByteRange(8, 12), ByteRange(0, 4), ByteRange(4, 9)])
    [ByteRange(start=0, end=12)]
    """
    result: list[ByteRange] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1].end:
            result[-1] = ByteRange(result[-1].start, max(end, result[-1].end))
        else:
            result.append(ByteRange(start, end))
    return result


def overlap(ranges: Sequence[ByteRange], others: Sequence[ByteRange]) -> bool:
    """Whether any byte is in both; each argument disjoint and in order.

    >>> overlap([ByteRange(0, 4)], [ByteRange(4, 8)]), overlap([ByteRange(0, 5)], [ByteRange(4, 8)])
    (False, True)
    """
    by_start = sorted([*((a, False) for a in ranges), *((b, True) for b in others)])
    end_of = {False: 0, True: 0}
    for (start, end), is_other in by_start:
        if start < end_of[not is_other]:
            return True
        end_of[is_other] = end
    return False


def cut(ranges: Iterable[ByteRange], most_bytes: int) -> Iterator[ByteRange]:
    """The same bytes in ranges of at most so many.

    >>> list(cut([ByteRange(0, 10)], 4))
    [ByteRange(start=0, end=4), ByteRange(start=4, end=8), ByteRange(start=8, end=10)]
    """
    for start, end in ranges:
        for first in range(start, end, most_bytes):
            yield ByteRange(first, min(first + most_bytes, end))


def num_bytes(ranges: Iterable[ByteRange]) -> int:
    """Length of all ranges together."""
    return sum(end - start for start, end in ranges)


def _blocks_of(layers: Mapping[str, Any], num_blocks: int, first_block: int, last_block_exclusive: int) -> list[ByteRange]:
    runs: list[ByteRange] = []
    for name, view in layers.items():
        rows_per_block, odd = divmod(view.shape[0], num_blocks)
        if odd or not rows_per_block:
            raise OffloadUnsupportedError(f"{name}: {view.shape[0]} rows are no multiple of {num_blocks} blocks")
        runs += _runs(view[first_block * rows_per_block : last_block_exclusive * rows_per_block])
    return joined(runs)


def _runs(view: Any) -> list[ByteRange]:
    """The contiguous runs of a strided tensor: dimensions are joined from the innermost while no gap parts them."""
    if not view.numel():
        return []
    length = view.element_size()
    starts = [view.data_ptr()]
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        step = stride * view.element_size()
        if step == length and len(starts) == 1:
            length *= size
        elif size > 1:
            starts = [start + index * step for index in range(size) for start in starts]
    return [ByteRange(start, start + length) for start in starts]
