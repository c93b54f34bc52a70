"""A group's restarts, once per decision: prices what its replicas wish, grants leases, and says what each may do without one.

Holds together the price (policy.restarts.price), the expected ON time (policy.restarts.on_time) and the budget
(policy.restarts.budget). Pure: the same reports at the same times give the same leases. Fails towards off: while a new policy
cannot know what its predecessor granted, while probes fail, and where nothing says that a restart pays, nobody is given a lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Final

from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts, merge_catch_up
from nightjar.policy.evidence.robust import LEAST_STEPS
from nightjar.policy.evidence.step_time import STARTING_STEP_SECONDS
from nightjar.policy.restarts.budget import OpenLease, PricedWish, Probes, grant, outlives_any_lease, still_open
from nightjar.policy.restarts.on_time import LoadState, LoadTracker, TransitionCounts, Values
from nightjar.policy.restarts.price import Engine, chunk_tokens, micro_restart_tokens, price
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range, buckets_up_to
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import LONGEST_STEP_SECONDS
from nightjar.policy.wire.report import RestartWish
from nightjar.policy.wire.settings import Lease, RestartLimits
from nightjar.policy.wire.switch_cost import SWITCH_COST_BATCHES, SWITCH_COST_LAGS, SwitchCostRow

FIRST_STEP_SHARE: Final = 0.3
"""The first drafting step after a restart verifies nothing; it takes so much longer than an OFF step (three to five draft
tokens of 0.05 to 0.1 each)."""
ORDERED_GAIN_SHARE: Final = 0.2
"""Where a person or a static plan says K, speculation counts as worth a fifth of OFF, whatever was measured."""


@dataclass(frozen=True, slots=True)
class Restarter:
    """One live replica of the group as it reported itself."""

    engine_id: str
    node_id: str
    decode_batch_size: int
    finished_wish_id: int
    wish: RestartWish | None
    is_steered: bool
    """Whether a plan or a pin runs it: in mode auto or pin, and not served plainly."""
    is_ordered: bool
    """Whether a person, not the group's evidence, says that it speculates."""
    new: NewRestarts
    own: PlanGoodput | None = None
    """What it expects for itself where that is not what its group does, if it has a wish."""
    is_silent: bool = False
    """Whether it was not heard for so long that a lease for its wish would be over, or nearly, before anybody could use it."""


@dataclass(frozen=True, slots=True)
class PlanGoodput:
    """What the group's plan and evidence say, by batch bucket.

    Goodput is predicted generated tokens a second, None where nothing is known.
    """

    accelerator: str
    max_num_seqs: int
    planned: tuple[int, ...]
    """K that the plan runs."""
    planned_goodput: tuple[float | None, ...]
    off_goodput: tuple[float | None, ...]
    is_local: bool
    """Whether the engines plan for themselves: then they restart at their own will, as their planner was published."""


@dataclass(frozen=True, slots=True)
class GroupRestarts:
    """What a group remembers of its restarts."""

    catch_up: CatchUpEvidence = field(default_factory=CatchUpEvidence)
    transitions: TransitionCounts = field(default_factory=TransitionCounts)
    tracker: LoadTracker = field(default_factory=LoadTracker)
    probes: Probes = field(default_factory=Probes)
    open_leases: tuple[OpenLease, ...] = ()
    waiting_since_s: Mapping[str, float] = field(default_factory=dict)


def decide_restarts(
    known: GroupRestarts,
    members: Mapping[str, Restarter],
    plan_goodput: PlanGoodput,
    settings: OperatorSettings,
    reloads_on_node: Mapping[str, int],
    why_none: Code | None,
    now_s: float,
) -> tuple[GroupRestarts, dict[str, RestartLimits], frozenset[str]]:
    """The group's restarts afterwards, every member's limits, and the members whose `new.catch_up` is used up.

    `reloads_on_node` counts the reloads in flight of all groups; `why_none` says why nothing may be granted now, None where it
    may.
    """
    catch_up, used = _priced(known.catch_up, members, plan_goodput)
    tracker, moved = known.tracker.look({name: member.decode_batch_size for name, member in members.items()}, now_s)
    transitions = known.transitions.plus(moved, now_s)
    probes = known.probes
    for name, member in members.items():
        probes = probes.plus(name, member.new.restarts, member.new.failed_probes, len(members), now_s)
    finished = {name: (member.engine_id, member.finished_wish_id) for name, member in members.items()}
    open_leases = still_open(known.open_leases, finished, now_s)
    holding = {held.replica_id for held in open_leases}
    waiting_since_s = {
        name: known.waiting_since_s.get(name, now_s)
        for name, member in members.items()
        if member.wish is not None and member.is_steered and name not in holding
    }
    prices = _Prices(plan_goodput, catch_up, transitions, settings)
    states = {name: tracker.state(name, batch_bucket(member.decode_batch_size)) for name, member in members.items()}
    frozen = now_s < probes.frozen_until_s
    wishes = {
        name: prices.of(members[name]).wish(name, members[name], states[name], since_s) for name, since_s in waiting_since_s.items()
    }
    if why_none is None and not frozen:
        paying = [
            wished
            for name, wished in wishes.items()
            if wished is not None and not members[name].is_silent and not outlives_any_lease(wished.wish, settings)
        ]
        open_leases += grant(settings, len(members), open_leases, reloads_on_node, paying, now_s)
    after = GroupRestarts(catch_up, transitions, tracker, probes, open_leases, waiting_since_s)
    leases = {held.replica_id: held for held in open_leases}
    limits = {}
    for name, member in members.items():
        held = leases.get(name)
        mine = (held.lease,) if held is not None and held.engine_id == member.engine_id else ()
        causes: tuple[Code, ...] = ()
        if mine:
            causes = (Code.LEASE_HELD,)
        elif name in wishes:
            causes = _why_waiting(wishes[name], settings, why_none, frozen)
        micro, chunk = prices.bounds(member, states[name])
        limits[name] = _limits(0 if frozen else micro, chunk, mine, causes)
    return after, limits, used


def switch_costs(catch_up: CatchUpEvidence, plan_goodput: PlanGoodput, settings: OperatorSettings) -> tuple[SwitchCostRow, ...]:
    """The paper's C_switch of this group: engine seconds that a restart takes in all, in the chunks of its engines, where every row
    of a batch misses so many tokens. Empty before a restart was measured.
    """
    if catch_up.steps < LEAST_STEPS:
        return ()
    engines = _bucket_values(plan_goodput, catch_up, settings.catch_up_slowdown).engines
    batches = sorted({min(batch, plan_goodput.max_num_seqs) for batch in SWITCH_COST_BATCHES})
    sized = [(batch, replace(engines[batch_bucket(batch)], decode_rows=batch)) for batch in batches]
    return tuple(
        (lag, batch, float(f"{min(engine.lost_seconds(lag * batch), LONGEST_STEP_SECONDS):.4g}"))
        for lag in SWITCH_COST_LAGS
        for batch, engine in sized
    )


@lru_cache(maxsize=512)
def _limits(
    micro_restart_tokens: int, catch_up_chunk_tokens: int, leases: tuple[Lease, ...], causes: tuple[Code, ...]
) -> RestartLimits:
    """Shared by replicas and decisions: most say the same as last time."""
    return RestartLimits(
        micro_restart_tokens=micro_restart_tokens,
        catch_up_chunk_tokens=catch_up_chunk_tokens,
        leases=leases,
        causes=tuple(map(because, causes)),
    )


def _why_waiting(wished: PricedWish | None, settings: OperatorSettings, why_none: Code | None, frozen: bool) -> tuple[Code, ...]:
    if frozen:
        return (Code.PROBES_FAILED,)
    if wished is None:
        return (Code.DOES_NOT_PAY,)
    if outlives_any_lease(wished.wish, settings):
        return (Code.RELOAD_TOO_LONG,)
    return (Code.WAITS_FOR_LEASE,) if why_none is None else (Code.WAITS_FOR_LEASE, why_none)


@dataclass(frozen=True, slots=True)
class _BucketValues:
    """What an engine is worth in each bucket, ON and OFF. Never changed in place."""

    engines: tuple[Engine, ...]
    """With a full bucket."""
    gains: Mapping[int, float]
    """Tokens a second that speculation adds, where it adds any."""
    ordered_gains: Mapping[int, float]
    """The same where somebody ordered it."""
    lag_costs: Mapping[int, float]
    """Tokens that one second at OFF costs afterwards, because what it generates is recomputed; or what a plan loses."""


@lru_cache(maxsize=128)
def _bucket_values(plan_goodput: PlanGoodput, catch_up: CatchUpEvidence, catch_up_slowdown: float) -> _BucketValues:
    """Cached until the next re-plan: a group decides more often than it re-plans. An entry is 8 KB, and old ones stay until newer
    ones take their place: a larger cache grows for an hour in a fleet of one group. Above 128 groups each decision computes."""
    off = _off_goodputs(plan_goodput)
    engines, gains, ordered_gains, lag_costs = [], {}, {}, {}
    for bucket in buckets_up_to(plan_goodput.max_num_seqs):
        first, last = bucket_range(bucket, plan_goodput.max_num_seqs)
        middle = (first + last) / 2.0
        step_s = middle / off[bucket] if off else STARTING_STEP_SECONDS
        cost = catch_up.cost(step_s, plan_goodput.accelerator)
        engine = Engine(step_s, middle / step_s, last, cost, chunk_tokens(step_s, cost, last, catch_up_slowdown))
        engines.append(engine)
        ordered = ORDERED_GAIN_SHARE * engine.off_tokens_per_s
        lag_costs[bucket] = engine.chunk_seconds / engine.chunk_tokens * engine.off_tokens_per_s**2
        gain = 0.0
        if plan_goodput.planned[bucket]:
            before, after = plan_goodput.off_goodput[bucket], plan_goodput.planned_goodput[bucket]
            gain = ordered if before is None or after is None else after - before
            lag_costs[bucket] = -gain
        if gain > 0.0:
            gains[bucket] = gain
        ordered_gains[bucket] = max(gain, ordered)
    return _BucketValues(tuple(engines), gains, ordered_gains, lag_costs)


class _Prices:
    """The group's prices in one decision; computed once for all replicas that share one."""

    def __init__(
        self, plan_goodput: PlanGoodput, catch_up: CatchUpEvidence, transitions: TransitionCounts, settings: OperatorSettings
    ) -> None:
        self._plan_goodput = plan_goodput
        self._catch_up = catch_up
        self._settings = settings
        self._bucket_values = _bucket_values(plan_goodput, catch_up, settings.catch_up_slowdown)
        self._moves = transitions
        self._bounds: dict[tuple[LoadState, bool], tuple[int, int]] = {}

    def of(self, member: Restarter) -> _Prices:
        """The prices by its own estimate, where it has one."""
        return self if member.own is None else _Prices(member.own, self._catch_up, self._moves, self._settings)

    @cached_property
    def _values(self) -> Values:
        return self._moves.value_tokens(self._bucket_values.gains, self._bucket_values.lag_costs)

    @cached_property
    def _ordered_values(self) -> Values:
        return self._moves.value_tokens(self._bucket_values.ordered_gains, self._bucket_values.lag_costs)

    def wish(self, name: str, member: Restarter, state: LoadState, waiting_since_s: float) -> PricedWish | None:
        """The wish with its price; None where it would not pay."""
        assert member.wish is not None
        ordered = member.is_ordered or self._plan_goodput.is_local
        engine = replace(self._bucket_values.engines[state.bucket], decode_rows=max(member.decode_batch_size, 1))
        priced = price(
            engine,
            member.wish.lag_tokens,
            (self._ordered_values if ordered else self._values).get(state, 0.0),
            (self._bucket_values.ordered_gains if ordered else self._bucket_values.gains).get(state.bucket, 0.0),
            FIRST_STEP_SHARE * engine.off_step_seconds,
            member.wish.reload_seconds if member.wish.reload else 0.0,
        )
        if not (priced.pays or ordered):
            return None
        return PricedWish(
            member.wish, name, member.engine_id, member.node_id, priced, engine.slowdown(member.wish.lag_tokens), waiting_since_s
        )

    def bounds(self, member: Restarter, state: LoadState) -> tuple[int, int]:
        """`micro_restart_tokens` and `catch_up_chunk_tokens` of a replica, by the state where it would restart."""
        ordered = member.is_ordered or self._plan_goodput.is_local
        found = self._bounds.get((state, ordered))
        if found is None:
            found = self._bounds[state, ordered] = self._bounds_of(state, ordered)
        return found

    def _bounds_of(self, state: LoadState, ordered: bool) -> tuple[int, int]:
        values = self._ordered_values if ordered else self._values
        if values and state not in values:
            buckets = sorted({known.bucket for known in values})
            below = [other for other in buckets if other < state.bucket]
            state = LoadState(below[-1], is_falling=True) if below else LoadState(buckets[0], is_falling=False)
        engine = self._bucket_values.engines[state.bucket]
        first_step_s = FIRST_STEP_SHARE * engine.off_step_seconds
        return micro_restart_tokens(engine, values.get(state, float("inf")), first_step_s), engine.chunk_tokens


def _priced(
    known: CatchUpEvidence, members: Mapping[str, Restarter], plan_goodput: PlanGoodput
) -> tuple[CatchUpEvidence, frozenset[str]]:
    news = {name: member.new.catch_up for name, member in members.items() if member.new.catch_up.steps}
    if not news:
        return known, frozenset()
    return merge_catch_up(known, news, len(members), known.cost(_typical_off_step(plan_goodput), plan_goodput.accelerator))


def _typical_off_step(plan_goodput: PlanGoodput) -> float:
    """Seconds of an OFF step in the fullest bucket that is known: catching up costs the same in all of them."""
    for bucket in reversed(buckets_up_to(plan_goodput.max_num_seqs)):
        if goodput := plan_goodput.off_goodput[bucket]:
            return sum(bucket_range(bucket, plan_goodput.max_num_seqs)) / 2.0 / goodput
    return STARTING_STEP_SECONDS


def _off_goodputs(plan_goodput: PlanGoodput) -> dict[int, float]:
    """Generated tokens per second of OFF by bucket; an unknown one steps as fast as the nearest known. Empty if none is."""
    buckets = buckets_up_to(plan_goodput.max_num_seqs)
    known = {bucket: goodput for bucket in buckets if (goodput := plan_goodput.off_goodput[bucket])}
    if not known or len(known) == len(buckets):
        return known
    rows = {bucket: sum(bucket_range(bucket, plan_goodput.max_num_seqs)) for bucket in buckets}
    nearest = {bucket: min(known, key=lambda other: (abs(other - bucket), other)) for bucket in buckets}
    return {bucket: known[nearest[bucket]] * rows[bucket] / rows[nearest[bucket]] for bucket in buckets}
