"""What is worth measuring where most steps have prefill: the same as elsewhere, in such steps, and each K that was never in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import MOSTLY_MIXED, Cell, Evidence
from nightjar.policy.evidence.mixed_steps import MixedShare, share_of_steps
from nightjar.policy.planners.base import GroupView, present_indices
from nightjar.policy.planners.calibration import Measurement, measurements
from nightjar.policy.planners.fleet import fleet_plan
from nightjar.policy.wire.batch_buckets import batch_bucket
from tests.policy.engines import AUTO, KEY
from tests.policy.evidence.test_mixed_steps import (
    KS,
    clean_cells,
    clean_seconds,
    evidence,
    mixed_cells,
    mixed_seconds,
    with_prefill,
)
from tests.policy.planners.test_planners import KEY as SMALL
from tests.policy.planners.test_planners import known

SOME_KS = st.lists(st.sampled_from(KS), min_size=1, unique=True).map(sorted).map(tuple)
MOSTLY = st.floats(MOSTLY_MIXED, 1.0, exclude_min=True)


def wanted(known: Evidence) -> list[Measurement]:
    view = GroupView(KEY, AUTO, known)
    model = view.goodput_model()
    planned = present_indices(view.with_plan(fleet_plan(view, model)))
    return [one for found in measurements(view, model, planned).values() for one in found]


def known_of(clean: Sequence[int], mixed: Sequence[int], share: float) -> Evidence:
    cells = {cell: one for cell, one in clean_cells().items() if cell.num_speculative_tokens in clean}
    return replace(evidence(mixed_cells(tuple(mixed))), cells=cells, mixed_share_of_steps=share)


@given(SOME_KS, SOME_KS, st.floats(0.0, MOSTLY_MIXED))
def test_where_clean_steps_are_most_nothing_is_measured_beside_prefill(
    clean: tuple[int, ...], mixed: tuple[int, ...], share: float
) -> None:
    found = wanted(known_of(clean, mixed, share))
    assert found == wanted(known_of(clean, mixed, 0.0))
    assert not any(one.cell.prefill for one in found)


@given(SOME_KS, SOME_KS, MOSTLY)
def test_where_steps_with_prefill_are_most_all_is_measured_there_and_each_k_that_never_ran_there(
    clean: tuple[int, ...], mixed: tuple[int, ...], share: float
) -> None:
    found = wanted(known_of(clean, mixed, share))
    assert all(one.cell.prefill for one in found)
    assert {k for k in KS if k not in mixed} <= {one.cell.num_speculative_tokens for one in found}


def test_a_k_that_ran_beside_prefill_for_one_measurement_is_not_tried_for_that_any_more() -> None:
    known = known_of(KS, KS, 1.0)
    few = {cell: one._replace(steps=one.steps * 0.001) for cell, one in known.mixed_cells.items()}
    assert {one.cell.num_speculative_tokens for one in wanted(replace(known, mixed_cells=few))} == set(KS)
    assert {one.cell for one in wanted(known)} == {
        Cell(*one.cell[:2], prefill=True) for one in wanted(replace(known, mixed_share_of_steps=0.0))
    }


def test_plans_go_by_what_ran_beside_prefill_only_where_most_steps_have_it() -> None:
    one_ran = known_of((5,), KS, 0.0)
    assert (one_ran.only_k, replace(one_ran, mixed_share_of_steps=1.0).only_k) == (5, None)


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=9))
def test_inv_10_no_single_replica_decides_whether_most_steps_have_prefill(shares: list[float]) -> None:
    honest = [MixedShare(steps=64.0 * share, counted_steps=64.0) for share in shares]
    liars = [share_of_steps([*honest, MixedShare(steps=steps, counted_steps=64.0)]) for steps in (0.0, 64.0)]
    assert min(shares) <= min(liars) <= max(liars) <= max(shares)


def test_a_bucket_that_has_steps_with_prefill_alone_is_predicted_at_their_rows_with_less_doubt() -> None:
    """An engine whose 32 slots are always asked for has 31 rows and a prompt in most steps, and 32 in the others."""
    ks = (0, 1)
    full = known({(32, k): clean_seconds(32, k) for k in ks}, steps=400.0)
    beside = {
        Cell(batch_bucket(31), k, prefill=True): with_prefill(
            200.0, 200.0 * mixed_seconds(31, k, 400.0), 200.0 * 31, 8e4, 200.0 * 31 * k
        )
        for k in ks
    }
    view = GroupView(SMALL, AUTO, replace(full, mixed_cells=beside))
    model, apart = view.goodput_model(), view.with_evidence(full).goodput_model()
    bucket = batch_bucket(31)
    assert bucket != batch_bucket(32)
    assert model.rows[bucket] == 31.0
    assert apart.rows[bucket] < 31.0
    doubt, doubt_apart = (its.gain(np.zeros(len(its.rows), dtype=np.int64))[1][bucket, 1] for its in (model, apart))
    assert doubt < doubt_apart
