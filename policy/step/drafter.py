"""The life of one draft model, step by step: when it runs, when it catches up, when it leaves the accelerator (docs/restarts.md).

Stands between the K that the plan proposes and the K that a step runs. A drafter that was off misses the KV of what the target
has read meanwhile (its lag); before it drafts again it recomputes that in bounded chunks. A small restart draws on a local
allowance, any larger one waits for a lease, so that replicas which all see the same load fall do not all stutter in the same
second. Turning off is free and never waits. Fails towards off: without fresh settings, allowance or live lease the drafter
stays dormant, and one that no longer agrees with the target after catching up goes back there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from nightjar.policy.step.probe import Probe
from nightjar.policy.wire.report import DrafterState, RestartWish
from nightjar.policy.wire.settings import Lease, OffloadRules, Settings

UNLIMITED: Final = 1 << 52
"""`micro_restart_tokens` under which every restart is free to begin."""
ALLOWANCE_REFILL_S: Final = 10.0
"""Time in which a spent allowance is whole again: micro-restarts recompute at most so many tokens in so long a time, however
often the plan changes its mind."""
MAX_CHUNK_TOKENS: Final = 2048
"""Tokens that one step recomputes at most, whatever settings say: the usual `max_num_batched_tokens` of an engine."""
REMEMBERED_WISHES: Final = 256
"""Wishes whose time is kept: two minutes of them at two reports a second. A lease for an older one is not used."""
FIRST_HOLD_S: Final = 30.0
MAX_HOLD_S: Final = 480.0
"""Time without restarts after a failed probe, catch-up or reload, doubled with each failure in a row. The first is also that of a
batch bucket where speculation measured worse than off (guard.py)."""


class Order(NamedTuple):
    """What the next step does."""

    num_speculative_tokens: int = 0
    catch_up_tokens: int = 0
    """Draft tokens to recompute in this step, at most; 0: none."""


class MemoryOrder(Enum):
    """What the engine's memory shall begin to do now; each is given once."""

    NONE = "none"
    OFFLOAD = "offload"
    """Move the draft's weights to host memory and hand its room to the KV pool; then `transfer_done`."""
    CONTRACT = "contract"
    """Shrink the KV pool to what it was; then `contracted`."""
    RELOAD = "reload"
    """Move the weights back; then `transfer_done`."""
    KEEP_OFFLOADED = "keep_offloaded"
    """Give up the contraction: hand the blocks out again."""


OFF: Final = Order()
RUNS: Final = frozenset({DrafterState.ACTIVE, DrafterState.PROBING, DrafterState.CATCHING_UP})
_ACTIVE: Final = DrafterState.ACTIVE
_CATCHING_UP: Final = DrafterState.CATCHING_UP
_DORMANT: Final = DrafterState.DORMANT
_IN_SYNC: Final = DrafterState.IN_SYNC
"""For what is asked before every step: a member is looked up on its class by code in Python (3.11), ten times as slowly."""

TRANSITIONS: Final[Mapping[DrafterState, frozenset[DrafterState]]] = {
    # nothing is missing; a lag and an allowance or lease; memory is short for long
    DrafterState.DORMANT: frozenset({DrafterState.ACTIVE, DrafterState.CATCHING_UP, DrafterState.OFFLOADED}),
    # the plan says 0, or a catch-up beside it broke off
    DrafterState.ACTIVE: frozenset({DrafterState.DORMANT}),
    # the lag is gone; the plan says 0, the lease ended, the allowance is spent or the pass broke off; nobody steers any more
    DrafterState.CATCHING_UP: frozenset({DrafterState.PROBING, DrafterState.DORMANT, DrafterState.ACTIVE}),
    # acceptance is as before (or nobody steers any more); it is not, or the plan says 0
    DrafterState.PROBING: frozenset({DrafterState.ACTIVE, DrafterState.DORMANT}),
    # a lease for a reload, and room for the pool to shrink
    DrafterState.OFFLOADED: frozenset({DrafterState.CONTRACTING}),
    # the pool has shrunk; the plan says 0 or the lease will not do
    DrafterState.CONTRACTING: frozenset({DrafterState.RELOADING, DrafterState.OFFLOADED}),
    # the weights are back, and all of the KV is missing; they could not be brought back
    DrafterState.RELOADING: frozenset({DrafterState.DORMANT, DrafterState.OFFLOADED}),
    DrafterState.IN_SYNC: frozenset(),
    DrafterState.ABSENT: frozenset(),
}
"""Every change of state there is, and what it takes. The diagram in docs/restarts.md is of these."""


class DrafterLife:
    """One drafter's state and what it may do next. Clocks are seconds of any one steady clock.

    `catch_up_chunk_tokens` is the most that one step recomputes (None: everything at once, to show why chunks exist); settings
    may lower it. `first_wish_id` should differ from engine to engine (report.RestartWish says why).
    """

    def __init__(
        self, *, can_be_dormant: bool, catch_up_chunk_tokens: int | None = MAX_CHUNK_TOKENS, first_wish_id: int = 1
    ) -> None:
        self.state = DrafterState.ACTIVE if can_be_dormant else DrafterState.IN_SYNC
        self.restarts = 0
        self.micro_restarts = 0
        self.probes = 0
        self.failed_probes = 0
        self.finished_wish_id = 0
        self._own_chunk_tokens = self._chunk_tokens = catch_up_chunk_tokens
        self._allowance = _Allowance()
        self._heard_s: float | None = None
        self._max_age_s = 0.0
        self._offload: OffloadRules | None = None
        self._proposed = 0
        self._is_steered = True
        self._can_draft = True
        self._next_wish_id = first_wish_id
        self._wished_s: dict[int, float] = {}
        self._lease: Lease | None = None
        self._lease_ends_s = 0.0
        self._catches_up_leased = False
        self._probe = Probe()
        self._hold_until_s = float("-inf")
        self._held_because = ""
        self._next_hold_s = FIRST_HOLD_S
        self._pressure_since_s: float | None = None
        self._free_share = 1.0
        self._moving_since_s: float | None = None
        self._has_contracted = False
        self._reload_seconds = 0.0

    @property
    def is_leased(self) -> bool:
        """Whether a restart under a lease is under way."""
        if self.state is DrafterState.CATCHING_UP:
            return self._catches_up_leased
        return self.state in {DrafterState.CONTRACTING, DrafterState.RELOADING}

    def reason(self, now_s: float) -> str:
        """Why the drafter does not run though the plan wants it to, in words; empty where it runs or nobody wants it to."""
        if not self._proposed or self.state not in {DrafterState.DORMANT, DrafterState.OFFLOADED}:
            return ""
        if now_s < self._hold_until_s:
            return f"{self._held_because}: no other for {self._hold_until_s - now_s:.0f} s"
        if not self._is_steered:
            return "nobody steers: waits for room to come back"
        if not self._is_fresh(now_s):
            return "restarts wait for the policy, which was not heard"
        if self.state is DrafterState.DORMANT and not self._can_draft:
            return "its requests have generated too little yet to be worth catching up"
        return "waits for a lease to restart"

    def adopt(self, settings: Settings, now_s: float) -> None:
        """Take allowances and leases from settings that the step loop took into force.

        A lease lives until its end, even where later settings no longer name it: a new policy does not know it.
        """
        limits = settings.restarts
        self._heard_s, self._max_age_s = now_s, settings.settings_max_age_s
        self._allowance.tokens = limits.micro_restart_tokens
        self._offload = settings.offload
        if self._own_chunk_tokens is not None and limits.catch_up_chunk_tokens is not None:
            self._chunk_tokens = min(self._own_chunk_tokens, limits.catch_up_chunk_tokens)
        else:
            self._chunk_tokens = self._own_chunk_tokens
        for lease in sorted(limits.leases, key=lambda lease: lease.wish_id):
            wished_s = self._wished_s.get(lease.wish_id)
            if wished_s is None or (self._lease is not None and lease.wish_id < self._lease.wish_id):
                continue
            self._lease, self._lease_ends_s = lease, wished_s + lease.time_to_live_s
        self._has_live_lease(now_s)

    def confirm(self, now_s: float) -> None:
        """Restart the age of the settings: the policy said that they still hold."""
        if self._heard_s is not None:
            self._heard_s = now_s

    def before_step(self, proposed: int, lag_tokens: int, now_s: float, *, later_tokens: int = 0, can_draft: bool = True) -> Order:
        """What the step about to run does, where the plan proposes K = `proposed` and `lag_tokens` of its rows are missing.

        `later_tokens` are missing of rows that are not worth catching up yet: a restart needs permission for those as well, since
        they are caught up later without any. `can_draft` is False where no row would be drafted for with `lag_tokens` recomputed.
        """
        if self.state is _IN_SYNC:
            return Order(proposed)
        self._proposed, self._is_steered = proposed, True
        self._can_draft = can_draft or lag_tokens > 0
        if proposed == 0:
            if self.state in RUNS:
                self._become(_DORMANT)
            return OFF
        if self.state is _DORMANT and now_s >= self._hold_until_s and self._can_draft:
            self._begin(lag_tokens, later_tokens, now_s)
        if self.state is _CATCHING_UP:
            return self._catch_up(proposed, lag_tokens, now_s)
        if self.state in RUNS:
            return Order(proposed, self._chunk(lag_tokens) if lag_tokens else 0)
        return OFF

    def sleep(self, proposed: int) -> Order:
        """The step sleeps, whatever the plan proposes: that was decided before the step was scheduled."""
        self._proposed, self._is_steered = proposed, True
        if self.state in RUNS:
            self._become(DrafterState.DORMANT)
        return OFF

    @property
    def is_away(self) -> bool:
        """Whether the weights are not there, or not yet."""
        return self.state in _AWAY

    def waits(self, lag_tokens: int, now_s: float) -> bool:
        """Whether the drafter is dormant and stays so with a lag of so many tokens, whatever K the plan proposes."""
        if self.state is not DrafterState.DORMANT:
            return False
        if now_s < self._hold_until_s:
            return True
        return bool(lag_tokens) and not self._has_live_lease(now_s) and not self._may_restart_alone(lag_tokens, now_s)

    def runs_freely(self, num_speculative_tokens: int, lag_tokens: int, now_s: float) -> Order:
        """What the step does where nobody steers (shadow, no settings): the engine's own K, with catch-up in chunks beside it.

        Weights that have left come back then without a lease, as soon as there is room. After a catch-up that broke off, rows that
        lag are left without drafts for as long as it holds.
        """
        if self.state is DrafterState.IN_SYNC:
            return Order(num_speculative_tokens)
        self._proposed, self._is_steered = num_speculative_tokens, False
        if self.state in _CAN_RUN:
            self._become(DrafterState.ACTIVE)
            return Order(num_speculative_tokens, 0 if now_s < self._hold_until_s else self._chunk(lag_tokens))
        return OFF

    def after_step(self, order: Order, reached: Sequence[int], accepted: Sequence[int], now_s: float) -> None:
        """Learn from a step's verified drafts (as report.CellCounters counts them) what acceptance is, and judge a probe."""
        if not order.num_speculative_tokens or not reached:
            return
        if self.state is _ACTIVE:
            self._probe.remember(reached[0], accepted[0])
        elif self.state is DrafterState.PROBING:
            passed = self._probe.judge(reached[0], accepted[0])
            if passed:
                self._become(DrafterState.ACTIVE)
                self._next_hold_s = FIRST_HOLD_S
            elif passed is False:
                self._become(DrafterState.DORMANT)
                self.failed_probes += 1
                self._hold("its drafts were not accepted after the last restart", now_s)

    def wish(self, lag_tokens: int, now_s: float) -> RestartWish | None:
        """The wish to send with the report made now, or None where no lease is needed or would be used."""
        offloaded = self.state is DrafterState.OFFLOADED
        if not self._proposed or now_s < self._hold_until_s or self._has_live_lease(now_s):
            return None
        if offloaded:
            if self._offload is not None and self._free_share < self._offload.reload_free_share:
                return None
        elif self.state is not DrafterState.DORMANT or not lag_tokens or self._may_restart_alone(lag_tokens, now_s):
            return None
        wish_id, self._next_wish_id = self._next_wish_id, self._next_wish_id + 1
        self._wished_s[wish_id] = now_s
        if len(self._wished_s) > REMEMBERED_WISHES:
            del self._wished_s[next(iter(self._wished_s))]
        return RestartWish(wish_id=wish_id, lag_tokens=lag_tokens, reload=offloaded, reload_seconds=self._reload_seconds)

    def memory_step(self, free_blocks_share: float, waiting: int, now_s: float) -> MemoryOrder:
        """What memory shall begin to do, given the share of KV blocks that are free (0..1) and the requests that wait."""
        if self.state is DrafterState.IN_SYNC:
            return MemoryOrder.NONE
        self._free_share = free_blocks_share
        self._note_pressure(free_blocks_share, waiting, now_s)
        if self.state is DrafterState.DORMANT and self._shall_offload(now_s):
            self._become(DrafterState.OFFLOADED)
            self._moving_since_s = now_s
            return MemoryOrder.OFFLOAD
        if self.state is DrafterState.OFFLOADED and self._moving_since_s is None and self._may_reload(now_s):
            self._become(DrafterState.CONTRACTING)
            self._has_contracted = False
            return MemoryOrder.CONTRACT
        if self.state is DrafterState.CONTRACTING:
            if not self._may_reload(now_s):
                self._become(DrafterState.OFFLOADED)
                return MemoryOrder.KEEP_OFFLOADED
            if self._has_contracted:
                self._become(DrafterState.RELOADING)
                self._moving_since_s = now_s
                return MemoryOrder.RELOAD
        return MemoryOrder.NONE

    def contracted(self, now_s: float) -> None:  # noqa: ARG002 - one signature for what the engine tells
        """The KV pool is as small as it was before the drafter left."""
        self._has_contracted = True

    def transfer_done(self, now_s: float, seconds: float | None = None) -> None:
        """The weights have moved: to host memory, or back. That took `seconds`, or all the time since it was ordered."""
        if self._moving_since_s is None:
            return
        took_s = now_s - self._moving_since_s if seconds is None else seconds
        self._reload_seconds, self._moving_since_s = min(max(took_s, 0.0), 3600.0), None
        if self.state is DrafterState.RELOADING:
            self._become(DrafterState.DORMANT)

    def reload_failed(self, why: str, now_s: float) -> None:
        """The weights could not be brought back and are away as before: the lease is used up, no other is wished for at once."""
        if self.state is not DrafterState.RELOADING:
            return
        self._moving_since_s = None
        self._become(DrafterState.OFFLOADED)
        self._finish_lease()
        self._hold(f"its last reload broke off ({why})", now_s)

    def pass_failed(self, why: str, now_s: float) -> None:
        """A catch-up broke off and read nothing: the lease is used up, and the drafter sleeps until another may be tried.

        Steps that were in flight by then break off as well, and count as the same failure.
        """
        if self.state in RUNS:
            self._become(DrafterState.DORMANT)
        self._finish_lease()
        if now_s >= self._hold_until_s:
            self._hold(f"its last catch-up broke off ({why})", now_s)

    def _hold(self, because: str, now_s: float) -> None:
        self._held_because = because
        self._hold_until_s = now_s + self._next_hold_s
        self._next_hold_s = min(2.0 * self._next_hold_s, MAX_HOLD_S)

    def _become(self, state: DrafterState) -> None:
        """The only place where the state changes. Raises ValueError for a change that the table does not hold."""
        if state is self.state:
            return
        if state not in TRANSITIONS[self.state]:
            allowed = ", ".join(sorted(TRANSITIONS[self.state])) or "none"
            raise ValueError(f"a drafter that is {self.state} cannot become {state}; allowed: {allowed}")
        self.state = state

    def _begin(self, lag_tokens: int, later_tokens: int, now_s: float) -> None:
        leased = self._has_live_lease(now_s)
        missing = lag_tokens + later_tokens
        if missing and not leased and not self._may_restart_alone(missing, now_s):
            return
        if not lag_tokens:
            self._finish_lease()
            self._become(DrafterState.ACTIVE)
        else:
            self._become(DrafterState.CATCHING_UP)
            self._catches_up_leased = leased
            self.restarts += 1
            self.micro_restarts += not leased

    def _catch_up(self, proposed: int, lag_tokens: int, now_s: float) -> Order:
        if not lag_tokens:
            self._finish_lease()
            self._probe.begin()
            self.probes += 1
            self._become(DrafterState.PROBING)
            return Order(proposed)
        chunk = self._chunk(lag_tokens)
        if self._has_live_lease(now_s):
            self._catches_up_leased = True
        elif self._catches_up_leased or not self._allowance.spend(chunk, now_s):
            self._become(DrafterState.DORMANT)
            return OFF
        return Order(0, chunk)

    def _chunk(self, lag_tokens: int) -> int:
        return lag_tokens if self._chunk_tokens is None else min(lag_tokens, self._chunk_tokens)

    def _may_restart_alone(self, lag_tokens: int, now_s: float) -> bool:
        return self._is_fresh(now_s) and lag_tokens <= self._allowance.left(now_s)

    def _is_fresh(self, now_s: float) -> bool:
        return self._heard_s is not None and now_s - self._heard_s <= self._max_age_s

    def _has_live_lease(self, now_s: float) -> bool:
        if self._lease is None:
            return False
        if now_s >= self._lease_ends_s:
            self._finish_lease()
            return False
        return self._is_fresh(now_s)

    def _finish_lease(self) -> None:
        """The lease is used up, and with it every earlier wish: no lease for one of those is taken any more."""
        if self._lease is None:
            return
        finished, self._lease = self._lease.wish_id, None
        self.finished_wish_id = finished
        self._wished_s = {wish_id: wished_s for wish_id, wished_s in self._wished_s.items() if wish_id > finished}

    def _note_pressure(self, free_blocks_share: float, waiting: int, now_s: float) -> None:
        if self._offload is None or not waiting or free_blocks_share >= self._offload.free_share_below:
            self._pressure_since_s = None
        elif self._pressure_since_s is None:
            self._pressure_since_s = now_s

    def _shall_offload(self, now_s: float) -> bool:
        if self._offload is None or self._pressure_since_s is None or self._proposed or not self._is_steered:
            return False
        return now_s - self._pressure_since_s >= self._offload.pressure_s

    def _may_reload(self, now_s: float) -> bool:
        """Whether the lease covers a reload and lives long enough for one; where nobody steers, whether there is room."""
        if now_s < self._hold_until_s:
            return False
        if not self._is_steered:
            has_room = self._offload is None or self._free_share >= self._offload.reload_free_share
            return has_room or self.state is DrafterState.CONTRACTING
        if not self._proposed or not self._has_live_lease(now_s):
            return False
        assert self._lease is not None
        return self._lease.reload and now_s + self._reload_seconds < self._lease_ends_s


_AWAY: Final = frozenset({DrafterState.OFFLOADED, DrafterState.CONTRACTING, DrafterState.RELOADING})
_CAN_RUN: Final = RUNS | {DrafterState.DORMANT}


class _Allowance:
    """Tokens that may be recomputed without a lease; what was spent comes back evenly over ALLOWANCE_REFILL_S."""

    def __init__(self) -> None:
        self.tokens = 0
        self._spent = 0.0
        self._at_s = 0.0

    def left(self, now_s: float) -> float:
        refilled = self.tokens * max(now_s - self._at_s, 0.0) / ALLOWANCE_REFILL_S
        self._spent, self._at_s = max(self._spent - refilled, 0.0), now_s
        return self.tokens - self._spent

    def spend(self, tokens: int, now_s: float) -> bool:
        """Spend `tokens`, or nothing and False where so many are not left."""
        if tokens > self.left(now_s):
            return False
        self._spent += tokens
        return True
