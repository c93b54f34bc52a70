"""One group's decision about restarts: who is granted what, what goes without a lease, and what everybody is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.restarts.leases import GroupRestarts, PlanGoodput, Restarter, decide_restarts, switch_costs
from nightjar.policy.restarts.on_time import LoadState, TransitionCounts, TransitionWeight
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, buckets_up_to
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import RestartWish
from nightjar.policy.wire.settings import RestartLimits
from nightjar.policy.words import in_words

OFF_STEP_S = 0.02
CROSSOVER = 32
SETTINGS = OperatorSettings()


def going(transitions: Iterable[tuple[int, int]], count: float) -> GroupRestarts:
    """A group that was seen to move so, and not otherwise."""
    weights = TransitionWeight(count, count)
    return GroupRestarts(
        transitions=TransitionCounts(
            {(LoadState(one, is_falling=True), LoadState(two, is_falling=True)): weights for one, two in transitions}, 0.0
        )
    )


STAYS = going([(bucket, bucket) for bucket in range(12)], 1000.0)
"""A group whose load never moves."""


def goodput(bucket: int, k: int) -> float | None:
    """Speculation gains a fifth below the crossover and loses a fifth above."""
    off = 1.2 * FIRST_BATCH_SIZES[bucket] / OFF_STEP_S
    if not k:
        return off
    return off * (1.2 if FIRST_BATCH_SIZES[bucket] < CROSSOVER else 0.8)


def plan_goodput_of(goodput: Callable[[int, int], float | None]) -> PlanGoodput:
    """K = 3 runs below the crossover."""
    buckets = buckets_up_to(128)
    planned = tuple(3 if FIRST_BATCH_SIZES[bucket] < CROSSOVER else 0 for bucket in buckets)
    return PlanGoodput(
        accelerator="H100",
        max_num_seqs=128,
        planned=planned,
        planned_goodput=tuple(map(goodput, buckets, planned)),
        off_goodput=tuple(goodput(bucket, 0) for bucket in buckets),
        is_local=False,
    )


PROSPECT = plan_goodput_of(goodput)


def member(batch: int = 4, lag: int = 20_000, **changes: object) -> Restarter:
    present = Restarter(
        engine_id="e",
        node_id="n",
        decode_batch_size=batch,
        finished_wish_id=0,
        wish=RestartWish(wish_id=1, lag_tokens=lag) if lag else None,
        is_steered=True,
        is_ordered=False,
        new=NewRestarts(),
    )
    return replace(present, **changes)  # type: ignore[arg-type]


def limits_of(
    present: Restarter,
    known: GroupRestarts = STAYS,
    plan_goodput: PlanGoodput = PROSPECT,
    *,
    why_none: Code | None = None,
    now_s: float = 1.0,
) -> RestartLimits:
    return decide_restarts(known, {"a": present}, plan_goodput, SETTINGS, {}, why_none, now_s)[1]["a"]


def test_a_restart_that_pays_is_granted() -> None:
    limits = limits_of(member())
    assert [lease.wish_id for lease in limits.leases] == [1]
    assert in_words(limits.causes) == "holds a lease to restart"


@pytest.mark.parametrize(
    ("present", "known"),
    [
        (member(batch=64), STAYS),
        (member(batch=24, lag=10**6), STAYS),
        (member(lag=40_000), going([(3, 10)], 1000.0)),
    ],
    ids=["the plan is off there", "too much to catch up", "the load leaves at once"],
)
def test_a_restart_that_does_not_pay_is_not_granted_and_says_so(present: Restarter, known: GroupRestarts) -> None:
    limits = limits_of(present, known)
    assert limits.leases == ()
    assert in_words(limits.causes) == "stays off: a restart would not pay"


def test_what_a_person_or_a_measurement_orders_need_not_pay() -> None:
    assert limits_of(member(batch=64, is_ordered=True)).leases


def test_a_replica_that_is_not_steered_gets_no_lease() -> None:
    assert limits_of(member(is_steered=False)) == limits_of(member(lag=0)).model_copy(update={"leases": (), "causes": ()})


@pytest.mark.parametrize("most_s", [5.0, 60.0])
def test_a_reload_that_no_lease_outlives_is_refused_in_words_and_holds_up_nobody(most_s: float) -> None:
    settings = SETTINGS.model_copy(update={"max_lease_ttl_s": most_s})

    def wishing(seconds: float) -> Restarter:
        return member(wish=RestartWish(wish_id=1, lag_tokens=100, reload=True, reload_seconds=seconds), is_ordered=True)

    def decided(**members: Restarter) -> dict[str, RestartLimits]:
        return decide_restarts(STAYS, members, PROSPECT, settings, {}, None, 1.0)[1]

    slow = wishing(0.95 * most_s)
    assert decided(slow=slow)["slow"].leases == ()
    beside = decided(slow=slow, quick=wishing(0.1))
    assert beside["slow"].leases == ()
    assert in_words(beside["slow"].causes) == (
        "stays off: its draft's weights took longer to move than a lease lives (raise max_lease_ttl_s)"
    )
    assert beside["quick"].leases


def test_a_new_policy_says_that_it_must_wait() -> None:
    limits = limits_of(member(), why_none=Code.NEW_POLICY)
    assert limits.leases == ()
    assert in_words(limits.causes) == "waits for a lease: a new policy grants none yet"


def catch_ups(steps: int, tokens: int, seconds: float) -> CatchUpEvidence:
    """Steps that recomputed so many tokens each, in so many seconds each beyond an OFF step."""
    return CatchUpEvidence(steps, steps * tokens, steps * tokens**2, steps * seconds, steps * tokens * seconds)


def test_c_switch_is_what_restarts_cost_by_lag_and_batch_and_nothing_before_the_first() -> None:
    assert switch_costs(CatchUpEvidence(), PROSPECT, SETTINGS) == ()
    seen = catch_ups(200, 64, 0.002 + 64e-6).sum(catch_ups(200, 1024, 0.002 + 1024e-6))
    costs = {(lag, batch): seconds for lag, batch, seconds in switch_costs(seen, PROSPECT, SETTINGS)}
    assert {batch for _, batch in costs} == {1, 4, 16, 64, 128}
    assert costs[128, 1] == pytest.approx(0.002 + 128e-6, rel=0.05)
    assert costs[512, 64] > 2 * 0.002 + 512 * 64e-6  # in chunks, each with its fixed part
    assert costs[512, 64] > costs[512, 4] > costs[128, 4] > costs[128, 1]


def test_those_beyond_the_budget_wait_and_are_told() -> None:
    members = {f"r{number}": member() for number in range(3)}
    after, limits, _ = decide_restarts(STAYS, members, PROSPECT, SETTINGS, {}, None, 1.0)
    assert sorted(in_words(mine.causes) for mine in limits.values()) == [
        "holds a lease to restart",
        "waits for a lease",
        "waits for a lease",
    ]
    again, _, _ = decide_restarts(after, members, PROSPECT, SETTINGS, {}, None, 5.0)
    assert set(again.waiting_since_s.values()) == {1.0}


def test_a_lease_is_sent_again_until_its_wish_is_finished() -> None:
    after, first, _ = decide_restarts(STAYS, {"a": member()}, PROSPECT, SETTINGS, {}, None, 1.0)
    after, second, _ = decide_restarts(after, {"a": member(lag=0)}, PROSPECT, SETTINGS, {}, None, 2.0)
    assert second["a"].leases == first["a"].leases
    _, third, _ = decide_restarts(after, {"a": member(lag=0, finished_wish_id=1)}, PROSPECT, SETTINGS, {}, None, 3.0)
    assert third["a"].leases == ()


def test_micro_restarts_are_smaller_where_they_pay_less() -> None:
    leaving = going([(bucket, 11) for bucket in range(10)], 1e6)
    little = plan_goodput_of(lambda bucket, k: 1000.0 * (1 + bucket) * (1.01 if k else 1.0))
    much = plan_goodput_of(lambda bucket, k: 1000.0 * (1 + bucket) * (1.2 if k else 1.0))
    few, many = (limits_of(member(lag=0), leaving, plan_goodput).micro_restart_tokens for plan_goodput in (little, much))
    assert 0 < few < many


def test_where_no_bucket_pays_small_restarts_stay_allowed_for_measurements() -> None:
    losing = plan_goodput_of(lambda _bucket, k: 100.0 - k)
    assert limits_of(member(lag=0), STAYS, losing).micro_restart_tokens > 0


def test_a_replica_above_the_crossover_gets_the_bounds_of_where_it_would_restart() -> None:
    assert limits_of(member(batch=100, lag=0)) == limits_of(member(batch=CROSSOVER - 1, lag=0))


def test_an_engine_that_plans_for_itself_restarts_as_it_likes_within_what_goes_unnoticed() -> None:
    local = replace(PROSPECT, planned=(0,) * len(PROSPECT.planned), is_local=True)
    assert limits_of(member(batch=64), STAYS, local).leases


def test_chunks_grow_with_what_catching_up_turns_out_to_cost() -> None:
    cheap = CatchUpEvidence(1000.0, 1000 * 256.0, 1000 * 256.0**2 + 1e7, 1000 * 0.001, 1000 * 0.256)
    assert limits_of(member(), replace(STAYS, catch_up=cheap)).catch_up_chunk_tokens == 2048
    first = limits_of(member()).catch_up_chunk_tokens
    assert first is not None
    assert 4 * FIRST_BATCH_SIZES[batch_bucket(4)] <= first < 2048
