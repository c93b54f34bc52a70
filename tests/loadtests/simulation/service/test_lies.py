"""Lies about what an engine measured: each is what it says, and reaches the policy as bytes."""

from __future__ import annotations

import math

import pytest

from nightjar.loadtests.simulation.service.lies import LIES, Lie, liar
from nightjar.policy.wire.record import WireError
from nightjar.policy.wire.report import CellCounters, Counters, EngineSnapshot, GroupKey, LoadReport


def honest(report_number: int = 7) -> LoadReport:
    cells = tuple(
        CellCounters(
            batch_bucket=2,
            num_speculative_tokens=length,
            steps=100,
            step_seconds=1.0,
            log_step_seconds=-460.5,
            log_step_seconds_squared=2120.8,
            decode_rows=300,
            generated_tokens=400,
            reached=(300,) * length,
            accepted=(100,) * length,
        )
        for length in (0, 1)
    )
    counters = Counters(engine_id="e", step_count=200 + report_number, busy_seconds=2.0, cells=cells)
    group = GroupKey(target="llama", max_num_speculative_tokens=1, max_num_seqs=8)
    return LoadReport(
        replica_id="r", application="chat", group=group, report_number=report_number, snapshot=EngineSnapshot(counters=counters)
    )


@pytest.mark.parametrize(("lie", "factor", "accepted"), [("times_ten", 10.0, 0), ("tenth", 0.1, 300)])
def test_speculating_steps_are_told_slower_or_faster_and_the_others_as_they_were(lie: Lie, factor: float, accepted: int) -> None:
    off, on = LoadReport.from_wire(liar(lie)(honest())).snapshot.counters.cells
    assert off == honest().snapshot.counters.cells[0]
    assert on.step_seconds == pytest.approx(factor)
    assert on.log_step_seconds / on.steps == pytest.approx(-4.605 + math.log(factor))
    variance = on.log_step_seconds_squared / on.steps - (on.log_step_seconds / on.steps) ** 2
    assert variance == pytest.approx(21.208 - 4.605**2)
    assert on.accepted == (accepted,)


@pytest.mark.parametrize("lie", ["nan", "negative"])
def test_numbers_that_no_counter_holds_are_no_report(lie: Lie) -> None:
    with pytest.raises(WireError):
        LoadReport.from_wire(liar(lie)(honest()))


def test_a_stale_liar_tells_its_first_report_for_ever() -> None:
    lying = liar("stale")
    assert [LoadReport.from_wire(lying(honest(number))).report_number for number in (7, 8)] == [7, 8]
    assert LoadReport.from_wire(lying(honest(9))).snapshot == honest(7).snapshot
    assert set(LIES) == {"times_ten", "tenth", "nan", "negative", "stale"}
