"""Life of a drafter: off is free and at once, every larger restart holds a live lease, and no lease outlives its time (INV-6)."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nightjar.policy.step.drafter import ALLOWANCE_REFILL_S, FIRST_HOLD_S, MAX_HOLD_S, UNLIMITED, DrafterLife, MemoryOrder, Order
from nightjar.policy.wire.report import DrafterState, RestartWish
from nightjar.policy.wire.settings import Lease, OffloadRules, RestartLimits, Settings
from tests.policy.step.steering_settings import settings

RULES = OffloadRules(free_share_below=0.1, pressure_s=5.0, reload_free_share=0.4)
ROWS = 4


def told(
    *leases: Lease, micro: int = 0, chunk: int | None = None, offload: OffloadRules | None = None, sequence: int = 1
) -> Settings:
    limits = RestartLimits(micro_restart_tokens=micro, leases=leases, catch_up_chunk_tokens=chunk)
    return settings(sequence=sequence).settings.model_copy(update={"restarts": limits, "offload": offload})


def granted(wish: RestartWish | None, time_to_live_s: float = 10.0) -> Lease:
    assert wish is not None
    return Lease(wish_id=wish.wish_id, time_to_live_s=time_to_live_s, reload=wish.reload)


def dormant(chunk_tokens: int | None = 100, **changes: object) -> DrafterLife:
    """A drafter that the plan has just switched off, with settings that allow no micro-restart."""
    life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=chunk_tokens)
    life.adopt(told(**changes), 0.0)  # type: ignore[arg-type]
    assert life.before_step(0, 0, 0.0) == Order(0, 0)
    assert life.state is DrafterState.DORMANT
    return life


def catch_up(life: DrafterLife, lag_tokens: int, now_s: float) -> list[int]:
    """Steps of catching up until the drafter runs: the tokens that each recomputed."""
    chunks = []
    while (order := life.before_step(3, lag_tokens, now_s)).num_speculative_tokens == 0:
        assert order.catch_up_tokens > 0
        chunks.append(order.catch_up_tokens)
        lag_tokens -= order.catch_up_tokens
    return chunks


def run_active(life: DrafterLife, rows: int, hits: int, now_s: float = 0.0) -> None:
    order = life.before_step(3, 0, now_s)
    assert order.num_speculative_tokens == 3
    life.after_step(order, [rows, rows, rows], [hits, 0, 0], now_s)


def test_a_drafter_that_is_kept_in_sync_runs_what_the_plan_proposes() -> None:
    life = DrafterLife(can_be_dormant=False)
    assert [life.before_step(k, 500, 0.0) for k in (3, 0, 5)] == [(3, 0), (0, 0), (5, 0)]
    assert life.state is DrafterState.IN_SYNC
    assert life.wish(500, 0.0) is None
    assert life.memory_step(0.0, 9, 0.0) is MemoryOrder.NONE


def test_an_active_drafter_passes_the_plan_through_and_off_is_at_once() -> None:
    life = DrafterLife(can_be_dormant=True)
    assert life.before_step(5, 0, 0.0) == Order(5, 0)
    assert life.before_step(0, 0, 0.1) == Order(0, 0)
    assert life.state is DrafterState.DORMANT


def test_nothing_missing_restarts_at_once_without_any_allowance() -> None:
    life = dormant()
    assert life.before_step(3, 0, 1.0) == Order(3, 0)
    assert life.state is DrafterState.ACTIVE
    assert life.restarts == 0


def test_a_lag_within_the_allowance_is_caught_up_in_chunks_and_then_probed() -> None:
    life = dormant(micro=250)
    assert catch_up(life, 250, 1.0) == [100, 100, 50]
    assert life.state is DrafterState.PROBING
    assert life.restarts == 1


def test_settings_bound_the_chunk_but_never_raise_it() -> None:
    assert catch_up(dormant(micro=250, chunk=125), 250, 1.0) == [100, 100, 50]
    assert catch_up(dormant(micro=250, chunk=90), 250, 1.0) == [90, 90, 70]


def test_without_a_chunk_bound_everything_is_caught_up_in_one_step() -> None:
    assert catch_up(dormant(None, micro=UNLIMITED, chunk=90), 10**6, 1.0) == [10**6]


def test_micro_restarts_draw_on_an_allowance_that_comes_back_evenly() -> None:
    life = dormant(micro=200)
    assert catch_up(life, 150, 1.0) == [100, 50]
    life.before_step(0, 0, 1.0)
    assert life.before_step(3, 150, 1.0) == Order(0, 0)
    assert life.state is DrafterState.DORMANT
    later_s = 1.0 + ALLOWANCE_REFILL_S / 2
    assert life.before_step(3, 150, later_s) == Order(0, 100)


def test_a_micro_restart_whose_lag_outgrows_the_allowance_goes_back_to_dormant() -> None:
    life = dormant(micro=150)
    assert life.before_step(3, 150, 1.0) == Order(0, 100)
    assert life.before_step(3, 900, 1.0) == Order(0, 0)
    assert life.state is DrafterState.DORMANT


def test_a_larger_lag_wishes_and_waits_until_a_lease_comes() -> None:
    life = dormant(micro=50)
    assert life.before_step(3, 400, 1.0) == Order(0, 0)
    wish = life.wish(400, 1.0)
    assert wish is not None
    assert (wish.lag_tokens, wish.reload) == (400, False)
    life.adopt(told(granted(wish), micro=50, sequence=2), 2.0)
    assert catch_up(life, 400, 2.0) == [100, 100, 100, 100]
    assert life.finished_wish_id == wish.wish_id


def test_a_restart_needs_permission_for_what_will_be_caught_up_later_as_well() -> None:
    life = dormant(micro=200)
    assert life.before_step(3, 150, 1.0, later_tokens=100) == Order(0, 0)
    assert life.before_step(3, 0, 1.0, later_tokens=300) == Order(0, 0)
    assert life.state is DrafterState.DORMANT
    assert life.before_step(3, 150, 1.0, later_tokens=50) == Order(0, 100)


def test_where_no_row_would_be_drafted_for_the_drafter_sleeps_on() -> None:
    life = dormant(micro=500)
    assert life.before_step(3, 0, 1.0, later_tokens=300, can_draft=False) == Order(0, 0)
    assert life.reason(1.0) == "its requests have generated too little yet to be worth catching up"
    assert life.before_step(3, 0, 1.0, later_tokens=300) == Order(3, 0)
    assert life.state is DrafterState.ACTIVE


@pytest.mark.parametrize(("proposed", "lag_tokens"), [(0, 400), (3, 0), (3, 40)])
def test_no_wish_where_no_lease_is_needed(proposed: int, lag_tokens: int) -> None:
    life = dormant(micro=50)
    life.before_step(proposed, lag_tokens, 1.0)
    assert life.wish(lag_tokens, 1.0) is None


def test_inv_6_a_lease_counts_from_when_its_own_wish_was_sent() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    first, second = life.wish(400, 1.0), life.wish(400, 6.0)
    life.adopt(told(granted(first)), 11.5)
    assert life.before_step(3, 400, 11.5) == Order(0, 0)
    life.adopt(told(granted(second), sequence=2), 11.5)
    assert life.before_step(3, 400, 15.9) == Order(0, 100)


def test_inv_6_expiry_in_mid_catch_up_returns_to_dormant_and_is_reported() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    wish = life.wish(400, 1.0)
    life.adopt(told(granted(wish, 2.0)), 1.5)
    assert life.before_step(3, 400, 2.9) == Order(0, 100)
    assert life.before_step(3, 300, 3.0) == Order(0, 0)
    assert life.state is DrafterState.DORMANT
    assert wish is not None
    assert life.finished_wish_id == wish.wish_id


def test_inv_6_a_lease_is_good_once_and_no_lease_fits_another_engine() -> None:
    life = dormant()
    life.before_step(3, 100, 1.0)
    lease = granted(life.wish(100, 1.0))
    life.adopt(told(lease), 1.0)
    assert catch_up(life, 100, 1.0) == [100]
    life.before_step(0, 0, 1.0)
    life.adopt(told(lease, sequence=2), 2.0)
    assert life.before_step(3, 100, 2.0) == Order(0, 0)
    other = DrafterLife(can_be_dormant=True, first_wish_id=1000)
    other.before_step(0, 0, 1.0)
    other.adopt(told(lease), 2.0)
    assert other.before_step(3, 100, 2.0) == Order(0, 0)


def test_later_settings_without_the_lease_do_not_take_it_back() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    life.adopt(told(granted(life.wish(400, 1.0))), 1.0)
    life.adopt(told(sequence=2), 1.5)
    assert life.before_step(3, 400, 2.0) == Order(0, 100)


def test_settings_too_old_allow_no_restart_until_they_are_confirmed() -> None:
    life = dormant(micro=500)
    assert life.before_step(3, 400, 300.5) == Order(0, 0)
    life.confirm(300.5)
    assert life.before_step(3, 400, 300.6) == Order(0, 100)


def test_off_in_mid_catch_up_is_at_once_and_the_lease_may_be_taken_up_again() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    life.adopt(told(granted(life.wish(400, 1.0))), 1.0)
    life.before_step(3, 400, 1.0)
    assert life.before_step(0, 300, 1.1) == Order(0, 0)
    assert life.state is DrafterState.DORMANT
    assert life.before_step(3, 310, 1.2) == Order(0, 100)


def probing(before: float | None) -> DrafterLife:
    life = DrafterLife(can_be_dormant=True)
    life.adopt(told(micro=UNLIMITED), 0.0)
    if before is not None:
        run_active(life, 1000, round(1000 * before))
    life.before_step(0, 0, 0.0)
    catch_up(life, 10, 0.0)
    return life


@pytest.mark.parametrize("before", [None, 0.7, 0.05])
def test_silent_zero_acceptance_goes_back_to_dormant_and_holds_twice_as_long_each_time(before: float | None) -> None:
    life = probing(before)
    for failures in (1, 2):
        now_s = 1000.0 * failures
        life.confirm(now_s)
        if life.state is DrafterState.DORMANT:
            catch_up(life, 10, now_s)
        for _ in range(64):
            if life.state is DrafterState.PROBING:
                life.after_step(Order(3, 0), [4, 4, 4], [0, 0, 0], now_s)
        assert life.state is DrafterState.DORMANT
        assert life.failed_probes == failures
        hold_s = FIRST_HOLD_S * 2 ** (failures - 1)
        assert life.before_step(3, 10, now_s + hold_s - 0.1) == Order(0, 0)
        assert life.wish(10, now_s + hold_s - 0.1) is None


def test_however_often_a_probe_fails_in_a_row_the_hold_is_the_longest_one() -> None:
    life, now_s = probing(0.7), 0.0
    for _ in range(1100):
        while life.state is DrafterState.PROBING:
            life.after_step(Order(3, 0), [64, 64, 64], [0, 0, 0], now_s)
        assert life.before_step(3, 10, now_s + FIRST_HOLD_S - 0.1) == Order(0, 0)
        now_s += MAX_HOLD_S
        life.confirm(now_s)
        catch_up(life, 10, now_s)
    assert life.failed_probes == 1100


def test_a_probe_passes_at_half_the_acceptance_and_fails_at_a_fifth() -> None:
    for share, state in ((0.5, DrafterState.ACTIVE), (0.2, DrafterState.DORMANT)):
        life = probing(0.6)
        for _ in range(60):
            if life.state is DrafterState.PROBING:
                life.after_step(Order(3, 0), [10, 10, 10], [round(10 * 0.6 * share), 0, 0], 1.0)
        assert life.state is state


def test_a_step_that_verified_nothing_yet_does_not_judge_a_probe() -> None:
    life = probing(0.7)
    for _ in range(100):
        life.after_step(Order(3, 0), [0, 0, 0], [0, 0, 0], 1.0)
    assert life.state is DrafterState.PROBING


def test_weights_leave_only_when_off_allowed_and_under_lasting_pressure() -> None:
    life = dormant(offload=RULES)
    assert life.memory_step(0.05, 3, 10.0) is MemoryOrder.NONE
    assert life.memory_step(0.05, 0, 14.0) is MemoryOrder.NONE, "nobody waits: pressure starts anew"
    assert life.memory_step(0.05, 3, 15.0) is MemoryOrder.NONE
    assert life.memory_step(0.05, 3, 20.0) is MemoryOrder.OFFLOAD
    assert life.state is DrafterState.OFFLOADED
    assert life.memory_step(0.05, 3, 30.0) is MemoryOrder.NONE
    never = dormant()
    for now_s in (10.0, 100.0):
        assert never.memory_step(0.0, 9, now_s) is MemoryOrder.NONE


def offloaded() -> DrafterLife:
    life = dormant(offload=RULES, micro=UNLIMITED)
    life.memory_step(0.05, 3, 10.0)
    life.memory_step(0.05, 3, 15.0)
    life.transfer_done(15.5)
    return life


def test_weights_come_back_by_lease_alone_and_catch_up_after() -> None:
    life = offloaded()
    assert life.before_step(3, 100, 20.0) == Order(0, 0), "no allowance covers a reload"
    assert life.wish(100, 20.0) is None, "the pool is still full"
    life.memory_step(0.5, 0, 20.0)
    wish = life.wish(100, 20.0)
    assert wish is not None
    assert wish.reload
    assert wish.reload_seconds == 0.5
    life.adopt(told(granted(wish, 30.0), offload=RULES), 20.1)
    assert life.memory_step(0.5, 0, 20.2) is MemoryOrder.CONTRACT
    assert life.memory_step(0.5, 0, 20.3) is MemoryOrder.NONE
    life.contracted(20.5)
    assert life.memory_step(0.5, 0, 20.6) is MemoryOrder.RELOAD
    assert life.before_step(3, 120, 20.7) == Order(0, 0)
    life.transfer_done(21.5)
    assert catch_up(life, 120, 21.6) == [100, 20]
    assert life.state is DrafterState.PROBING


def test_a_reload_that_breaks_off_leaves_the_weights_away_and_no_other_is_tried_for_a_while() -> None:
    life = offloaded()
    life.memory_step(0.5, 0, 20.0)
    life.before_step(3, 100, 20.0)
    wish = life.wish(100, 20.0)
    life.adopt(told(granted(wish, 60.0), offload=RULES), 20.1)
    life.memory_step(0.5, 0, 20.2)
    life.contracted(20.3)
    assert life.memory_step(0.5, 0, 20.4) is MemoryOrder.RELOAD
    life.reload_failed("no such file", 21.0)
    assert life.state is DrafterState.OFFLOADED
    assert wish is not None
    assert life.finished_wish_id == wish.wish_id, "the lease is used up"
    assert life.reason(22.0) == "its last reload broke off (no such file): no other for 29 s"
    assert life.wish(100, 21.0 + FIRST_HOLD_S - 0.1) is None
    life.runs_freely(3, 100, 21.0)
    assert life.memory_step(0.5, 0, 21.0 + FIRST_HOLD_S - 0.1) is MemoryOrder.NONE, "nor where nobody steers"
    assert life.memory_step(0.5, 0, 21.0 + FIRST_HOLD_S) is MemoryOrder.CONTRACT


def test_inv_6_no_reload_begins_that_its_lease_does_not_cover() -> None:
    life = offloaded()
    life.memory_step(0.5, 0, 20.0)
    life.before_step(3, 100, 20.0)
    life.adopt(told(granted(life.wish(100, 20.0), 5.0), offload=RULES), 20.1)
    assert life.memory_step(0.5, 0, 20.2) is MemoryOrder.CONTRACT
    life.contracted(24.8)
    assert life.memory_step(0.5, 0, 24.9) is MemoryOrder.KEEP_OFFLOADED
    assert life.state is DrafterState.OFFLOADED


class DrafterLifeMachine(RuleBasedStateMachine):
    """Any order of steps, wishes, grants, losses and waits: what may run alone never exceeds the allowance, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=64)
        self.now_s = 0.0
        self.lag = 0
        self.sequence = 0
        self.micro = 0
        self.leases: list[tuple[Lease, float]] = []
        self.delivered: dict[int, float] = {}
        self.recomputed_alone: list[tuple[float, int]] = []
        self.largest_allowance = 0
        self.heard_s = float("-inf")

    @rule(proposed=st.sampled_from([0, 0, 1, 3]), prompt=st.sampled_from([0, 0, 0, 500]))
    def step(self, proposed: int, prompt: int) -> None:
        self.lag += prompt if self.life.state is not DrafterState.ACTIVE else 0
        before = self.life.state
        order = self.life.before_step(proposed, self.lag, self.now_s)
        assert order.num_speculative_tokens in {0, proposed}
        assert 0 <= order.catch_up_tokens <= min(64, self.lag)
        if not proposed:
            assert order == Order(0, 0)
        if order.num_speculative_tokens:
            assert self.life.state in {DrafterState.ACTIVE, DrafterState.PROBING}
        if self.life.state is DrafterState.CATCHING_UP and order.catch_up_tokens:
            self.check_may_catch_up(order, before)
        self.lag = max(self.lag - order.catch_up_tokens, 0) + (0 if order.num_speculative_tokens else ROWS)
        self.life.after_step(order, [ROWS] * order.num_speculative_tokens, [ROWS] * order.num_speculative_tokens, self.now_s)

    def check_may_catch_up(self, order: Order, before: DrafterState) -> None:
        leased = any(self.now_s < end_s for end_s in self.delivered.values())
        if not leased:
            self.recomputed_alone.append((self.now_s, order.catch_up_tokens))
            spent = sum(tokens for at_s, tokens in self.recomputed_alone if at_s > self.now_s - ALLOWANCE_REFILL_S)
            assert spent <= 2 * self.largest_allowance, "a full allowance and what came back of it"
            if before is DrafterState.DORMANT:
                assert self.now_s - self.heard_s <= 300.0

    @rule()
    def report(self) -> None:
        wish = self.life.wish(self.lag, self.now_s)
        if wish is not None:
            self.leases.append((granted(wish, 5.0), self.now_s))

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 10**6), lost=st.booleans(), micro=st.sampled_from([0, 40, 200]))
    def deliver(self, index: int, lost: bool, micro: int) -> None:
        lease, wished_s = self.leases[index % len(self.leases)]
        if lost:
            return
        self.tell(micro, lease)
        if lease.wish_id > self.life.finished_wish_id:
            self.delivered[lease.wish_id] = wished_s + lease.time_to_live_s

    @rule(micro=st.sampled_from([0, 40, 200]))
    def settings_without_lease(self, micro: int) -> None:
        self.tell(micro)

    def tell(self, micro: int, *leases: Lease) -> None:
        self.sequence += 1
        self.largest_allowance = max(self.largest_allowance, micro)
        self.heard_s = self.now_s
        self.life.adopt(told(*leases, micro=micro, sequence=self.sequence), self.now_s)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def state_is_one_of_a_drafter_that_is_never_offloaded(self) -> None:
        assert self.life.state in {DrafterState.ACTIVE, DrafterState.DORMANT, DrafterState.CATCHING_UP, DrafterState.PROBING}


DrafterLifeMachine.TestCase.settings = hypothesis_settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDrafterLifeMachine = DrafterLifeMachine.TestCase
