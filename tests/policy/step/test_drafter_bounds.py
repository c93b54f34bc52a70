"""A drafter's life at its bounds: holds, leases, allowances, memory and what it says of itself, to the second and the token."""

from __future__ import annotations

import pytest

from nightjar.policy.step.drafter import FIRST_HOLD_S, DrafterLife, MemoryOrder, Order
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Lease
from tests.policy.step.test_drafter import RULES, catch_up, dormant, granted, offloaded, probing, run_active, told


def fail_probe(life: DrafterLife, now_s: float) -> None:
    """Catch up, and see none of the drafts accepted."""
    catch_up(life, 10, now_s)
    while life.state is DrafterState.PROBING:
        life.after_step(Order(3, 0), [300], [0], now_s)


def test_a_new_drafter_is_active_and_has_done_nothing_yet() -> None:
    life = DrafterLife(can_be_dormant=True)
    assert life.state is DrafterState.ACTIVE
    assert (life.restarts, life.micro_restarts, life.probes, life.failed_probes, life.finished_wish_id) == (0, 0, 0, 0, 0)
    assert (life.is_leased, life.is_away, life.reason(0.0)) == (False, False, "")
    assert life.before_step(1, 0, 0.0) == Order(1, 0)


def test_a_step_recomputes_2048_tokens_at_most_where_nobody_says_otherwise() -> None:
    life = DrafterLife(can_be_dormant=True)
    life.adopt(told(micro=10_000), 0.0)
    life.before_step(0, 0, 0.0)
    assert catch_up(life, 5000, 0.0) == [2048, 2048, 904]


def test_restarts_are_counted_by_whether_they_needed_a_lease() -> None:
    life = dormant(micro=150)
    catch_up(life, 150, 1.0)
    assert (life.restarts, life.micro_restarts, life.probes, life.is_leased) == (1, 1, 1, False)
    life.before_step(0, 0, 1.0)
    life.before_step(3, 400, 1.0)
    life.adopt(told(granted(life.wish(400, 1.0)), sequence=2), 1.0)
    assert life.before_step(3, 400, 1.0) == Order(0, 100)
    assert life.is_leased
    assert catch_up(life, 300, 1.0) == [100, 100, 100]
    assert (life.restarts, life.micro_restarts, life.probes, life.is_leased) == (2, 1, 2, False)


def test_a_restart_of_its_own_that_gets_a_lease_goes_on_under_it_and_ends_with_it() -> None:
    life = dormant(micro=150)
    life.before_step(3, 200, 1.0)
    wish = life.wish(200, 1.0)
    assert life.before_step(3, 150, 1.0) == Order(0, 100)
    leased = [life.is_leased]
    life.adopt(told(granted(wish, 5.0), micro=10_000, sequence=2), 1.0)
    assert life.before_step(3, 900, 1.0) == Order(0, 100)
    leased.append(life.is_leased)
    assert leased == [False, True]
    assert life.before_step(3, 100, 6.0) == Order(0, 0), "no allowance takes an ended lease's place"
    assert life.state is DrafterState.DORMANT


def test_the_allowance_comes_back_within_ten_seconds_and_no_more_than_was_spent() -> None:
    life = dormant(micro=100)
    assert catch_up(life, 100, 1.0) == [100]
    life.before_step(0, 0, 1.0)
    for now_s, tokens in ((1.0, 0), (2.0, 10), (6.0, 50), (10.5, 95), (11.0, 100), (50.0, 100)):
        assert life.waits(tokens + 1, now_s)
        assert not life.waits(tokens, now_s)


def test_a_clock_that_steps_back_gives_nothing() -> None:
    life = dormant(micro=100)
    catch_up(life, 100, 10.0)
    life.before_step(0, 0, 10.0)
    assert life.waits(1, 5.0)
    assert not life.waits(50, 10.0), "it counts on from where the clock is now"


def test_settings_hold_for_their_age_and_no_longer() -> None:
    life = dormant(micro=100)
    assert not life.waits(100, 300.0)
    assert life.waits(100, 300.001)
    life.before_step(3, 100, 301.0)
    assert life.reason(301.0) == "restarts wait for the policy, which was not heard"


def test_nobody_confirms_settings_that_never_came() -> None:
    life = DrafterLife(can_be_dormant=True)
    life.confirm(0.0)
    life.before_step(0, 0, 0.0)
    life.before_step(3, 5, 0.0)
    assert life.reason(0.0) == "restarts wait for the policy, which was not heard"


@pytest.mark.parametrize(("can_draft", "lag_tokens", "wakes"), [(True, 0, True), (False, 1, True), (False, 0, False)])
def test_the_drafter_wakes_where_a_row_would_be_drafted_for_at_once_or_after_catching_up(
    can_draft: bool, lag_tokens: int, wakes: bool
) -> None:
    life = dormant(micro=10)
    life.before_step(3, lag_tokens, 1.0, can_draft=can_draft)
    assert (life.state is not DrafterState.DORMANT) is wakes


def test_each_failed_probe_in_a_row_holds_twice_as_long_up_to_eight_minutes() -> None:
    life, now_s = probing(0.7), 0.0
    life.before_step(0, 0, now_s)
    for held_s in (30.0, 60.0, 120.0, 240.0, 480.0, 480.0):
        life.confirm(now_s)
        fail_probe(life, now_s)
        assert life.before_step(3, 10, now_s + held_s - 1.0) == Order(0, 0)
        assert life.reason(now_s + held_s - 1.0) == "its drafts were not accepted after the last restart: no other for 1 s"
        assert life.wish(10, now_s + held_s - 1.0) is None
        assert life.waits(0, now_s + held_s - 1.0)
        now_s += held_s
        life.confirm(now_s)
        assert not life.waits(0, now_s)
        assert life.reason(now_s) == "waits for a lease to restart"
    assert life.failed_probes == 6


def test_a_probe_that_passes_makes_the_next_failure_a_first_one() -> None:
    life = probing(0.7)
    life.before_step(0, 0, 0.0)
    fail_probe(life, 0.0)
    life.confirm(100.0)
    catch_up(life, 10, 100.0)
    life.after_step(Order(3, 0), [300], [200], 100.0)
    assert life.state is DrafterState.ACTIVE
    life.before_step(0, 0, 100.0)
    fail_probe(life, 100.0)
    assert (life.waits(0, 129.9), life.waits(0, 130.0)) == (True, False)
    assert life.failed_probes == 2


@pytest.mark.parametrize(("order", "reached"), [(Order(0, 5), [300]), (Order(3, 0), [])])
def test_a_step_without_verified_drafts_says_nothing_of_a_probe(order: Order, reached: list[int]) -> None:
    life = probing(0.7)
    life.after_step(order, reached, [0] * len(reached), 0.0)
    assert life.state is DrafterState.PROBING


def test_what_it_says_while_the_plan_wants_it_and_it_does_not_run() -> None:
    life = dormant(micro=5)
    assert life.reason(1.0) == "", "nobody wants it"
    life.before_step(3, 50, 1.0)
    assert life.reason(1.0) == "waits for a lease to restart"
    life.before_step(3, 0, 1.0, later_tokens=50, can_draft=False)
    assert life.reason(1.0) == "its requests have generated too little yet to be worth catching up"
    away = offloaded()
    away.before_step(3, 0, 20.0, can_draft=False)
    assert away.reason(20.0) == "waits for a lease to restart"
    away.runs_freely(3, 0, 0.0)
    assert away.reason(20.0) == "nobody steers: waits for room to come back"
    away.sleep(2)
    assert away.reason(20.0) == "waits for a lease to restart"
    away.sleep(0)
    assert away.reason(20.0) == ""


@pytest.mark.parametrize("proposed", [0, 3])
def test_a_drafter_that_ran_and_sleeps_through_a_step_is_dormant_whatever_the_plan_proposes(proposed: int) -> None:
    life = DrafterLife(can_be_dormant=True)
    assert life.sleep(proposed) == Order(0, 0)
    assert life.state is DrafterState.DORMANT


def test_a_drafter_waits_where_it_is_dormant_and_may_not_restart() -> None:
    life = dormant(micro=50)
    assert (life.waits(0, 1.0), life.waits(50, 1.0), life.waits(51, 1.0)) == (False, False, True)
    life.before_step(3, 51, 1.0)
    life.adopt(told(granted(life.wish(51, 1.0)), micro=50, sequence=2), 1.0)
    assert not life.waits(51, 1.0), "its lease has come"
    life.before_step(3, 51, 1.0)
    assert not life.waits(10_000, 1.0), "it catches up already"


def test_wishes_are_numbered_from_one_and_a_wish_needs_a_lag_beyond_the_allowance() -> None:
    life = dormant(micro=50)
    life.before_step(3, 51, 1.0)
    wishes = [life.wish(lag, 1.0) for lag in (0, 50, 51, 52)]
    assert [wish and (wish.wish_id, wish.lag_tokens, wish.reload, wish.reload_seconds) for wish in wishes] == [
        *(None, None, (1, 51, False, 0.0), (2, 52, False, 0.0)),
    ]
    life.adopt(told(granted(wishes[2]), micro=50, sequence=2), 1.0)
    assert life.wish(52, 1.0) is None, "a lease is in hand"
    life.before_step(3, 51, 1.0)
    assert life.wish(52, 100.0) is None, "and it catches up by now"


@pytest.mark.parametrize(("wish_id", "is_used"), [(1, False), (2, True), (257, True)])
def test_the_last_256_wishes_are_remembered(wish_id: int, is_used: bool) -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    for _ in range(257):
        life.wish(400, 1.0)
    life.adopt(told(Lease(wish_id=wish_id, time_to_live_s=10.0), sequence=2), 1.0)
    assert (life.before_step(3, 400, 1.0) == Order(0, 100)) is is_used


def test_of_several_leases_the_newest_wish_counts_and_an_older_one_does_not_take_its_place() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    first, second = life.wish(400, 1.0), life.wish(400, 2.0)
    life.adopt(told(granted(second, 5.0), granted(first, 100.0), sequence=2), 2.0)
    life.adopt(told(granted(first, 100.0), sequence=3), 2.0)
    assert life.before_step(3, 400, 6.9) == Order(0, 100)
    assert life.before_step(3, 300, 7.0) == Order(0, 0)
    assert second is not None
    assert life.finished_wish_id == second.wish_id
    life.adopt(told(granted(first, 100.0), sequence=4), 7.0)
    assert life.before_step(3, 300, 7.0) == Order(0, 0), "nor afterwards"


def test_a_lease_that_another_engine_wished_for_hides_none_of_its_own() -> None:
    life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=100, first_wish_id=7)
    life.adopt(told(), 0.0)
    life.before_step(0, 0, 0.0)
    life.before_step(3, 400, 1.0)
    life.adopt(told(Lease(wish_id=2, time_to_live_s=9.0), granted(life.wish(400, 1.0)), sequence=2), 1.0)
    assert life.before_step(3, 400, 1.0) == Order(0, 100)


def test_nothing_missing_restarts_also_where_the_policy_was_never_heard() -> None:
    life = DrafterLife(can_be_dormant=True)
    life.before_step(0, 0, 0.0)
    assert life.before_step(3, 0, 1.0) == Order(3, 0)


def test_a_catch_up_ends_with_a_step_that_recomputes_nothing() -> None:
    life = dormant(micro=100)
    assert [life.before_step(3, 100, 1.0), life.before_step(3, 0, 1.0)] == [Order(0, 100), Order(3, 0)]


def test_the_allowance_is_whole_from_the_first_second_on() -> None:
    assert not dormant(micro=100).waits(100, 0.0)


def test_only_the_first_draft_token_of_a_row_is_compared() -> None:
    life = probing(None)
    life.after_step(Order(2, 0), [300, 0], [300, 0], 0.0)
    assert life.state is DrafterState.ACTIVE
    life.after_step(Order(2, 0), [1000, 0], [1000, 0], 0.0)
    life.before_step(0, 0, 0.0)
    catch_up(life, 10, 0.0)
    life.after_step(Order(2, 0), [32, 0], [7, 0], 0.0)
    assert life.failed_probes == 1


def test_a_wish_is_sent_again_when_the_hold_is_over() -> None:
    life = with_reload_lease(30.0)
    life.memory_step(0.5, 0, 20.0)
    life.contracted(20.0)
    life.memory_step(0.5, 0, 20.0)
    life.reload_failed("no such file", 21.0)
    assert life.wish(100, 50.9) is None
    assert life.wish(100, 51.0) is not None


def test_a_lease_under_settings_that_nobody_confirms_is_not_used_until_somebody_does() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    life.adopt(told(granted(life.wish(400, 1.0), 500.0), sequence=2), 1.0)
    assert life.before_step(3, 400, 301.5) == Order(0, 0)
    life.confirm(301.5)
    assert life.before_step(3, 400, 301.5) == Order(0, 100)


def test_a_restart_that_finds_nothing_missing_uses_its_lease_up() -> None:
    life = dormant()
    life.before_step(3, 400, 1.0)
    wish = life.wish(400, 1.0)
    life.adopt(told(granted(wish), sequence=2), 1.0)
    assert life.before_step(3, 0, 1.0) == Order(3, 0)
    assert life.state is DrafterState.ACTIVE
    assert wish is not None
    assert life.finished_wish_id == wish.wish_id


def test_where_nobody_steers_the_drafter_runs_at_once_and_catches_up_beside() -> None:
    life = dormant(chunk_tokens=100)
    assert life.runs_freely(3, 250, 0.0) == Order(3, 100)
    assert life.state is DrafterState.ACTIVE
    kept = DrafterLife(can_be_dormant=False)
    assert kept.runs_freely(3, 250, 0.0) == Order(3, 0)
    away = offloaded()
    assert away.runs_freely(3, 250, 0.0) == Order(0, 0)
    assert away.state is DrafterState.OFFLOADED


def test_where_nobody_steers_a_catch_up_that_broke_off_is_tried_again_after_its_hold() -> None:
    life = dormant(chunk_tokens=100)
    life.runs_freely(3, 250, 0.0)
    life.pass_failed("out of memory", 0.0)
    assert life.runs_freely(3, 250, FIRST_HOLD_S - 0.1) == Order(3, 0)
    assert life.runs_freely(3, 250, FIRST_HOLD_S) == Order(3, 100)


def test_steps_in_flight_that_break_off_as_well_are_the_same_failure_and_one_after_the_hold_is_another() -> None:
    life = DrafterLife(can_be_dormant=True)
    life.pass_failed("out of memory", 0.0)
    life.pass_failed("out of memory", FIRST_HOLD_S - 0.1)
    assert [life.waits(0, now_s) for now_s in (FIRST_HOLD_S - 0.1, FIRST_HOLD_S)] == [True, False]
    life.pass_failed("out of memory", FIRST_HOLD_S)
    assert [life.waits(0, now_s) for now_s in (3 * FIRST_HOLD_S - 0.1, 3 * FIRST_HOLD_S)] == [True, False]


def test_an_active_drafter_catches_up_late_rows_in_chunks() -> None:
    life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=100)
    assert life.before_step(3, 250, 0.0) == Order(3, 100)
    assert life.before_step(3, 50, 0.0) == Order(3, 50)


@pytest.mark.parametrize(
    ("free_share", "waiting", "held_s", "order"),
    [
        (0.09, 1, 5.0, MemoryOrder.OFFLOAD),
        (0.09, 1, 4.9, MemoryOrder.NONE),  # not for long enough
        (0.1, 1, 5.0, MemoryOrder.NONE),  # not short
        (0.0, 0, 5.0, MemoryOrder.NONE),  # nobody waits
    ],
)
def test_weights_leave_after_pressure_that_lasted(free_share: float, waiting: int, held_s: float, order: MemoryOrder) -> None:
    life = dormant(offload=RULES)
    life.memory_step(free_share, waiting, 10.0)
    assert life.memory_step(free_share, waiting, 10.0 + held_s) is order


@pytest.mark.parametrize("why_not", ["the plan wants it", "nobody steers", "it may not leave"])
def test_weights_stay_where_they_are_wanted_or_nobody_decides(why_not: str) -> None:
    life = dormant(offload=None if why_not == "it may not leave" else RULES)
    if why_not == "the plan wants it":
        life.before_step(3, 400, 1.0)
    elif why_not == "nobody steers":
        life.sleep(0)
        life._is_steered = False
    for now_s in (10.0, 20.0):
        assert life.memory_step(0.0, 5, now_s) is MemoryOrder.NONE
    assert life.state is DrafterState.DORMANT


@pytest.mark.parametrize(("began_s", "ended_s", "measured_s"), [(15.0, 15.5, 0.5), (15.0, 14.0, 0.0), (15.0, 4000.0, 3600.0)])
def test_the_time_of_a_move_is_what_the_next_wish_says_a_reload_takes(began_s: float, ended_s: float, measured_s: float) -> None:
    life = dormant(offload=RULES)
    life.memory_step(0.05, 3, began_s - 5.0)
    assert life.memory_step(0.05, 3, began_s) is MemoryOrder.OFFLOAD
    life.transfer_done(ended_s)
    life.transfer_done(ended_s + 77.0)
    life.memory_step(0.4, 0, 20.0)
    life.before_step(3, 100, 20.0)
    wish = life.wish(100, 20.0)
    assert wish is not None
    assert (wish.reload, wish.reload_seconds) == (True, measured_s)


@pytest.mark.parametrize(("free_share", "wishes"), [(0.39, False), (0.4, True)])
def test_a_reload_is_wished_for_once_there_is_room(free_share: float, wishes: bool) -> None:
    life = offloaded()
    life.memory_step(free_share, 0, 20.0)
    life.before_step(3, 100, 20.0)
    assert (life.wish(100, 20.0) is not None) is wishes


def with_reload_lease(time_to_live_s: float, *, reload: bool = True) -> DrafterLife:
    """Away, wanted back, with a lease whose wish was sent at 20 s; a move takes half a second."""
    life = offloaded()
    life.memory_step(0.5, 0, 20.0)
    life.before_step(3, 100, 20.0)
    lease = granted(life.wish(100, 20.0), time_to_live_s).model_copy(update={"reload": reload})
    life.adopt(told(lease, offload=RULES, sequence=2), 20.0)
    return life


@pytest.mark.parametrize(
    ("time_to_live_s", "reload", "order"),
    [
        (10.0, True, MemoryOrder.CONTRACT),
        (10.0, False, MemoryOrder.NONE),
        (5.5, True, MemoryOrder.NONE),
        (5.6, True, MemoryOrder.CONTRACT),
    ],
)
def test_a_reload_begins_under_a_lease_for_one_that_outlives_it(time_to_live_s: float, reload: bool, order: MemoryOrder) -> None:
    assert with_reload_lease(time_to_live_s, reload=reload).memory_step(0.5, 0, 25.0) is order


def test_a_drafter_on_its_way_back_is_away_and_leased_until_its_weights_are_there() -> None:
    life = with_reload_lease(30.0)
    assert (life.is_away, life.is_leased) == (True, False)
    assert life.memory_step(0.5, 0, 21.0) is MemoryOrder.CONTRACT
    assert (life.is_away, life.is_leased) == (True, True)
    life.contracted(21.5)
    assert life.memory_step(0.5, 0, 22.0) is MemoryOrder.RELOAD
    assert (life.is_away, life.is_leased) == (True, True)
    assert life.memory_step(0.5, 0, 23.0) is MemoryOrder.NONE
    life.transfer_done(24.0)
    assert (life.is_away, life.is_leased, life.state) == (False, False, DrafterState.DORMANT)


def test_a_contraction_that_was_given_up_begins_anew() -> None:
    life = with_reload_lease(30.0)
    life.memory_step(0.5, 0, 21.0)
    life.contracted(21.5)
    life.before_step(0, 0, 21.6)
    assert life.memory_step(0.5, 0, 21.7) is MemoryOrder.KEEP_OFFLOADED
    life.before_step(3, 100, 22.0)
    assert life.memory_step(0.5, 0, 22.1) is MemoryOrder.CONTRACT
    assert life.memory_step(0.5, 0, 22.2) is MemoryOrder.NONE, "what was contracted has been handed out again"


@pytest.mark.parametrize(("free_share", "order"), [(0.39, MemoryOrder.NONE), (0.4, MemoryOrder.CONTRACT)])
def test_where_nobody_steers_weights_come_back_once_there_is_room_and_go_on_coming(free_share: float, order: MemoryOrder) -> None:
    life = offloaded()
    life.runs_freely(3, 0, 0.0)
    assert life.memory_step(free_share, 0, 20.0) is order
    if order is MemoryOrder.CONTRACT:
        assert life.memory_step(0.0, 5, 20.1) is MemoryOrder.NONE
        assert life.state is DrafterState.CONTRACTING


def test_weights_that_still_leave_are_not_asked_back() -> None:
    life = dormant(offload=RULES)
    life.memory_step(0.05, 3, 10.0)
    life.memory_step(0.05, 3, 15.0)
    life.runs_freely(3, 0, 0.0)
    assert life.memory_step(0.9, 0, 15.5) is MemoryOrder.NONE
    life.transfer_done(16.0)
    assert life.memory_step(0.9, 0, 16.5) is MemoryOrder.CONTRACT


def test_rules_that_were_taken_back_while_the_weights_were_away_do_not_keep_them_there() -> None:
    life = offloaded()
    life.adopt(told(sequence=2), 20.0)
    life.memory_step(0.0, 5, 20.0)
    life.before_step(3, 100, 20.0)
    assert life.wish(100, 20.0) is not None
    life.runs_freely(3, 0, 0.0)
    assert life.memory_step(0.0, 5, 20.0) is MemoryOrder.CONTRACT


def test_acceptance_is_remembered_while_the_drafter_runs_and_not_while_it_is_probed() -> None:
    life = probing(None)
    run_active(life, 0, 0)
    life.after_step(Order(3, 0), [300], [300], 0.0)
    states = [life.state]
    life.after_step(Order(3, 0), [100], [50], 0.0)
    life.before_step(0, 0, 0.0)
    catch_up(life, 10, 0.0)
    for rows, hits in ((63, 7), (1, 1)):  # half before: eight of 64 rows are asked for
        life.after_step(Order(3, 0), [rows], [hits], 0.0)
        states.append(life.state)
    assert states == [DrafterState.ACTIVE, DrafterState.PROBING, DrafterState.ACTIVE]
