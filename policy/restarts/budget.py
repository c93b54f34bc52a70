"""How many replicas may restart speculation at the same time, and which.

A restart makes one replica slow for its catch-up. All replicas see the same load fall, so without a budget they all restart
in the same second, and the whole service stutters. Counts a lease until the replica says that it is used up, or until
nobody can be obeying it any more, also where the replica fell silent. Fails closed: no lease, no larger restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nightjar.policy.evidence.robust import LEAST_REPLICAS
from nightjar.policy.restarts.price import Price
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import RestartWish
from nightjar.policy.wire.settings import DELIVERY_S, Lease

TTL_CATCH_UPS: Final = 3.0
"""A lease lives three times as long as its restart should take, and what wish and lease take on their way (DELIVERY_S)."""
LAST_STEP_S: Final = 1.0
"""A step that is under way when a lease ends runs to its end, with what it recomputes. So a replica is told of a time to live that
is shorter by this than the one that is counted (INV-6)."""
AGING_S: Final = 10.0
"""A wish that has waited so long counts twice: nobody waits for ever behind those who gain a little more."""
PROBES_REMEMBERED: Final = 5
FAILURES_TO_FREEZE: Final = 2
FREEZE_S: Final = 300.0
"""Two failed probes among the last five: restarts do not work here now, and every one costs. Time for someone to look."""


def max_leases(settings: OperatorSettings, replicas: int) -> int:
    """Leases that a group of `replicas` may have in flight; one in any case.

    >>> [max_leases(OperatorSettings(max_restart_share=0.2), replicas) for replicas in (1, 9, 10, 64)]
    [1, 1, 2, 12]
    """
    return max(int(settings.max_restart_share * replicas + 1e-9), 1)


@dataclass(frozen=True, slots=True)
class OpenLease:
    """A lease in flight: granted, and perhaps obeyed until `ends_at_s` on the policy's clock."""

    lease: Lease
    replica_id: str
    engine_id: str
    node_id: str
    slowdown: float
    """Share of its replica's capacity that the restart takes."""
    ends_at_s: float


@dataclass(frozen=True, slots=True)
class PricedWish:
    """A wish that would pay, as last heard. `waiting_since_s` is when the replica began to wish."""

    wish: RestartWish
    replica_id: str
    engine_id: str
    node_id: str
    price: Price
    slowdown: float
    waiting_since_s: float

    def rank(self, now_s: float) -> float:
        """Gain per second of catch-up, growing with the time waited."""
        return self.price.gain_per_second * (1.0 + (now_s - self.waiting_since_s) / AGING_S)


def still_open(leases: Iterable[OpenLease], finished: Mapping[str, tuple[str, int]], now_s: float) -> tuple[OpenLease, ...]:
    """The leases that may still be obeyed. `finished` holds engine id and highest finished wish of each replica heard of."""
    return tuple(
        held
        for held in leases
        if now_s < held.ends_at_s
        and not (
            (heard := finished.get(held.replica_id)) is not None and heard[0] == held.engine_id and heard[1] >= held.lease.wish_id
        )
    )


def grant(
    settings: OperatorSettings,
    replicas: int,
    open_leases: Sequence[OpenLease],
    reloads_on_node: Mapping[str, int],
    wishes: Iterable[PricedWish],
    now_s: float,
) -> tuple[OpenLease, ...]:
    """The leases granted now, most gain per second first, so that with `open_leases` the budget is kept (INV-6).

    `replicas` counts the group's live ones, `reloads_on_node` the reloads in flight of all groups. A group without any lease in
    flight gets one whatever its restart takes; a replica has one at a time.
    """
    held = {lease.replica_id for lease in open_leases}
    slowdown = sum(lease.slowdown for lease in open_leases)
    reloads = dict(reloads_on_node)
    granted: list[OpenLease] = []
    for wished in sorted(wishes, key=lambda wished: (-wished.rank(now_s), wished.replica_id)):
        in_flight = len(open_leases) + len(granted)
        if in_flight >= max_leases(settings, replicas):
            break
        if wished.replica_id in held or (wished.wish.reload and reloads.get(wished.node_id, 0) >= settings.max_reloads_per_node):
            continue
        if in_flight and slowdown + wished.slowdown > settings.max_restart_slowdown * replicas + 1e-9:
            continue
        slowdown += wished.slowdown
        held.add(wished.replica_id)
        reloads[wished.node_id] = reloads.get(wished.node_id, 0) + wished.wish.reload
        granted.append(_lease(wished, settings.max_lease_ttl_s, now_s))
    return tuple(granted)


def outlives_any_lease(wish: RestartWish, settings: OperatorSettings) -> bool:
    """Whether its draft's weights took so long to move that a lease would be over, or nearly, before they are back.

    An engine never begins such a reload (policy.step.drafter), so a lease for it would be held in vain, again and again.
    """
    longest_s = max(settings.max_lease_ttl_s - DELIVERY_S, settings.max_lease_ttl_s / 2.0)
    return wish.reload and wish.reload_seconds > longest_s


def reloads_by_node(open_leases: Iterable[OpenLease]) -> dict[str, int]:
    """Reloads in flight on each node."""
    reloads: dict[str, int] = {}
    for held in open_leases:
        if held.lease.reload:
            reloads[held.node_id] = reloads.get(held.node_id, 0) + 1
    return reloads


def _lease(wished: PricedWish, max_ttl_s: float, now_s: float) -> OpenLease:
    counted_s = min(TTL_CATCH_UPS * wished.price.catch_up_seconds + DELIVERY_S, max_ttl_s)
    lease = Lease(wish_id=wished.wish.wish_id, time_to_live_s=counted_s - LAST_STEP_S, reload=wished.wish.reload)
    return OpenLease(lease, wished.replica_id, wished.engine_id, wished.node_id, wished.slowdown, now_s + counted_s)


@dataclass(frozen=True, slots=True)
class Probes:
    """Outcomes of a group's last restarts, oldest first, and until when they freeze it.

    In a group of three or more each replica has one entry, its last, so that no single replica freezes the others (INV-10).
    """

    outcomes: tuple[tuple[str, bool], ...] = ()
    """Replica id and whether its probe failed."""
    frozen_until_s: float = float("-inf")

    def plus(self, replica_id: str, restarts: int, failed: int, replicas: int, now_s: float) -> Probes:
        """With `restarts` more of a replica, `failed` of which failed their probe."""
        new = (
            ((replica_id, failed > 0),)
            if replicas >= LEAST_REPLICAS
            else (
                ((replica_id, False),) * min(max(restarts - failed, 0), PROBES_REMEMBERED)
                + ((replica_id, True),) * min(failed, PROBES_REMEMBERED)
            )
        )
        if not (restarts or failed):
            return self
        others = tuple(entry for entry in self.outcomes if replicas < LEAST_REPLICAS or entry[0] != replica_id)
        outcomes = (*others, *new)[-PROBES_REMEMBERED:]
        if failed and sum(has_failed for _, has_failed in outcomes) >= FAILURES_TO_FREEZE:
            return Probes((), now_s + FREEZE_S)
        return Probes(outcomes, self.frozen_until_s)
