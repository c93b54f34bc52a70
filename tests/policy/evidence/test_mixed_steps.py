"""Steps with prefill: counted apart, merged robustly, and charged to the K that prolongs them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence, Floats
from nightjar.policy.evidence.mixed_steps import MixedShare, charge, mixed_costs, per_token
from nightjar.policy.evidence.mixed_steps import mixed_seconds as predicted_seconds
from nightjar.policy.evidence.step_time import StepTimes, predict_step_times
from nightjar.policy.intake import observe
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.fleet import fleet_plan
from nightjar.policy.state import FleetState
from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, buckets_up_to
from nightjar.policy.wire.report import CellCounters, Counters, LoadReport
from nightjar.policy.wire.settings import k_at
from nightjar.policy.words import in_words
from tests.policy.engines import AUTO, KEY, Replica

KS = (0, 1, 3, 5)
MEMORY_S = 0.020
TOKEN_S = 1e-4
DRAFT_S = 0.001
DRAFT_PROMPT_S = 5e-6


def clean_seconds(rows: float, k: int) -> float:
    return max(MEMORY_S, TOKEN_S * rows * (1 + k)) + DRAFT_S * k


def mixed_seconds(rows: float, k: int, prefill: float) -> float:
    """Bound by compute: every token counts, and the drafter reads the prompt."""
    return TOKEN_S * (rows * (1 + k) + prefill) + DRAFT_S * k + DRAFT_PROMPT_S * prefill * (k > 0)


def clean_cells() -> dict[Cell, CellEvidence]:
    cells = {}
    for bucket in buckets_up_to(KEY.max_num_seqs):
        rows = FIRST_BATCH_SIZES[bucket]
        for k in KS:
            cells[Cell(bucket, k)] = CellEvidence(400.0, 400.0 * float(np.log(clean_seconds(rows, k))), 400.0 * rows)
    return cells


def with_prefill(steps: float, seconds: float, rows: float, prefill_tokens: float, draft_tokens: float) -> CellEvidence:
    return CellEvidence(steps, seconds=seconds, rows=rows, prefill_tokens=prefill_tokens, draft_tokens=draft_tokens)


def mixed_cells(ks: tuple[int, ...] = KS) -> dict[Cell, CellEvidence]:
    cells = {}
    for bucket in range(4, 12):
        rows = FIRST_BATCH_SIZES[bucket]
        for place, k in enumerate(ks):
            prefill = 500.0 + 100.0 * ((bucket + place) % 3)
            seconds, cell = 200.0 * mixed_seconds(rows, k, prefill), Cell(bucket, k, prefill=True)
            cells[cell] = with_prefill(200.0, seconds, 200.0 * rows, 200.0 * prefill, 200.0 * rows * k)
    return cells


def evidence(mixed: dict[Cell, CellEvidence], steps_per_token: float = 0.01) -> Evidence:
    acceptance = AcceptanceEvidence((1e5,) * 5, (6.5e4, 4e4, 2.5e4, 1.5e4, 1e4))
    usual_prefill = sum(cell.prefill_tokens for cell in mixed.values()) / max(sum(cell.steps for cell in mixed.values()), 1.0)
    return Evidence(clean_cells(), acceptance, mixed, steps_per_token, steps_per_token * usual_prefill)


def charged(known: Evidence) -> np.ndarray:
    times = predict_step_times(known.cells, KS, buckets_up_to(KEY.max_num_seqs), KEY.max_num_seqs, 0.0)
    return charge(costs(known, times, drafter_sleeps=True), times.log_seconds.shape)


def costs(known: Evidence, times: StepTimes, *, drafter_sleeps: bool) -> Floats | None:
    return mixed_costs(known, times, KS, predicted_seconds(known, times, KS), drafter_sleeps=drafter_sleeps)


def test_a_k_is_charged_what_the_best_k_beside_prefill_costs_over_off_less_the_pure_steps_that_its_tokens_save() -> None:
    known, bucket = evidence(mixed_cells()), 8
    found, rows, prefill = charged(known), FIRST_BATCH_SIZES[bucket], 600.0

    def cost_s(pure: int, mixed: int) -> float:
        return mixed_seconds(rows, mixed, prefill) - clean_seconds(rows, pure) * known.tokens_per_row(mixed) / known.tokens_per_row(
            pure
        )

    for place, k in enumerate(KS[1:], start=1):
        longer = min(cost_s(k, mixed) for mixed in KS[1:]) - cost_s(0, 0)
        assert found[bucket, place] == pytest.approx(0.01 * longer, rel=0.15, abs=2e-6)


def test_a_drafter_that_sleeps_runs_in_both_kinds_of_step_or_in_neither() -> None:
    known = evidence(mixed_cells())
    times = predict_step_times(known.cells, KS, buckets_up_to(KEY.max_num_seqs), KEY.max_num_seqs, 0.0)
    sleeps, stays = (costs(known, times, drafter_sleeps=sleeps) for sleeps in (True, False))
    assert sleeps is not None
    assert stays is not None
    assert np.isinf(sleeps[:, 1:, 0]).all()
    assert np.isfinite(stays[:, 1:, 0]).all()
    assert np.isinf(sleeps[:, 0, 1:]).all()
    assert np.isinf(stays[:, 0, 1:]).all()


def test_off_runs_beside_prefill_where_verifying_there_costs_more_than_it_saves_and_the_drafter_does_not_sleep() -> None:
    view = GroupView(KEY, AUTO, evidence(mixed_cells(), steps_per_token=0.02), drafter_sleeps=False)
    model = view.goodput_model()
    plan = fleet_plan(view, model)
    assert plan.num_speculative_tokens(32) > 0
    assert k_at(plan.mixed_rows, 32) == 0
    assert "beside prefill off costs less" in in_words(plan.causes(32))
    asleep = replace(view, drafter_sleeps=True)
    its_plan = fleet_plan(asleep, asleep.goodput_model())
    for batch in range(1, KEY.max_num_seqs + 1):
        assert (k_at(its_plan.mixed_rows or its_plan.rows, batch) > 0) == (its_plan.num_speculative_tokens(batch) > 0)


def test_a_change_beside_prefill_that_saves_next_to_nothing_is_not_made() -> None:
    view = GroupView(KEY, AUTO, evidence(mixed_cells(), steps_per_token=1e-6), drafter_sleeps=False)
    assert fleet_plan(view, view.goodput_model()).mixed_rows == ()


def test_steps_at_off_alone_already_tell_what_a_verified_token_costs_beside_a_prompt() -> None:
    rows, bucket = FIRST_BATCH_SIZES[8], 8
    found = charged(evidence(mixed_cells(ks=(0,))))[bucket, KS.index(3)]
    verifying = TOKEN_S * 3 * rows - (clean_seconds(rows, 3) - clean_seconds(rows, 0))
    assert found == pytest.approx(0.01 * verifying, rel=0.3)


@given(ran=st.sampled_from([1, 3, 5]), read_s=st.floats(1e-5, 1e-4))
def test_one_k_beside_prefill_tells_what_the_drafter_takes_to_read_prompts_and_so_what_any_other_k_costs_there(
    ran: int, read_s: float
) -> None:
    def seconds(rows: float, k: int, prefill: float) -> float:
        return mixed_seconds(rows, k, prefill) + read_s * prefill * (k > 0)

    mixed = {
        cell: one._replace(
            seconds=200.0 * seconds(one.rows / 200.0, cell.num_speculative_tokens, 600.0), prefill_tokens=200.0 * 600.0
        )
        for cell, one in mixed_cells(ks=(0, ran)).items()
    }
    known, bucket = evidence(mixed), 8
    times = predict_step_times(known.cells, KS, buckets_up_to(KEY.max_num_seqs), KEY.max_num_seqs, 0.0)
    found = predicted_seconds(known, times, KS)
    assert found is not None
    for place, k in enumerate(KS):
        assert found[bucket, place] == pytest.approx(seconds(times.rows[bucket], k, 600.0), rel=0.08)


def test_a_step_with_three_prompt_tokens_does_not_tell_that_the_drafter_takes_longer_to_read_a_prompt_than_the_target() -> None:
    """The one step beside prefill at the K that ran: what it took beyond a pure one, a hundred times over, kept a fleet at off."""
    known, bucket = (
        evidence(
            {
                Cell(2, 5, prefill=True): with_prefill(1.0, 0.037, 3.0, 3.0, 15.0),
                Cell(2, 0, prefill=True): with_prefill(12.0, 12.0 * 0.022, 36.0, 12.0 * 130.0, 0.0),
            }
        ),
        2,
    )
    times = predict_step_times(known.cells, KS, buckets_up_to(KEY.max_num_seqs), KEY.max_num_seqs, 0.0)
    found = predicted_seconds(known, times, KS)
    assert found is not None
    added_s = np.exp(times.log_seconds[bucket]) - np.exp(times.log_seconds[bucket, 0])
    assert (found[bucket] - added_s <= 2.0 * found[bucket, 0]).all()


@pytest.mark.parametrize("known", [evidence({}), evidence(mixed_cells(), steps_per_token=0.0)], ids=["none seen", "none come"])
def test_nothing_is_charged_where_nothing_prefills(known: Evidence) -> None:
    assert not charged(known).any()


@given(
    st.dictionaries(
        st.builds(Cell, st.integers(0, 15), st.sampled_from(KS), st.just(value=True)),
        st.builds(with_prefill, *(st.floats(1.0, 1e6),) * 5),
        max_size=12,
    )
)
def test_off_is_charged_nothing_and_no_k_less_than_nothing(mixed: dict[Cell, CellEvidence]) -> None:
    found = charged(evidence(mixed))
    assert np.isfinite(found).all()
    assert (found >= 0.0).all()
    assert not found[:, 0].any()


def test_a_gain_in_clean_steps_that_prefill_eats_up_is_not_planned() -> None:
    quiet = GroupView(KEY, AUTO, evidence(mixed_cells(), steps_per_token=0.0))
    prompts = GroupView(KEY, AUTO, evidence(mixed_cells(), steps_per_token=0.05))
    batch = 48
    assert fleet_plan(quiet, quiet.goodput_model()).num_speculative_tokens(batch) > 0
    assert fleet_plan(prompts, prompts.goodput_model()).num_speculative_tokens(batch) == 0


def test_steps_with_prefill_are_counted_by_bucket_and_k_and_clean_ones_are_not() -> None:
    counters = StepCounters()
    for prefill, clean in ((64, False), (36, False), (0, True)):
        counters.count(StepCount(1, 3, 30, prefill, 4, [3], [1], 20_000, clean, False))
    clean_cell, cell = counters.snapshot("engine").cells
    assert (clean_cell.prefill, clean_cell.steps, clean_cell.prefill_tokens, clean_cell.draft_tokens) == (False, 1, 0, 0)
    assert cell == CellCounters(
        batch_bucket=2,
        num_speculative_tokens=1,
        prefill=True,
        steps=2,
        step_seconds=0.04,
        decode_rows=6,
        prefill_tokens=100,
        draft_tokens=6,
        reached=(6,),
        accepted=(2,),
    )


def test_positions_beside_prefill_are_counted_where_no_row_verified_more_than_k_drafts() -> None:
    counters = StepCounters()
    for k, reached, accepted in ((3, [2, 2, 2, 0, 0], [2, 1, 0, 0, 0]), (3, [2, 0, 0, 0, 0], [1, 0, 0, 0, 0]), (0, [2], [1])):
        counters.count(StepCount(k, 2, 30, 64, 4, reached, accepted, 20_000, False, False))
    off, drafts = counters.snapshot("engine").cells
    assert (off.reached, off.accepted, off.draft_tokens) == ((), (), 2)
    assert (drafts.reached, drafts.accepted, drafts.draft_tokens) == ((4, 2, 2), (3, 1, 0), 8)


@pytest.mark.parametrize(("clean_steps", "known"), [(20, (0.6, 0.3)), (40, ())])
def test_acceptance_is_learned_beside_prefill_where_most_steps_have_it(clean_steps: int, known: tuple[float, ...]) -> None:
    clean = CellCounters(
        batch_bucket=1,
        num_speculative_tokens=0,
        steps=clean_steps,
        step_seconds=0.02 * clean_steps,
        log_step_seconds=clean_steps * math.log(0.02),
        decode_rows=2 * clean_steps,
    )
    mixed = CellCounters(
        batch_bucket=1,
        num_speculative_tokens=2,
        prefill=True,
        steps=40,
        step_seconds=0.8,
        decode_rows=80,
        prefill_tokens=3600,
        draft_tokens=160,
        reached=(80, 80),
        accepted=(48, 24),
    )
    counters = Counters(engine_id="engine-1", step_count=80, cells=(clean, mixed))
    report = Replica("a", batch=2).report()
    report = report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"counters": counters})})
    state, ignored = observe(FleetState(), report, 0.0, AUTO)
    assert ignored == ""
    assert state.replicas["a"].new_evidence.acceptance.measured() == pytest.approx(known)


def test_a_load_begins_with_prompts_and_a_share_is_of_enough_steps() -> None:
    assert MixedShare(steps=29.0, counted_steps=29.0).of_steps == 0.0
    assert MixedShare(steps=30.0, counted_steps=30.0).of_steps == 1.0


def test_the_share_of_a_group_is_its_median_replicas() -> None:
    honest = [MixedShare(1.0, 400.0, 100.0, 4.0), MixedShare(2.0, 500.0, 100.0, 5.0)]
    assert per_token([*honest, MixedShare(1e9, 1e12, 1.0, 1e9), MixedShare()]) == pytest.approx((0.02, 5.0, 0.05))
    assert per_token([MixedShare()]) == (0.0, 0.0, 0.0)


def test_a_prompt_that_finds_the_engine_idle_is_charged_to_the_k_as_well() -> None:
    beside_rows = evidence(mixed_cells(), steps_per_token=0.01)
    as_many_alone = replace(beside_rows, prefill_tokens_per_token=2.0 * beside_rows.prefill_tokens_per_token)
    assert (charged(as_many_alone)[8, 1:] >= 1.99 * charged(beside_rows)[8, 1:]).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 60, "decode_rows": 120}, "60 new steps in cells among 50"),
        ({"step_seconds": 1e6}, "K=1, with prefill): 1e+05 s a step, allowed"),
        ({"decode_rows": 10_000}, "10000 rows in 10 steps"),
        ({"prefill_tokens": 3}, "3 prompt tokens in 10 steps"),
        ({"draft_tokens": 101}, "101 drafts verified, allowed are 0 to 100"),
        ({"num_speculative_tokens": 9}, "K above the group's 5"),
    ],
)
def test_steps_with_prefill_that_no_engine_can_have_are_left_out(changes: dict[str, int], said: str) -> None:
    report = Replica("a", batch=2).report()

    def reporting(number: int, cell: CellCounters) -> LoadReport:
        counters = Counters(engine_id="engine-1", step_count=50, cells=(cell,))
        snapshot = report.snapshot.model_copy(update={"counters": counters})
        return report.model_copy(update={"report_number": number, "snapshot": snapshot})

    honest = CellCounters(
        batch_bucket=1, num_speculative_tokens=1, prefill=True, steps=10, step_seconds=0.5, decode_rows=20, prefill_tokens=900
    )
    state, ignored = observe(FleetState(), reporting(1, honest.model_copy(update=changes)), 0.0, AUTO)
    assert said in ignored
    state, ignored = observe(state, reporting(2, honest), 60.0, AUTO)
    assert ignored == ""
    assert state.replicas["a"].new_evidence.cells == {Cell(1, 1, prefill=True): with_prefill(10.0, 0.5, 20.0, 900.0, 0.0)}
