"""Who waits: looks at the load that reports tell, which fade, and of a group the median replica's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.mixed_steps import TRAFFIC_HALF_LIFE_S
from nightjar.policy.evidence.waits import NO_WAITS, Waits, waits_of_group
from nightjar.policy.wire.report import EngineLoad
from tests.policy.engines import Fleet, Replica

LOADS = st.builds(
    EngineLoad,
    decode_batch_size=st.integers(0, 8),
    num_running_reqs=st.integers(0, 1_000_000),
    num_waiting_reqs=st.integers(0, 10_000_000),
    num_deferred_reqs=st.integers(0, 10_000_000),
    kv_cache_usage=st.floats(0.0, 1.0),
)


def test_looks_lose_half_of_their_weight_in_their_half_life_and_all_of_it_before_the_first() -> None:
    seen = NO_WAITS.after(EngineLoad(decode_batch_size=2, num_running_reqs=2), 8, math.inf)
    assert seen == Waits(looks=1.0, busy=1.0, decoding=1.0)
    assert seen.after(EngineLoad(), 8, TRAFFIC_HALF_LIFE_S) == Waits(looks=1.5, busy=0.5, decoding=0.5)


def test_requests_that_wait_beside_a_full_cache_wait_for_kv_and_others_for_prompt_compute() -> None:
    free, full = (
        EngineLoad(decode_batch_size=2, num_running_reqs=2, num_waiting_reqs=3, kv_cache_usage=used) for used in (0.5, 0.95)
    )
    assert NO_WAITS.after(free, 8, 1.0).share_beside_prefill == 1.0
    assert NO_WAITS.after(full, 8, 1.0).share_beside_prefill == 0.0
    assert NO_WAITS.after(free, 2, 1.0).share_beside_prefill == 0.0


def test_requests_that_can_run_in_no_step_yet_do_not_wait_for_the_engine() -> None:
    load = EngineLoad(decode_batch_size=2, num_running_reqs=2, num_waiting_reqs=3, num_deferred_reqs=3)
    assert NO_WAITS.after(load, 8, 1.0).is_nobody


@given(st.lists(st.tuples(LOADS, st.floats(0.0, 1e6)), min_size=1, max_size=20))
def test_whatever_is_reported_shares_are_shares_and_no_more_wait_than_were_told(reports: list[tuple[EngineLoad, float]]) -> None:
    waits = NO_WAITS
    for load, elapsed_s in reports:
        waits = waits.after(load, 8, elapsed_s)
    assert 0.0 <= waits.share_beside_prefill <= 1.0 + 1e-9
    assert 0.0 <= waits.load < 1.0
    assert waits.mean_waiting <= max(load.num_waiting_reqs for load, _ in reports) + 1e-6
    assert 0.0 <= waits.mean_prefilling <= 8.0 + 1e-9


@given(st.lists(LOADS, min_size=1, max_size=10))
def test_one_liar_of_three_moves_no_ratio_beyond_what_the_others_tell(lies: list[EngineLoad]) -> None:
    honest = [
        NO_WAITS.after(EngineLoad(decode_batch_size=4, num_running_reqs=4 + count, num_waiting_reqs=count), 8, 1.0)
        for count in (1, 2)
    ]
    liar = NO_WAITS
    for lie in lies:
        liar = liar.after(lie, 8, 0.5)
    group = waits_of_group([*honest, liar])
    assert 1.0 <= group.mean_waiting <= 2.0
    assert 1.0 <= group.mean_prefilling <= 2.0
    assert group.share_beside_prefill == 1.0


def test_a_group_without_rows_waits_for_nothing() -> None:
    idle = NO_WAITS.after(EngineLoad(num_running_reqs=3, num_waiting_reqs=9), 8, 1.0)
    assert waits_of_group([]) == waits_of_group([idle, NO_WAITS]) == NO_WAITS


def test_replicas_that_were_idle_for_a_quarter_of_an_hour_do_not_tell_who_waits_now() -> None:
    burst, busy = (EngineLoad(decode_batch_size=8, num_running_reqs=8, num_waiting_reqs=waiting) for waiting in (40, 0))
    idle = NO_WAITS.after(burst, 8, 1.0).after(EngineLoad(), 8, 15 * TRAFFIC_HALF_LIFE_S)
    group = waits_of_group([idle, idle, NO_WAITS.after(busy, 8, 1.0)])
    assert (group.mean_waiting, group.is_nobody) == (0.0, True)


def test_each_report_is_a_look_and_one_that_was_heard_before_is_none() -> None:
    seen = Fleet([Replica("r1", 4)])
    report = seen.replicas[0].report()
    load = report.snapshot.load.model_copy(update={"num_running_reqs": 4, "num_waiting_reqs": 2})
    told = report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"load": load})})
    for _ in range(2):
        seen.observe(told)
    assert seen.state.replicas["r1"].waits == Waits(1.0, 1.0, 1.0, 1.0, 2.0, 0.0)
    later = told.model_copy(update={"report_number": told.report_number + 1})
    seen.now_s += TRAFFIC_HALF_LIFE_S
    seen.observe(later)
    assert seen.state.replicas["r1"].waits.waiting == pytest.approx(3.0)
