"""Step counters: sums only grow, and only clean steps reach a cell."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.report import Counters

MAXIMUM = 3


@st.composite
def step_counts(draw: st.DrawFn) -> StepCount:
    rows = draw(st.integers(1, 64))
    k = draw(st.integers(0, MAXIMUM))
    survivors = sorted(draw(st.lists(st.integers(0, rows), min_size=k, max_size=k)), reverse=True)
    padding = [0] * (MAXIMUM - k)
    clean = draw(st.booleans())
    return StepCount(
        num_speculative_tokens=k,
        decode_rows=rows,
        context_tokens=draw(st.integers(0, 10_000)),
        prefill_tokens=0 if clean else draw(st.integers(0, 512)),
        generated_tokens=rows + sum(survivors),
        reached=[rows] * k + padding,
        accepted=survivors + padding,
        step_microseconds=draw(st.integers(1, 10_000_000)),
        clean=clean,
        in_transition=False,
        first_tokens=0 if clean else draw(st.integers(0, rows)),
    )


def count(steps: list[StepCount]) -> Counters:
    counters = StepCounters()
    for step in steps:
        counters.count(step)
    return counters.snapshot("engine", guard_holds=2)


@given(st.lists(step_counts(), max_size=40))
def test_the_totals_hold_every_step_and_the_cells_the_clean_ones(steps: list[StepCount]) -> None:
    snapshot = count(steps)
    clean = [step for step in steps if step.clean]
    assert snapshot.step_count == sum(total.steps for total in snapshot.totals) == len(steps)
    assert sum(cell.steps for cell in snapshot.cells if not cell.prefill) == len(clean)
    assert sum(total.draft_tokens for total in snapshot.totals) == sum(sum(step.reached) for step in steps)
    assert sum(total.accepted_tokens for total in snapshot.totals) == sum(sum(step.accepted) for step in steps)
    assert sum(total.first_tokens for total in snapshot.totals) == sum(step.first_tokens for step in steps)
    assert snapshot.busy_seconds == pytest.approx(sum(step.step_microseconds for step in steps) / 1e6)


@given(st.lists(step_counts(), min_size=1, max_size=40))
def test_a_cell_sums_time_and_acceptance_of_its_bucket_and_k(steps: list[StepCount]) -> None:
    for cell in (cell for cell in count(steps).cells if not cell.prefill):
        key = (cell.batch_bucket, cell.num_speculative_tokens)
        own = [step for step in steps if step.clean and (batch_bucket(step.decode_rows), step.num_speculative_tokens) == key]
        logs = [log(step.step_microseconds / 1e6) for step in own]
        assert cell.step_seconds == pytest.approx(sum(step.step_microseconds for step in own) / 1e6)
        assert cell.log_step_seconds == pytest.approx(sum(logs))
        assert cell.log_step_seconds_squared == pytest.approx(sum(value * value for value in logs))
        assert cell.decode_rows == sum(step.decode_rows for step in own)
        assert cell.context_tokens == sum(step.context_tokens for step in own)
        assert cell.accepted == tuple(sum(step.accepted[i] for step in own) for i in range(cell.num_speculative_tokens))
        assert cell.reached == tuple(sum(step.reached[i] for step in own) for i in range(cell.num_speculative_tokens))


@given(st.lists(step_counts(), max_size=20), st.lists(step_counts(), max_size=20))
def test_counters_never_fall(earlier: list[StepCount], later: list[StepCount]) -> None:
    before, after = count(earlier), count(earlier + later)
    assert after.step_count >= before.step_count
    grown = {(cell.batch_bucket, cell.num_speculative_tokens, cell.prefill): cell for cell in after.cells}
    for cell in before.cells:
        assert grown[cell.batch_bucket, cell.num_speculative_tokens, cell.prefill].steps >= cell.steps


@given(st.lists(st.lists(step_counts(), max_size=10), max_size=5))
def test_snapshots_in_between_change_nothing(batches: list[list[StepCount]]) -> None:
    looked_at = StepCounters()
    for steps in batches:
        for step in steps:
            looked_at.count(step)
        looked_at.snapshot("engine")
    assert looked_at.snapshot("engine", guard_holds=2) == count([step for steps in batches for step in steps])


def test_a_snapshot_carries_the_engine_the_holds_and_survives_the_wire() -> None:
    step = StepCount(
        num_speculative_tokens=1,
        decode_rows=2,
        context_tokens=10,
        prefill_tokens=0,
        generated_tokens=3,
        reached=[2, 0],
        accepted=[1, 0],
        step_microseconds=1000,
        clean=True,
        in_transition=True,
    )
    snapshot = count([step])
    assert (snapshot.engine_id, snapshot.guard_holds, snapshot.transition_steps) == ("engine", 2, 1)
    assert Counters.from_wire(snapshot.to_wire()) == snapshot


def test_rows_that_a_drafter_skipped_verify_no_drafts_and_the_step_is_still_one_at_its_k() -> None:
    step = StepCount(2, 8, 800, 0, 9, [8, 8], [1, 0], 1000, clean=True, in_transition=False, undrafted_tokens=14)
    counters = count([step])
    (total,), (cell,) = counters.totals, counters.cells
    assert (total.draft_tokens, total.accepted_tokens) == (2, 1)
    assert tuple(cell.reached)[:2] == (8, 8)


def pure(step_microseconds: int, *, catch_up_tokens: int = 0, k: int = 0, in_transition: bool = False) -> StepCount:
    clean = not (catch_up_tokens or in_transition)
    none = [0] * MAXIMUM
    return StepCount(k, 4, 400, 0, 4, none, none, step_microseconds, clean, in_transition, catch_up_tokens)


def test_catching_up_costs_what_its_steps_take_longer_than_the_last_steps_of_the_bucket_without() -> None:
    snapshot = count([pure(1000), pure(1000), pure(1500, catch_up_tokens=64), pure(1300, catch_up_tokens=30)])
    caught_up = snapshot.catch_up
    assert (caught_up.steps, caught_up.tokens, caught_up.tokens_squared) == (2, 94, 64 * 64 + 30 * 30)
    assert caught_up.seconds == pytest.approx(800e-6)
    assert caught_up.token_seconds == pytest.approx(64 * 500e-6 + 30 * 300e-6)
    assert sum(cell.steps for cell in snapshot.cells) == 2


def test_a_step_in_catch_up_counts_nothing_where_there_is_no_step_to_compare_it_with() -> None:
    for before in ([], [pure(1000, k=2)]):
        assert count([*before, pure(1500, catch_up_tokens=64)]).catch_up.steps == 0
    assert count([pure(1000), pure(1500, catch_up_tokens=64, in_transition=True)]).catch_up.steps == 0


def test_a_snapshot_carries_what_the_drafters_life_counted() -> None:
    snapshot = StepCounters().snapshot("engine", restarts=3, failed_probes=1)
    assert (snapshot.restarts, snapshot.failed_probes) == (3, 1)
