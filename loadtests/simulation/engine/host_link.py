"""The link between host and accelerators of one node, shared by the transfers of all its replicas.

Draft weights leave and come back over it, so replicas of a node that reload together wait for each other: with n transfers
under way each gets an n-th of the bandwidth. Replicas' clocks differ by up to a step; the link's own clock never goes back, and a
transfer that begins before it begins at it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way."""

    bytes_left: float
    finished_s: float | None = None


class HostLink:
    """Processor sharing of one bandwidth."""

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
