"""Moves of a draft's memory, cut into parts that lie between the engine's steps, so that no step waits for a whole one.

A transfer is an iterator: each `next` moves some bytes and says how many. How much of a move is done with a step is the scheduler's
order, as a share of its bytes (draft_work.MemoryWork): all ranks do the same in the same step, whatever their clocks say. A part
may be larger than its share by one unit that cannot be cut: on CPU a weight matrix that is packed, on CUDA one mapping. Fails by
what a transfer raises; the transfer has put back what it can by then, and the rest of the move is not made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Final

from nightjar.deployments.engine.memory.interface import DraftMemory, Layers, Moved, Transfer

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


class WholeMoves:
    """For an implementation of `DraftMemory`: its moves made at once, where no engine runs beside."""

    def offload(self: DraftMemory) -> Moved:
        """Give the weights' memory back. Does nothing where that was done; raises `OffloadUnsupportedError`."""
        began_s, was_there = time.perf_counter(), not self.is_offloaded
        self.begin_move()
        self.offloading().finish()
        return Moved(self.weight_bytes if was_there else 0, time.perf_counter() - began_s)

    def reload(self: DraftMemory) -> Moved:
        """Bring the weights back, bit for bit. Does nothing where they are there."""
        began_s, was_away = time.perf_counter(), self.is_offloaded
        self.begin_move()
        self.reloading().finish()
        return Moved(self.weight_bytes if was_away else 0, time.perf_counter() - began_s)

    def release_kv(self: DraftMemory, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> int:
        """Give back the memory of a range of blocks; returns the bytes."""
        self.begin_move()
        return self.releasing_kv(first_block, last_block_exclusive, layers).finish()

    def restore_kv(self: DraftMemory, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> int:
        """Make a range of blocks usable again, as zeros; returns the bytes that had to be taken at once."""
        self.begin_move()
        return self.restoring_kv(first_block, last_block_exclusive, layers).finish()
