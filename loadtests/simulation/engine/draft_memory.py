"""Where a simulated engine's draft weights are: carries out what DrafterLife orders, and tells it when that is done.

Offloading and reloading take as long as the host link needs; the engine steps on meanwhile. The KV pool grows once the weights
have left, and shrinks before they come back: what lies in the borrowed blocks must drain or fit elsewhere, and moving it makes one
step longer. Replicas of a node share its host link: with n transfers under way each gets an n-th of the bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from nightjar.loadtests.simulation.engine.kv_blocks import BlockPool
from nightjar.loadtests.simulation.engine.step_account import EngineTotals
from nightjar.loadtests.simulation.profiles import Drafter
from nightjar.policy.step.drafter import DrafterLife, MemoryOrder


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way."""

    bytes_left: float
    finished_s: float | None = None


class HostLink:
    """Processor sharing of one node's bandwidth between host and accelerators.

    Replicas' clocks differ by up to a step; the link's own clock never goes back: a transfer that begins before it begins at it.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._under_way: list[Transfer] = []
        self._now_s = 0.0

    def begin(self, transfer_bytes: float, now_s: float) -> Transfer:
        """Start moving `transfer_bytes` at `now_s`."""
        self._advance(now_s)
        transfer = Transfer(transfer_bytes)
        self._under_way.append(transfer)
        return transfer

    def finished_s(self, transfer: Transfer, now_s: float) -> float | None:
        """When the transfer was done, or None while it is under way at `now_s`."""
        if transfer.finished_s is None:
            self._advance(now_s)
        return transfer.finished_s if transfer.finished_s is not None and transfer.finished_s <= now_s else None

    def _advance(self, now_s: float) -> None:
        while self._under_way and self._now_s < now_s:
            rate = self._bytes_per_s / len(self._under_way)
            first = min(self._under_way, key=lambda transfer: transfer.bytes_left)
            seconds = min(first.bytes_left / rate, now_s - self._now_s)
            self._now_s += seconds
            for transfer in self._under_way:
                transfer.bytes_left -= seconds * rate
            if first.bytes_left <= 1e-6 * rate:
                first.finished_s = self._now_s
                self._under_way.remove(first)
        self._now_s = max(self._now_s, now_s)


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
