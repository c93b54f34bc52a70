"""What a group may spend on measuring: a share of what it generates, whoever idles and whoever boasts (INV-3, INV-10)."""

from __future__ import annotations

import pytest

from nightjar.policy.exploration import PATIENT_SHARE, Allowance
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import LoadReport
from tests.policy.engines import MAX_NUM_SEQS, Fleet, Replica

BATCH = 16
NOTHING_TO_MEASURE = parse_operator_settings({"mode": "auto", "allowed_num_speculative_tokens": (0,)})
"""Under which what is earned is not spent."""


def allowance_of(fleet: Fleet) -> Allowance:
    (group,) = fleet.state.groups.values()
    return group.exploration.allowance


def generated_tokens(replica: Replica) -> int:
    return sum(total.generated_tokens for total in replica.counters.snapshot("engine-1").totals)


def boasted(report: LoadReport) -> LoadReport:
    """The largest batch that the group allows, and a thousand times the tokens."""
    snapshot = report.snapshot
    totals = tuple(
        total.model_copy(update={"generated_tokens": 1000 * total.generated_tokens}) for total in snapshot.counters.totals
    )
    told = {
        "load": snapshot.load.model_copy(update={"decode_batch_size": MAX_NUM_SEQS}),
        "counters": snapshot.counters.model_copy(update={"totals": totals}),
    }
    return report.model_copy(update={"snapshot": snapshot.model_copy(update=told)})


@pytest.mark.parametrize("idle", [0, 1, 9])
def test_a_group_earns_by_what_its_busy_replicas_generate_however_many_idle(idle: int) -> None:
    busy = [Replica("a", BATCH), Replica("b", BATCH), Replica("c", BATCH)]
    fleet = Fleet([*busy, *(Replica(f"idle-{number}", 0) for number in range(idle))], NOTHING_TO_MEASURE)
    fleet.run(6.0)
    earned = allowance_of(fleet)
    assert earned.most_rows == 3.0 * BATCH
    assert earned.patient_tokens == pytest.approx(PATIENT_SHARE * sum(map(generated_tokens, busy)), rel=0.15)


@pytest.mark.parametrize("honest", [2, 3, 8])
def test_inv_10_a_replica_that_boasts_earns_its_group_no_more_than_one_that_is_as_busy_as_the_others(honest: int) -> None:
    liar, others = Replica("liar", BATCH), [Replica(f"r{number}", BATCH) for number in range(honest)]
    fleet = Fleet(others, NOTHING_TO_MEASURE)
    for _ in range(8):
        liar.run_until(fleet.now_s + 0.5, fleet.rng)
        fleet.observe(boasted(liar.report()))
        fleet.run(0.5)
    told = allowance_of(fleet)
    assert told.most_rows == 3.0 * BATCH
    output = sum(map(generated_tokens, others)) + max(map(generated_tokens, others))
    assert 0.0 < told.patient_tokens <= 1.05 * PATIENT_SHARE * output


def test_a_replica_that_works_alone_may_measure_at_its_own_batch() -> None:
    fleet = Fleet([Replica("a", BATCH), Replica("b", 0), Replica("c", 0)])
    fleet.run(1.0)
    assert allowance_of(fleet).most_rows == 3.0 * BATCH
