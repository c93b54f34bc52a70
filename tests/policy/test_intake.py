"""INV-8 and INV-10 where reports enter: each count counts once, lies count nothing, and memory is bounded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy import intake
from nightjar.policy.decision import fleet as fleet_module
from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.evidence.cells import Cell
from nightjar.policy.intake import observe
from nightjar.policy.state import FleetState
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import (
    NO_ENGINE_ID,
    CatchUpCounters,
    CellCounters,
    Counters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    LoadReport,
)
from tests.policy.engines import AUTO, KEY, Fleet, Replica, best_k

PATIENT = OperatorSettings(evidence_half_life_steps=1e7)


def history(seed: int, reports: int = 6) -> list[LoadReport]:
    """Successive reports of one engine with something new in each."""
    rng, replica, result = random.Random(seed), Replica("a", batch=2), []
    for _ in range(reports):
        for _ in range(rng.randint(1, 6)):
            replica.step(rng.choice((0, 1, 3, 5)), clean=True, rng=rng)
        result.append(replica.report())
    return result


def new_steps(state: FleetState, replica_id: str = "a") -> dict[Cell, float]:
    return {cell: evidence.steps for cell, evidence in state.replicas[replica_id].new_evidence.cells.items()}


def cumulative_steps(report: LoadReport) -> dict[Cell, int]:
    return {Cell(cell.batch_bucket, cell.num_speculative_tokens): cell.steps for cell in report.snapshot.counters.cells}


def take(reports: list[LoadReport], state: FleetState | None = None) -> FleetState:
    state = state or FleetState()
    for number, report in enumerate(reports):
        state, _ = observe(state, report, 0.1 * number, PATIENT)
    return state


@settings(deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_lost_doubled_and_reordered_reports_lose_no_counts_and_add_none(seed: int, data: st.DataObject) -> None:
    sent = history(seed)
    arriving = data.draw(st.lists(st.sampled_from(sent[:-1]), max_size=12))
    state = take([*arriving, sent[-1], *arriving])
    assert new_steps(state) == pytest.approx(cumulative_steps(sent[-1]), rel=1e-2)


def test_a_new_engine_starts_from_zero_and_late_reports_of_the_old_one_count_nothing() -> None:
    old = history(1)
    replica = Replica("a", batch=2, engine_id="engine-2")
    replica.step(0, clean=True, rng=random.Random(0))
    new = replica.report()
    state = take([*old, new, *old])
    expected = cumulative_steps(old[-1])
    expected[Cell(1, 0)] = expected.get(Cell(1, 0), 0) + 1
    assert new_steps(state) == pytest.approx({**expected}, rel=1e-2)
    _, ignored = observe(state, old[-1], 500.0, PATIENT)
    assert ignored == "replica a: engine engine-1 was replaced by engine-2"


def test_busy_time_since_the_policy_counts_is_what_lies_between_reports_of_one_engine_and_counts_once() -> None:
    reports = history(7)
    first, last = (report.snapshot.counters.busy_seconds for report in (reports[0], reports[-1]))
    again = [report.model_copy(update={"report_number": report.report_number + 100}) for report in reports]
    other = [
        report.model_copy(
            update={
                "report_number": 1_000 + report.report_number,
                "snapshot": report.snapshot.model_copy(
                    update={"counters": report.snapshot.counters.model_copy(update={"engine_id": "engine-2"})}
                ),
            }
        )
        for report in reports
    ]
    (once,) = take(reports).groups.values()
    (twice,) = take([*reports, *again]).groups.values()
    (replaced,) = take([*reports, *other]).groups.values()
    assert once.spent is not None
    assert once.spent.since_s == 0.0, "the first report begins at no known time"
    assert once.spent.busy_s == pytest.approx(last - first)
    assert twice.spent == once.spent
    assert replaced.spent is not None
    assert replaced.spent.busy_s == pytest.approx(2.0 * (last - first))
    assert replaced.spent.since_s == 0.0


def test_a_report_heard_before_says_so_and_changes_nothing() -> None:
    (report,) = history(1, reports=1)
    state = take([report])
    assert observe(state, report, 1.0, PATIENT) == (state, "replica a: report 1 was heard before")


def test_an_idle_replica_is_heard_without_new_steps() -> None:
    replica = Replica("a", batch=0)
    state = take([replica.report()])
    state, ignored = observe(state, replica.report(), 7.0, PATIENT)
    assert ignored == ""
    assert state.replicas["a"].heard_at_s == 7.0


def test_a_report_held_up_on_its_way_counts_with_the_next_one() -> None:
    replica, rng = Replica("a", batch=1), random.Random(0)
    state, _ = observe(FleetState(), replica.report(), 0.0, PATIENT)
    for _ in range(1000):
        replica.step(0, clean=True, rng=rng)
    state, ignored = observe(state, replica.report(), 0.1, PATIENT)
    assert "new step seconds, allowed are" in ignored
    assert state.replicas["a"].heard_at_s == 0.1
    state, ignored = observe(state, replica.report(), 7.0, PATIENT)
    assert ignored == ""
    assert new_steps(state)[Cell(0, 0)] == pytest.approx(1000)


CAUGHT_UP = CatchUpCounters(steps=10, tokens=100, tokens_squared=1000, seconds=0.5, token_seconds=5.0)


def restarted(replica: Replica, step_count: int, restarts: int, failed_probes: int) -> LoadReport:
    caught_up = CAUGHT_UP if restarts else CatchUpCounters()
    counters = Counters(
        engine_id="engine-1", step_count=step_count, catch_up=caught_up, restarts=restarts, failed_probes=failed_probes
    )
    return replica.report(snapshot=EngineSnapshot(counters=counters))


def test_what_restarts_cost_waits_for_the_group_and_counts_once() -> None:
    replica = Replica("a", batch=0)
    state, _ = observe(FleetState(), restarted(replica, 0, 0, 0), 0.0, PATIENT)
    report = restarted(replica, 10, 2, 1)
    state, ignored = observe(state, report, 1.0, PATIENT)
    assert ignored == ""
    state, _ = observe(state, report, 1.1, PATIENT)
    new = state.replicas["a"].new_restarts
    assert new == NewRestarts(CatchUpEvidence(10.0, 100.0, 1000.0, 0.5, 5.0), 2, 1)


@pytest.mark.parametrize("silent_first", [False, True])
def test_restarts_and_failed_probes_of_before_the_first_report_count_nothing_but_what_they_cost_does(silent_first: bool) -> None:
    replica, state = Replica("a", batch=0), FleetState()
    if silent_first:
        failed_call = EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID))
        state, _ = observe(state, replica.report(snapshot=failed_call), 0.0, PATIENT)
    state, _ = observe(state, restarted(replica, 10, 9, 5), 1.0, PATIENT)
    assert state.replicas["a"].new_restarts == NewRestarts(CatchUpEvidence(10.0, 100.0, 1000.0, 0.5, 5.0))
    state, _ = observe(state, restarted(replica, 20, 10, 6), 2.0, PATIENT)
    assert (state.replicas["a"].new_restarts.restarts, state.replicas["a"].new_restarts.failed_probes) == (1, 1)


def came_back(fleet: Fleet, silent_s: float = AUTO.replica_timeout_s + 1.0) -> None:
    """All fall silent for so long that the policy forgets them; then they report again, twice."""
    fleet.now_s += silent_s
    fleet.decide_only()
    assert not fleet.state.replicas
    for _ in range(2):
        for replica in fleet.replicas:
            fleet.observe(replica.report())
        fleet.decide()


def test_a_replica_that_comes_back_after_its_timeout_counts_nothing_twice_and_freezes_nothing() -> None:
    replicas = [Replica("a", 16), Replica("b", 16)]
    fleet = Fleet(replicas)
    fleet.run(6.0)
    (before,) = fleet.state.groups.values()
    came_back(fleet)
    (after,) = fleet.state.groups.values()
    assert after.evidence.cells == before.evidence.cells
    assert after.restarts.probes == before.restarts.probes
    assert after.restarts.catch_up == before.restarts.catch_up
    for replica in replicas:
        replica.now_s = fleet.now_s
    fleet.run(2.0)
    (later,) = fleet.state.groups.values()
    assert max(cell.measured_at_s for cell in later.evidence.cells.values()) == fleet.now_s, "what it does from now on counts"
    assert not fleet.refusals


def test_failed_probes_of_before_a_silence_do_not_freeze_the_group_that_hears_of_them_again() -> None:
    replica = Replica("a", batch=0)
    state, _ = observe(FleetState(), restarted(replica, 0, 0, 0), 0.0, AUTO)
    state, _ = observe(state, restarted(replica, 10, 4, 2), 1.0, AUTO)
    _, state = decide(state, AUTO, (), 1.0, random.Random(0))
    _, state = decide(state, AUTO, (), 400.0, random.Random(0))
    state, _ = observe(state, restarted(replica, 10, 4, 2), 401.0, AUTO)
    _, state = decide(state, AUTO, (), 401.0, random.Random(0))
    (group,) = state.groups.values()
    assert group.restarts.probes.frozen_until_s < 401.0


def test_a_replica_that_comes_back_with_a_failed_call_first_counts_nothing_twice_either() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(4.0)
    (before,) = fleet.state.groups.values()
    fleet.now_s += AUTO.replica_timeout_s + 1.0
    fleet.decide_only()
    fleet.observe(fleet.replicas[0].report(snapshot=EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID))))
    fleet.observe(fleet.replicas[0].report())
    fleet.decide()
    (after,) = fleet.state.groups.values()
    assert after.evidence.cells == before.evidence.cells


def test_a_replica_that_comes_back_with_a_new_engine_loses_none_of_its_first_steps() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(4.0)
    fleet.now_s += AUTO.replica_timeout_s + 1.0
    fleet.decide_only()
    new = Replica("a", 16, engine_id="engine-2", now_s=fleet.now_s)
    new.step(0, clean=True, rng=fleet.rng)
    fleet.observe(new.report())
    assert new_steps(fleet.state) == {Cell(batch_bucket(16), 0): 1.0}


def test_inv_8_of_those_that_fell_silent_no_more_are_remembered_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "MAX_REPLICAS", 3)
    state = FleetState()
    for number in range(8):
        state, _ = observe(state, Replica(f"r{number}").report(), 100.0 * number, AUTO)
        _, state = decide(state, AUTO, (), 100.0 * number + 50.0, random.Random(0))
    assert list(state.departed) == ["r5", "r6", "r7"]


def test_squares_that_no_steps_can_have_are_held_to_what_the_longest_have() -> None:
    counters = Counters(engine_id="engine-1", step_count=10, cells=(cell(log_step_seconds_squared=1e13),))
    state, _ = observe(FleetState(), Replica("a", batch=2).report(snapshot=EngineSnapshot(counters=counters)), 0.0, PATIENT)
    (told,) = state.replicas["a"].new_evidence.cells.values()
    assert told.log_seconds_squared == pytest.approx(10 * math.log(1e-5) ** 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"catch_up": CAUGHT_UP.model_copy(update={"steps": 9})},
        {"catch_up": CAUGHT_UP.model_copy(update={"tokens": 90})},
        {"catch_up": CAUGHT_UP.model_copy(update={"steps": 11, "tokens": 200, "tokens_squared": 2000})},
        {"catch_up": CAUGHT_UP.model_copy(update={"seconds": 60.0})},
        {"catch_up": CAUGHT_UP.model_copy(update={"token_seconds": 1e9})},
        {"catch_up": CAUGHT_UP, "restarts": 2, "failed_probes": 9},
    ],
)
def test_restarts_no_engine_can_have_are_left_out(changes: dict[str, object]) -> None:
    replica = Replica("a", batch=0)
    before = Counters(engine_id="engine-1", step_count=10, catch_up=CAUGHT_UP)
    after = Counters.model_validate({"engine_id": "engine-1", "step_count": 20, **changes})
    state, _ = observe(FleetState(), replica.report(snapshot=EngineSnapshot(counters=before)), 0.0, PATIENT)
    state, ignored = observe(state, replica.report(snapshot=EngineSnapshot(counters=after)), 1.0, PATIENT)
    assert ignored.endswith("its counts are left out")
    assert state.replicas["a"].new_restarts.catch_up.steps == 10.0


def cell(**changes: object) -> CellCounters:
    fields: dict[str, object] = {
        "batch_bucket": 1,
        "num_speculative_tokens": 2,
        "steps": 10,
        "step_seconds": 1.0,
        "log_step_seconds": 10 * math.log(0.1),
        "decode_rows": 20,
        "generated_tokens": 40,
        "reached": (20, 18),
        "accepted": (14, 6),
    }
    return CellCounters.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("absurd", "said"),
    [
        (cell(num_speculative_tokens=6), "K above the group's 5"),
        (cell(batch_bucket=20), "a bucket above max_num_seqs 256"),
        (cell(step_seconds=1e-6), "1e-07 s a step, allowed are 1e-05 to 600"),
        (cell(step_seconds=6001.0), "600 s a step, allowed are 1e-05 to 600"),
        (cell(log_step_seconds=-1.0), "mean log step time -0.1 does not fit 0.1 s a step"),
        (cell(decode_rows=200), "200 rows in 10 steps of 2 to 2 rows"),
        (cell(generated_tokens=61), "61 generated tokens, allowed are 0 to 60"),
        (cell(accepted=(19, 19)), "19 accepted of 18 reached"),
        (cell(accepted=(5, 6)), "6 accepted of 18 reached where 5 of 20 came before"),
        (cell(reached=(21, 18)), "14 accepted of 21 reached"),
        (cell(reached=(20,)), "1 positions reached, 2 accepted"),
        (
            cell(steps=200, step_seconds=20.0, log_step_seconds=200 * math.log(0.1), decode_rows=400),
            "200 new steps in cells among 100 new steps",
        ),
    ],
)
def test_counters_no_engine_can_have_are_left_out_with_what_was_wrong(absurd: CellCounters, said: str) -> None:
    counters = Counters(engine_id="engine-1", step_count=100, cells=(absurd,))
    report = Replica("a", batch=2).report()
    report = report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"counters": counters})})
    state, ignored = observe(FleetState(), report, 0.0, PATIENT)
    assert said in ignored
    assert new_steps(state) == {}


def test_counts_that_fall_are_left_out() -> None:
    def reported(step_count: int, *cells: CellCounters) -> LoadReport:
        report = Replica("a", batch=2, report_number=step_count).report()
        counters = Counters(engine_id="engine-1", step_count=step_count, cells=cells)
        return report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"counters": counters})})

    state, _ = observe(FleetState(), reported(100, cell()), 0.0, PATIENT)
    for later, said in (
        (reported(101, cell(steps=9)), "cell (bucket 1, K=2): -1 steps more than before"),
        (reported(101), "cell (bucket 1, K=2): counted before and missing now"),
        (reported(101, cell(), cell()), "2 cells, of which only 1 differ"),
    ):
        after, ignored = observe(state, later, 10.0, PATIENT)
        assert said in ignored
        assert after.replicas["a"].counted == state.replicas["a"].counted


@pytest.mark.parametrize("drafter_state", [DrafterState.DORMANT, DrafterState.OFFLOADED, DrafterState.ACTIVE])
def test_a_batch_larger_than_the_group_allows_does_not_stop_the_fleet_from_deciding(drafter_state: DrafterState) -> None:
    """INV-10."""
    fleet = Fleet([Replica("a", batch=2), Replica("b", batch=2)])
    fleet.run(5.0)
    liar = fleet.replicas[0].report()
    snapshot = liar.snapshot.model_copy(update={"load": EngineLoad(decode_batch_size=4096), "drafter_state": drafter_state})
    state, _ = observe(fleet.state, liar.model_copy(update={"snapshot": snapshot}), fleet.now_s, AUTO)
    decisions, _ = decide(state, AUTO, (), fleet.now_s + 1.0, random.Random(0))
    assert set(decisions) == {"a", "b"}
    assert state.replicas["a"].report.snapshot.load.decode_batch_size == KEY.max_num_seqs


def test_a_failed_call_of_the_engine_tells_that_the_replica_lives_and_retires_no_engine() -> None:
    first, second = history(3, reports=2)
    state, _ = observe(FleetState(), first, 0.0, PATIENT)
    failed = first.model_copy(update={"snapshot": EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID), refused="it hangs")})
    state, said = observe(state, failed, 7.0, PATIENT)
    assert said == ""
    assert state.replicas["a"].heard_at_s == 7.0
    state, said = observe(state, second, 8.0, PATIENT)
    assert said == ""
    spared, _ = observe(observe(FleetState(), first, 0.0, PATIENT)[0], second, 8.0, PATIENT)
    assert new_steps(state) == new_steps(spared)


def scaled(report: LoadReport, change: Callable[[CellCounters], dict[str, object]]) -> LoadReport:
    counters = report.snapshot.counters
    cells = tuple(entry.model_copy(update=change(entry)) for entry in counters.cells)
    snapshot = report.snapshot.model_copy(update={"counters": counters.model_copy(update={"cells": cells})})
    return report.model_copy(update={"snapshot": snapshot})


def ten_times_faster(entry: CellCounters) -> dict[str, object]:
    faster = entry.num_speculative_tokens == 0
    return {
        "step_seconds": entry.step_seconds / (10 if faster else 1),
        "log_step_seconds": entry.log_step_seconds - (math.log(10) * entry.steps if faster else 0),
    }


def ten_times_slower_when_speculating(entry: CellCounters) -> dict[str, object]:
    slower = entry.num_speculative_tokens > 0
    return {
        "step_seconds": entry.step_seconds * (10 if slower else 1),
        "log_step_seconds": entry.log_step_seconds + (math.log(10) * entry.steps if slower else 0),
    }


def ten_times_the_counts(entry: CellCounters) -> dict[str, object]:
    return {
        "steps": entry.steps * 10,
        "decode_rows": entry.decode_rows * 10,
        "step_seconds": entry.step_seconds * 10,
        "log_step_seconds": entry.log_step_seconds * 10,
        "reached": tuple(10 * rows for rows in entry.reached),
        "accepted": tuple(10 * rows for rows in entry.reached),
    }


def nothing_accepted(entry: CellCounters) -> dict[str, object]:
    return {"accepted": (0,) * len(entry.accepted)}


def all_accepted(entry: CellCounters) -> dict[str, object]:
    return {"accepted": entry.reached}


LIES: dict[str, Callable[[CellCounters], dict[str, object]]] = {
    "off ten times faster": ten_times_faster,
    "speculation ten times slower": ten_times_slower_when_speculating,
    "ten times the counts": ten_times_the_counts,
    "nothing accepted": nothing_accepted,
    "all accepted": all_accepted,
}


def lied(report: LoadReport, lie: str, first: LoadReport) -> LoadReport:
    if lie == "stale":
        return first.model_copy(update={"report_number": report.report_number})
    return scaled(report, LIES[lie])


@pytest.mark.parametrize("lie", [*LIES, "stale"])
@pytest.mark.parametrize("honest_for_s", [0.0, 6.0])
def test_inv_10_one_liar_of_sixteen_moves_no_plan(lie: str, honest_for_s: float) -> None:
    liar = Replica("liar")
    fleet = Fleet([liar, *(Replica(f"r{number:02}") for number in range(15))])
    fleet.run(honest_for_s)
    first = liar.report()
    assert not honest_for_s or fleet.planned(1) == best_k(1)
    fleet.replicas = fleet.replicas[1:]
    for _ in range(12):
        liar.run_until(fleet.now_s + 0.5, fleet.rng)
        fleet.observe(lied(liar.report(), lie, first))
        fleet.run(0.5)
        liar.adopt(fleet.decisions["liar"])
        assert not honest_for_s or fleet.planned(1) == best_k(1)
    assert fleet.planned(1) == best_k(1)


def test_what_only_one_of_three_replicas_measured_serves_all_of_them() -> None:
    fleet = Fleet([Replica("a", 1), Replica("b", 0), Replica("c", 0)])
    fleet.run(5.0)
    assert fleet.replicas[0].k == best_k(1)
    assert fleet.planned(1) == best_k(1)
    assert all(replica.own is None for replica in fleet.state.replicas.values())


def test_inv_8_at_the_bound_of_groups_one_without_replicas_makes_room_and_one_with_them_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "MAX_NAMED", 1)
    other = KEY.model_copy(update={"target": "other"})
    state = take([Replica("a").report()])
    _, ignored = observe(state, Replica("b").report(group=other), 1.0, PATIENT)
    assert ignored == f"group {other.group_id}: 1 groups are tracked already, and no more are taken"
    moved, ignored = observe(FleetState(groups=state.groups), Replica("b").report(group=other), 1.0, PATIENT)
    assert ignored == ""
    assert list(moved.groups) == [other.group_id]


def test_inv_8_a_replica_that_reports_for_long_takes_no_more_room() -> None:
    replica, rng = Replica("a", batch=2), random.Random(0)
    fleet = Fleet([replica])
    sizes = []
    for number in range(40):
        replica.engine_id = f"engine-{number}"
        replica.step(0, clean=True, rng=rng)
        fleet.run(0.1)
        state = fleet.state.replicas["a"]
        sizes.append((len(state.retired_engine_ids), len(state.new_evidence.cells), len(state.report.snapshot.counters.cells)))
    assert max(sizes) <= (intake.MAX_RETIRED_ENGINES, 4, 0)
