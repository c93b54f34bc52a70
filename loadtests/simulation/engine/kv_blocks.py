"""The block pool of a simulated engine: how many KV blocks are held, and how many may be.

Blocks have no identity here, only counts; what is held plus what is free is always what the pool has (SIM-3). The pool grows by
the extra blocks while the draft is offloaded. While it contracts, requests that run may still use the borrowed
blocks but nothing new is admitted to them, so that it drains.
Fails closed: taking more than the pool has, or giving back more than is held, raises BlocksLostError.
"""

from __future__ import annotations


class BlocksLostError(RuntimeError):
    """Blocks were taken that do not exist, or given back that were not held: a defect of the simulator."""


class BlockPool:
    """Counts of KV blocks."""

    def __init__(self, num_blocks: int, extra_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.held = 0
        self.num_blocks = num_blocks
        """Blocks that the pool always has."""
        self._extra_blocks = extra_blocks
        self.size = num_blocks
        """Blocks that requests which run may hold."""
        self.admission_size = num_blocks
        """Blocks up to which new requests are admitted."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens.

        >>> pool = BlockPool(10, 0, block_size=16)
        >>> pool.blocks_for(0), pool.blocks_for(16), pool.blocks_for(17)
        (0, 1, 2)
        """
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """Hold `blocks` more. Raises BlocksLostError where the pool does not have them."""
        self.held += blocks
        if blocks < 0 or self.held > self.size:
            raise BlocksLostError(f"{blocks} blocks taken, {self.held} of {self.size} would be held")

    def give(self, blocks: int) -> None:
        """Hold `blocks` fewer. Raises BlocksLostError where fewer are held."""
        self.held -= blocks
        if blocks < 0 or self.held < 0:
            raise BlocksLostError(f"{blocks} blocks given back, {self.held + blocks} were held")

    def grow(self) -> None:
        """Hand out the extra blocks: the draft has left."""
        self.size = self.admission_size = self.num_blocks + self._extra_blocks

    def begin_contraction(self) -> None:
        """Admit nothing new to the extra blocks."""
        self.admission_size = self.num_blocks

    def try_contract(self) -> bool:
        """Withdraw the extra blocks if what is held fits without them; what lies in them is relocated."""
        if self.held > self.num_blocks:
            return False
        self.size = self.admission_size = self.num_blocks
        return True
