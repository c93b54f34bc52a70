"""A node whose replicas wish for a reload all the time, each under a policy of its own, and the leases in force together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from nightjar.cluster.service.other_versions import ACTOR_NAME_PREFIX, OtherPolicies, OtherVersions
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.checkpoint import KeyValueStore
from tests.cluster.protocol import EPOCH_S, MemoryJournal, running_service
from tests.policy.restarting import RestartingReplica

LEASE_S = 6.0
SETTINGS = {
    "mode": "auto",
    "planner": "fixed",
    "num_speculative_tokens": 3,
    "max_lease_ttl_s": LEASE_S,
    "max_restart_slowdown": 1.0,
    "exchange_period_s": 0.25,
    "decision_period_s": 0.25,
}


@dataclass
class Cluster:
    """Policies by a number each (an actor's is its protocol version), the names of living actors as Ray's control store tells them,
    and the leases that were in force together.
    """

    names: set[str] = field(default_factory=set)
    is_reachable: bool = True
    services: dict[int, PolicyService] = field(default_factory=dict)
    granted: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    most_at_once: int = 0

    async def living(self) -> Sequence[str]:
        if not self.is_reachable:
            raise ConnectionError("no control store")
        await asyncio.sleep(0.1)
        return sorted(self.names)

    def lease_ends(self, number: int, now_s: float) -> list[float]:
        service = self.services.get(number)
        groups = service._controller.state.groups.values() if service is not None else ()
        return [lease.ends_at_s for group in groups for lease in group.restarts.open_leases if now_s < lease.ends_at_s]

    async def watch(self) -> None:
        """Every lease that any policy granted counts until its end, also that of a policy which is gone."""
        open_until: dict[int, float] = {}
        while True:
            now_s = EPOCH_S + asyncio.get_running_loop().time()
            for number in {*self.services, *open_until}:
                ends = self.lease_ends(number, now_s)
                if ends and number not in open_until:
                    self.granted[number].append(now_s - EPOCH_S)
                if ends:
                    open_until[number] = max(ends)
                elif number in self.services or now_s >= open_until.get(number, 0.0):
                    open_until.pop(number, None)
            self.most_at_once = max(self.most_at_once, len(open_until))
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def actor(self, version: int, journal: MemoryJournal | None = None) -> AsyncIterator[PolicyService]:
        """An actor of this version."""
        name = f"{ACTOR_NAME_PREFIX}{version}"
        self.names.add(name)
        async with self.policy(version, OtherVersions(self.living, version), journal=journal) as service:
            try:
                yield service
            finally:
                self.names.discard(name)

    @asynccontextmanager
    async def policy(
        self, number: int, others: OtherPolicies, *, journal: MemoryJournal | None = None, store: KeyValueStore | None = None
    ) -> AsyncIterator[PolicyService]:
        """A policy and one replica of its own on the node, which wants to reload all the time. It ends without a last word."""
        async with running_service(store, journal, other_policies=others) as service:
            await service.configure(SETTINGS)
            self.services[number] = service
            reloading = asyncio.create_task(reload_for_ever(service, f"replica-{number}"))
            try:
                yield service
            finally:
                reloading.cancel()
                with suppress(asyncio.CancelledError):
                    await reloading
                del self.services[number]


async def reload_for_ever(service: PolicyService, replica_id: str) -> None:
    """Report, and wish for the draft's reload whenever it is not back."""
    replica = RestartingReplica(replica_id, node_id="the-node", now_s=asyncio.get_running_loop().time())
    while True:
        replica.run_until(asyncio.get_running_loop().time())
        if not replica.lag:
            replica.fall_behind()
        report = replica.report()
        wish = report.snapshot.restart_wish
        if wish is not None:
            reloading = report.snapshot.model_copy(update={"restart_wish": wish.model_copy(update={"reload": True})})
            report = report.model_copy(update={"snapshot": reloading})
        reply = await service.exchange(report.to_wire())
        if reply.issued is not None:
            replica.adopt(reply.issued)


@asynccontextmanager
async def watched() -> AsyncIterator[Cluster]:
    """A cluster whose leases are counted."""
    cluster = Cluster()
    watching = asyncio.create_task(cluster.watch())
    yield cluster
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
