"""The budget: what is granted never exceeds it, and nobody waits for ever."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.restarts.budget import (
    AGING_S,
    FREEZE_S,
    LAST_STEP_S,
    OpenLease,
    PricedWish,
    Probes,
    grant,
    max_leases,
    outlives_any_lease,
    reloads_by_node,
    still_open,
)
from nightjar.policy.restarts.price import Price
from nightjar.policy.step.drafter import DrafterLife
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import RestartWish
from nightjar.policy.wire.settings import RestartLimits
from tests.policy.step.steering_settings import settings

BUDGET = OperatorSettings(max_restart_share=0.2, max_restart_slowdown=0.04, max_reloads_per_node=1, max_lease_ttl_s=60.0)


def wish(
    replica_id: str,
    *,
    gain: float = 100.0,
    catch_up_s: float = 2.0,
    slowdown: float = 0.1,
    reload: bool = False,
    node_id: str = "n1",
    since_s: float = 0.0,
) -> PricedWish:
    return PricedWish(
        RestartWish(wish_id=7, lag_tokens=1000, reload=reload),
        replica_id,
        "engine-1",
        node_id,
        Price(gain, 0.0, catch_up_s),
        slowdown,
        since_s,
    )


def granted_ids(leases: tuple[OpenLease, ...]) -> list[str]:
    return [lease.replica_id for lease in leases]


def test_a_fifth_of_the_group_and_at_least_one() -> None:
    wishes = [wish(f"r{number:02}", slowdown=0.0) for number in range(64)]
    assert len(grant(BUDGET, 64, (), {}, wishes, 0.0)) == 12
    assert len(grant(BUDGET, 2, (), {}, wishes, 0.0)) == 1


def test_a_share_of_the_group_that_is_a_whole_number_is_not_lost_to_rounding() -> None:
    budget = OperatorSettings(max_restart_share=0.29)
    assert [max_leases(budget, replicas) for replicas in (3, 6, 7, 100)] == [1, 1, 2, 29]


def test_slow_downs_in_flight_stay_within_their_share_of_the_groups_capacity() -> None:
    wishes = [wish(f"r{number:02}", slowdown=0.5) for number in range(64)]
    assert len(grant(BUDGET, 64, (), {}, wishes, 0.0)) == 5, "0.04 * 64 / 0.5"


def test_a_restart_that_does_not_fit_leaves_the_rest_of_the_budget_to_a_smaller_one() -> None:
    wishes = [wish("a", slowdown=0.3, gain=300.0), wish("b", slowdown=0.2, gain=200.0), wish("c", slowdown=0.1)]
    assert granted_ids(grant(BUDGET, 10, (), {}, wishes, 0.0)) == ["a", "c"], "0.3 + 0.1 is all of 0.04 * 10"


def test_a_restart_that_takes_the_whole_replica_is_granted_only_alone() -> None:
    wishes = [wish("a", slowdown=1.0), wish("b", slowdown=0.01)]
    first = grant(BUDGET, 10, (), {}, wishes, 0.0)
    assert granted_ids(first) == ["a"]
    assert grant(BUDGET, 10, first, {}, wishes, 0.0) == ()


def test_most_gain_per_second_of_catch_up_goes_first_until_another_has_waited() -> None:
    slow, fast = wish("slow", catch_up_s=10.0), wish("fast", catch_up_s=2.0)
    assert granted_ids(grant(BUDGET, 4, (), {}, [slow, fast], 0.0)) == ["fast"]
    late = wish("fast", catch_up_s=2.0, since_s=5 * AGING_S)
    assert granted_ids(grant(BUDGET, 4, (), {}, [slow, late], 5 * AGING_S)) == ["slow"]


def test_a_wish_that_waited_ten_seconds_counts_twice() -> None:
    assert [wish("a", gain=50.0, catch_up_s=2.0, since_s=5.0).rank(now_s) for now_s in (5.0, 15.0, 25.0)] == [25.0, 50.0, 75.0]


def test_a_restart_without_a_reload_does_not_take_the_nodes_place_for_one() -> None:
    wishes = [wish("a", gain=300.0), wish("b", reload=True)]
    assert granted_ids(grant(BUDGET, 64, (), {}, wishes, 0.0)) == ["a", "b"]


def test_reloads_in_flight_are_counted_by_node() -> None:
    budget = OperatorSettings(max_restart_share=1.0, max_restart_slowdown=1.0, max_reloads_per_node=2)
    wishes = [wish(name, reload=name != "c", node_id="n2" if name == "d" else "n1") for name in "abcd"]
    assert reloads_by_node(grant(budget, 4, (), {}, wishes, 0.0)) == {"n1": 2, "n2": 1}


def test_one_reload_a_node_also_beside_other_groups_and_none_stands_in_anothers_way() -> None:
    wishes = [wish("a", reload=True, gain=300.0), wish("b", reload=True, gain=200.0), wish("c", reload=True, node_id="n2")]
    assert granted_ids(grant(BUDGET, 64, (), {}, wishes, 0.0)) == ["a", "c"]
    assert granted_ids(grant(BUDGET, 64, (), {"n1": 1}, wishes, 0.0)) == ["c"]


def test_a_lease_lives_three_catch_ups_and_five_seconds_but_not_longer_than_allowed() -> None:
    (short,) = grant(BUDGET, 4, (), {}, [wish("a", catch_up_s=2.0)], 100.0)
    assert (short.ends_at_s, short.lease.time_to_live_s) == (111.0, 10.0), "the last second is for its last step"
    (long,) = grant(BUDGET, 4, (), {}, [wish("a", catch_up_s=200.0)], 100.0)
    assert long.ends_at_s == 160.0


@pytest.mark.parametrize(
    ("reload_s", "max_ttl_s", "outlives"), [(55.0, 60.0, False), (55.1, 60.0, True), (3.5, 8.0, False), (4.1, 8.0, True)]
)
def test_a_reload_longer_than_a_lease_less_its_way_or_than_half_of_a_short_one_gets_none(
    reload_s: float, max_ttl_s: float, outlives: bool
) -> None:
    budget = OperatorSettings(max_lease_ttl_s=max_ttl_s)
    wished = RestartWish(wish_id=7, lag_tokens=1000, reload=True, reload_seconds=reload_s)
    assert outlives_any_lease(wished, budget) is outlives
    assert not outlives_any_lease(wished.model_copy(update={"reload": False}), budget), "no weights move"


def test_inv_6_a_replica_is_told_a_shorter_time_than_is_counted_so_that_its_last_step_ends_within_that() -> None:
    """Seen under faults: a step that had begun a moment before its lease's end ran on beside the next replica's restart."""
    life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=8)
    without_lease = settings().settings.model_copy(update={"restarts": RestartLimits()})
    life.adopt(without_lease, 0.0)
    life.before_step(0, 0, 0.0)
    life.before_step(1, 1000, 0.0)
    wished = life.wish(1000, 0.0)
    assert wished is not None
    (held,) = grant(BUDGET, 4, (), {}, [replace(wish("a"), wish=wished)], 0.0)
    life.adopt(without_lease.model_copy(update={"restarts": RestartLimits(leases=(held.lease,))}), 0.0)
    now_s = 0.0
    while life.before_step(1, 1000, now_s).catch_up_tokens:
        now_s += 0.99 * LAST_STEP_S
    assert held.ends_at_s - LAST_STEP_S <= now_s < held.ends_at_s


def test_inv_6_a_lease_stays_open_until_its_replica_finished_that_wish_or_its_time_is_over() -> None:
    leases = grant(BUDGET, 4, (), {}, [wish("a")], 0.0)
    assert still_open(leases, {}, 10.9) == leases, "a silent replica may still obey"
    assert still_open(leases, {"a": ("engine-1", 6)}, 1.0) == leases
    assert still_open(leases, {"a": ("engine-2", 99)}, 1.0) == leases, "another engine cannot tell"
    assert still_open(leases, {"a": ("engine-1", 7)}, 1.0) == ()
    assert still_open(leases, {}, 11.0) == ()


@given(
    replicas=st.integers(1, 80),
    share=st.floats(0.01, 1.0),
    slowdown=st.floats(0.01, 1.0),
    reloads=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_inv_6_whatever_is_wished_the_budget_is_kept(replicas: int, share: float, slowdown: float, reloads: int, seed: int) -> None:
    budget = OperatorSettings(max_restart_share=share, max_restart_slowdown=slowdown, max_reloads_per_node=reloads)
    rng = random.Random(seed)
    leases: tuple[OpenLease, ...] = ()
    for now_s in range(5):
        wishes = [
            wish(
                f"r{rng.randrange(replicas)}",
                gain=rng.uniform(-10, 1000),
                slowdown=rng.random(),
                reload=rng.random() < 0.5,
                node_id=f"n{rng.randrange(3)}",
            )
            for _ in range(20)
        ]
        leases += grant(budget, replicas, leases, reloads_by_node(leases), wishes, float(now_s))
        assert len(leases) <= max(1, int(share * replicas + 1e-9))
        assert len(leases) == 1 or sum(lease.slowdown for lease in leases) <= slowdown * replicas + 1e-6
        assert max(reloads_by_node(leases).values(), default=0) <= reloads
        assert len({lease.replica_id for lease in leases}) == len(leases)


def test_two_failed_probes_of_the_last_five_freeze_for_a_while() -> None:
    probes = Probes().plus("a", 1, 1, 2, 0.0).plus("a", 3, 0, 2, 1.0)
    assert probes.frozen_until_s < 0.0
    probes = probes.plus("b", 1, 1, 2, 2.0)
    assert probes.frozen_until_s == 2.0 + FREEZE_S == 302.0
    assert probes.outcomes == ()


def test_failed_probes_further_apart_do_not_freeze() -> None:
    probes = Probes().plus("a", 1, 1, 2, 0.0).plus("a", 4, 0, 2, 1.0).plus("b", 1, 1, 2, 2.0)
    assert probes.frozen_until_s < 0.0


def test_of_a_small_group_the_last_five_probes_are_remembered_and_of_a_larger_one_the_last_of_each_replica() -> None:
    assert Probes().plus("a", 3, 1, 2, 0.0).outcomes == (("a", False), ("a", False), ("a", True))
    assert Probes().plus("a", 1, 1, 2, 0.0).outcomes == (("a", True),)
    assert Probes().plus("a", 9, 0, 2, 0.0).outcomes == (("a", False),) * 5
    assert Probes().plus("a", 2, 0, 3, 0.0).plus("b", 4, 1, 3, 1.0).plus("a", 1, 0, 3, 2.0).outcomes == (("b", True), ("a", False))
    quiet = Probes().plus("a", 1, 1, 3, 0.0)
    assert quiet.plus("a", 0, 0, 3, 1.0) is quiet, "without a restart there is nothing new"


@pytest.mark.parametrize(("voices", "freezes"), [(("liar", "liar", "liar"), False), (("a", "b"), True)])
def test_inv_10_one_replica_alone_freezes_no_group_of_three(voices: tuple[str, ...], freezes: bool) -> None:
    probes = Probes()
    for number, replica_id in enumerate(voices):
        probes = probes.plus(replica_id, 9, 9, 3, float(number))
    assert (probes.frozen_until_s > 0.0) is freezes
