"""The schedule of faults: from a seed, each kind once."""

from __future__ import annotations

from tests.chaos.schedule import ENDS_A_MEASURED_PROCESS, HOUR_S, FaultKind, schedule


def test_a_seed_gives_the_same_faults_each_time_and_another_seed_another_order() -> None:
    assert schedule(1) == schedule(1)
    assert [fault.kind for fault in schedule(1)] != [fault.kind for fault in schedule(2)]


def test_every_kind_comes_once_numbered_in_order() -> None:
    for seed in range(20):
        faults = schedule(seed)
        assert {fault.kind for fault in faults} == set(FaultKind)
        assert [fault.number for fault in faults] == list(range(1, len(FaultKind) + 1))


def test_the_clock_steps_forwards_with_some_seeds_and_backwards_with_others_by_half_an_hour_or_more() -> None:
    steps = [fault.clock_step_s for seed in range(20) for fault in schedule(seed, [FaultKind.CLOCK_STEPPED])]
    assert min(steps) < 0.0 < max(steps)
    assert min(map(abs, steps)) >= HOUR_S / 2


def test_some_kinds_alone_can_be_scheduled() -> None:
    assert {fault.kind for fault in schedule(1, ENDS_A_MEASURED_PROCESS)} == ENDS_A_MEASURED_PROCESS
