"""The memory of a draft model that sleeps, behind one interface, so that the worker need not know which device it runs on.

While the draft is offloaded its weights and its layers' KV are bytes that requests could use. An implementation moves the weights
out and back, and returns pages of the KV cache to whom they came from (the operating system, or the GPU's free memory). It
decides nothing: that no step runs the draft in between, and that no request owns a released block, is the caller's promise.

Every move is a `Transfer`, made in parts between the engine's steps, so that no step waits for a whole one. How much of it is done
with a step is the scheduler's order, as a share of its bytes (draft_work.MemoryWork): all ranks do the same in the same step,
whatever their clocks say. A part may be larger than its share by one unit that cannot be cut: on CPU a weight matrix that is
packed, on CUDA one mapping.

Fails open: a draft that cannot be offloaded is loaded all the same, and `why_not` says why in one line. Fails safely: a reload
that breaks off leaves the draft offloaded, never half there, the error reaches the caller, and the rest of the move is not made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal, Protocol

Layers = Literal["all", "target", "draft"]
"""Whose KV: "draft" may go from any block, while the target still uses it; the others only from blocks that no request owns.

An offloaded draft lends the target blocks of which it has no share itself: `release_kv(0, base, "draft")`, then
`restore_kv(base, end, "target")`; and back: `release_kv(base, end, "target")`, then `restore_kv(0, base, "draft")`.
"""


class OffloadUnsupportedError(RuntimeError):
    """This draft, layout or platform cannot give its memory back; the message says why."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """The KV cache as vLLM allocated it: one view per layer, whose first dimension counts blocks."""

    layers: Mapping[str, Any]
    """Tensors by layer name. A block of the scheduler may be several rows of a view (vLLM's kernel blocks)."""
    draft_layers: frozenset[str]
    num_blocks: int
    """In the scheduler's count, withheld ones too."""
    num_base_blocks: int
    """Blocks from this one on may be released whole; below it only the draft's share of a block."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes to move, and the moving: each `next` of `units` moves some and says how many."""

    num_bytes: int
    """Of all units together, about."""
    units: Iterator[int]

    def finish(self) -> int:
        """Move all of it at once; the bytes moved."""
        return sum(self.units)


NO_TRANSFER: Final = Transfer(0, iter(()))


class DraftMemory(Protocol):
    """A draft model's memory on one device. Not thread-safe: every call, and each unit of a transfer, comes between two steps.

    Transfers of one move follow each other, and are abandoned only where one raises. An implementation is derived from this.
    """

    why_not: str
    """Why `offloading` would raise; empty where it works. Known once the model is loaded."""
    is_offloaded: bool
    """The model cannot run now: from the moment that it begins to leave until all of it is back."""
    weight_bytes: int
    """Of this rank's weights as loaded, shared ones counted once."""

    def load_model(self, vllm_config: Any, *, prefix: str = "", load_config: Any = None) -> Any:
        """Load the draft as vLLM's `get_model` does, once, and remember what a later offload needs."""
        ...

    def making_room(self) -> AbstractContextManager[None]:
        """Surrounds vLLM's allocation of the KV cache, base and lent blocks together, up to the release of the lent ones."""
        ...

    def bind_kv_cache(self, kv_cache: KVCache) -> None:
        """Take note of the KV cache, before any block of it is used. Its content is zeros afterwards, as before."""
        ...

    def begin_move(self) -> None:
        """Whatever the device was given so far may use what the transfers made from now on take away; nothing later does."""
        ...

    def offloading(self) -> Transfer:
        """Give the weights' memory back. Nothing to move where that was done; raises `OffloadUnsupportedError`."""
        ...

    def reloading(self) -> Transfer:
        """Bring the weights back, bit for bit. Nothing to move where they are there. One that raises leaves none of them."""
        ...

    def releasing_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:
        """Give back the memory of a range of blocks, whose content is lost.

        Only memory that lies whole inside the range goes, so the bytes may be fewer than the blocks' own.
        """
        ...

    def restoring_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:
        """Make a range of blocks usable again, as zeros; the bytes are those that have to be taken at once."""
        ...

    def offload(self) -> int:
        """As `offloading`, all of it now; the bytes of weights. What the device gets back is no less, on CPU about twice that."""
        num_bytes = 0 if self.is_offloaded else self.weight_bytes
        self.begin_move()
        self.offloading().finish()
        return num_bytes

    def reload(self) -> int:
        """As `reloading`, all of it now; the bytes of weights."""
        num_bytes = self.weight_bytes if self.is_offloaded else 0
        self.begin_move()
        self.reloading().finish()
        return num_bytes

    def release_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> int:
        """As `releasing_kv`, all of it now; the bytes."""
        self.begin_move()
        return self.releasing_kv(first_block, last_block_exclusive, layers).finish()

    def restore_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> int:
        """As `restoring_kv`, all of it now; the bytes."""
        self.begin_move()
        return self.restoring_kv(first_block, last_block_exclusive, layers).finish()


PART_BYTES: Final = 16 << 20
"""Bytes that one step moves: 0.7 ms of a PCIe 4.0 x16 link, and about 20 ms of reading and packing on one CPU core."""
MAX_PARTS: Final = 64
"""Of one move, whose parts are larger where its bytes ask for more: a move must end within a lease, and large drafts have slow
steps beside them."""


def parts_of(num_bytes: int) -> int:
    """Into how many parts a move of so many bytes of each rank's memory is cut.

    >>> parts_of(1), parts_of(100 << 20), parts_of(100 << 30)
    (1, 7, 64)
    """
    return min(max(-(-num_bytes // PART_BYTES), 1), MAX_PARTS)


class DraftMove:
    """One move under way. Its transfers follow each other."""

    def __init__(self, transfers: Sequence[Transfer]) -> None:
        self._num_bytes = sum(transfer.num_bytes for transfer in transfers)
        self._units = chain.from_iterable(transfer.units for transfer in transfers)
        self.moved_bytes = 0
        self.seconds = 0.0
        """Of the steps' time that went into it."""

    def go_on(self, share: float) -> None:
        """Move on until so much of all bytes is moved, between 0 and 1; with 1 everything."""
        began_s = time.perf_counter()
        while share >= 1.0 or self.moved_bytes < share * self._num_bytes:
            unit_bytes = next(self._units, None)
            if unit_bytes is None:
                break
            self.moved_bytes += unit_bytes
        self.seconds += time.perf_counter() - began_s
