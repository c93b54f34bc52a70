"""What is told of a gain is doubted more than what the planner acts on, and most where nothing ran."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.doubt import BEYOND, MEASURED, MEASURED_STEPS, UNMEASURED, measured_ks, told_deviation
from nightjar.policy.planners.base import GroupView
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import GroupKey

KEY = GroupKey(target="llama-8b", max_num_speculative_tokens=5, max_num_seqs=32)
KS = (0, 1, 3, 5)


def seen(*cells: tuple[int, int], steps: float = 200.0) -> Evidence:
    """Steps of 20 ms at 4 rows."""
    return Evidence({Cell(*cell): CellEvidence(steps, steps * np.log(0.02), steps * 4.0, 0.0) for cell in cells})


def told(*cells: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Over four buckets, of a model that is sure of everything."""
    return told_deviation(np.zeros((4, len(KS), len(KS))), measured_ks(seen(*cells), KS, 4))


def test_a_gain_between_two_measured_k_is_as_sure_as_the_model_but_for_what_it_smooths() -> None:
    assert told((1, 0), (1, 5))[1, 3, 0] == pytest.approx(MEASURED * 2**0.5)


def test_a_gain_of_a_k_that_was_not_measured_in_its_batch_is_not_known_within_20_percent_and_further_away_less() -> None:
    deviations = told((0, 0), (0, 5))
    assert deviations[0, 2, 0] == pytest.approx(UNMEASURED)
    assert deviations[1, 2, 0] == pytest.approx(UNMEASURED)
    assert deviations[3, 2, 0] == pytest.approx(UNMEASURED * 3**0.5)


def test_a_k_longer_than_any_that_ran_is_doubted_most() -> None:
    deviations = told((0, 0), (0, 3))
    assert deviations[0, 3, 0] == pytest.approx(UNMEASURED * BEYOND**0.5)
    assert deviations[0, 1, 0] == pytest.approx(UNMEASURED)


def test_a_k_gains_nothing_over_itself_without_any_doubt() -> None:
    assert not np.diagonal(told(), axis1=1, axis2=2).any()


def test_a_few_steps_are_no_measurement() -> None:
    assert not measured_ks(seen((0, 0), steps=MEASURED_STEPS - 1.0), KS, 4).any()
    assert measured_ks(seen((0, 0), (9, 0), (0, 4), steps=MEASURED_STEPS), KS, 4).sum() == 1, "others are no K or no buckets"


@given(st.sets(st.tuples(st.integers(0, 5), st.sampled_from(KS)), max_size=12), st.floats(1.0, 500.0))
def test_what_is_told_is_never_surer_than_what_the_planner_acts_on(cells: set[tuple[int, int]], steps: float) -> None:
    settings = OperatorSettings(allowed_num_speculative_tokens=KS)
    model = GroupView(KEY, settings, seen(*cells, steps=steps)).goodput_model()
    _, own = model.gain(np.zeros(len(model.rows), dtype=np.int64))
    assert (model.told_deviation[:, :, 0] >= own - 1e-9).all()
