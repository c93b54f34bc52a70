"""The policy's mailbox: where one call of each replica waits for settings newer than those the replica runs.

Versions and contents are the issuer's (policy/issuer.py); here is only the waiting. Bounded (INV-8): a newer call of a replica
releases the older one, so that at most one call waits per replica.
"""

from __future__ import annotations

import asyncio

from nightjar.policy.issuer import Issuer
from nightjar.policy.wire.settings import IssuedSettings


class Mailbox(Issuer):
    """An issuer whose news wake parked calls. All methods but `collect` are immediate; all run on one event loop."""

    def __init__(self, incarnation: int) -> None:
        super().__init__(incarnation)
        self._parked: dict[str, asyncio.Event] = {}

    async def collect(self, replica_id: str, period_s: float) -> IssuedSettings | None:
        """Settings newer than the replica knows, at once if it was never sent them, else when they exist or after `period_s`.

        None means that what the replica runs is in force. Settings that were sent and yet are unknown (a lost reply, or an
        engine that refuses them) are sent again once a period, never at once: a refusing replica must not spin.
        """
        slot = self.slots[replica_id]
        self._news(replica_id)
        known = slot.known
        call = self._parked[replica_id] = asyncio.Event()
        try:
            if not slot.has_unsent_news:
                async with asyncio.timeout(period_s):
                    await call.wait()
        except TimeoutError:
            pass
        finally:
            if self._parked.get(replica_id) is call:
                del self._parked[replica_id]
        return self.give(replica_id, known) if self.slots.get(replica_id) is slot else None

    def _news(self, replica_id: str) -> None:
        if replica_id in self._parked:
            self._parked[replica_id].set()

    def _gone(self, replica_id: str) -> None:
        self._news(replica_id)
