"""Where a simulated engine's draft weights are: carries out what DrafterLife orders, and tells it when that is done.

Offloading and reloading take as long as the host link needs; the engine steps on meanwhile. The KV pool grows once the weights
have left, and shrinks before they come back: what lies in the borrowed blocks must drain or fit elsewhere, and moving it makes one
step longer.
"""

from __future__ import annotations

from nightjar.loadtests.simulation.engine.engine_totals import EngineTotals
from nightjar.loadtests.simulation.engine.host_link import HostLink, Transfer
from nightjar.loadtests.simulation.engine.kv_blocks import BlockPool
from nightjar.loadtests.simulation.profiles import Drafter
from nightjar.policy.engine.drafter import DrafterLife, MemoryOrder


class DraftMemory:
    """One engine's draft weights."""

    def __init__(self, life: DrafterLife, pool: BlockPool, drafter: Drafter, host_link: HostLink, totals: EngineTotals) -> None:
        self._totals = totals
        self._life = life
        self._pool = pool
        self._drafter = drafter
        self._host_link = host_link
        self._transfer: Transfer | None = None
        self._leaves = False
        self._contracts = False

    def step(self, waiting: int, now_s: float) -> tuple[float, bool]:
        """Before a step: seconds that relocation adds to it, and whether the draft's KV has just been given up."""
        relocation_seconds, gone = 0.0, False
        if self._transfer is not None and self._host_link.finished_s(self._transfer, now_s) is not None:
            gone = self._arrive(now_s)
        if self._contracts and self._pool.try_contract():
            self._contracts = False
            relocation_seconds = self._drafter.relocation_seconds
            self._life.contracted(now_s)
        free_share = max(1.0 - self._pool.held / self._pool.size, 0.0)
        order = self._life.memory_step(free_share, waiting, now_s)
        if order in {MemoryOrder.OFFLOAD, MemoryOrder.RELOAD}:
            self._leaves = order is MemoryOrder.OFFLOAD
            self._transfer = self._host_link.begin(self._drafter.transfer_bytes, now_s)
        elif order is MemoryOrder.CONTRACT:
            self._contracts = True
            self._pool.begin_contraction()
        elif order is MemoryOrder.KEEP_OFFLOADED:
            self._contracts = False
            self._pool.grow()
        return relocation_seconds, gone

    def _arrive(self, now_s: float) -> bool:
        self._transfer = None
        self._life.transfer_done(now_s)
        if self._leaves:
            self._totals.offloads += 1
            self._pool.grow()
        else:
            self._totals.reloads += 1
        return self._leaves
