"""Engine time saved against one K all along: what it is made of, how sure it is, and when it is not known."""

import numpy as np
import pytest

from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.doubt import MEASURED_STEPS
from nightjar.policy.evidence.gained import MOST_DEVIATION, Gained, Spent, gained, measured
from nightjar.policy.evidence.goodput import GoodputModel


def model(goodput: list[list[float]], deviation: float = 0.0) -> GoodputModel:
    """Two buckets at K of 0 and 5. `deviation` is that of the logarithm of their ratio in each."""
    log_goodput = np.log(np.array(goodput))
    covariance = np.zeros((2, 2, 2))
    covariance[:, 1, 1] = deviation**2
    return GoodputModel((0, 5), log_goodput, covariance, np.array([1.0, 2.0]), np.ones(2), np.zeros(2))


TWICE_AND_HALF = [[10.0, 20.0], [40.0, 20.0]]
"""At batch 1, K=5 gives twice off's tokens; at batch 2, half."""


def found(spent: Spent, former: int, deviation: float = 0.0) -> Gained:
    known = gained(spent, model(TWICE_AND_HALF, deviation), former, {0, 5})
    assert known is not None
    return known


def test_time_is_held_against_what_the_same_tokens_would_have_taken_at_the_former_k_in_the_same_batch() -> None:
    best = Spent(0.0, 30.0, 0.0, {Cell(0, 5): 10.0, Cell(1, 0): 20.0})
    assert found(best, 0).share == pytest.approx(1.0 - 30.0 / (20.0 + 20.0))
    assert found(best, 5).share == pytest.approx(1.0 - 30.0 / (10.0 + 40.0))
    worst = Spent(0.0, 30.0, 0.0, {Cell(0, 0): 20.0, Cell(1, 5): 10.0})
    assert found(worst, 0).share == pytest.approx(1.0 - 30.0 / (20.0 + 5.0)), "time was lost"


@pytest.mark.parametrize("former", [0, 5])
def test_engines_that_ran_the_former_k_saved_nothing_without_doubt(former: int) -> None:
    spent = Spent(0.0, 9.0, 0.0, {Cell(0, former): 5.0, Cell(1, former): 4.0})
    assert found(spent, former, MOST_DEVIATION) == Gained(9.0, 0.0, 0.0, 0.0)


def test_catching_up_is_paid_from_what_was_saved() -> None:
    spent = Spent(0.0, 12.0, 5.0, {Cell(0, 5): 10.0})
    assert found(spent, 0).share == pytest.approx(1.0 - 15.0 / 20.0)


def test_the_interval_is_two_deviations_of_the_ratio() -> None:
    known = found(Spent(0.0, 10.0, 0.0, {Cell(0, 5): 10.0}), 0, 0.05)
    assert known.low == pytest.approx(1.0 - 10.0 / (20.0 * 0.9))
    assert known.high == pytest.approx(1.0 - 10.0 / (20.0 * 1.1))
    assert known.low < known.share < known.high


def test_what_was_never_measured_is_not_known() -> None:
    spent = Spent(0.0, 10.0, 0.0, {Cell(0, 5): 10.0})
    assert gained(spent, model(TWICE_AND_HALF, 1.01 * MOST_DEVIATION), 0, {0, 5}) is None
    assert gained(spent, model(TWICE_AND_HALF), 3, {0, 3, 5}) is None, "no K that runs here"
    assert gained(Spent(0.0), model(TWICE_AND_HALF), 0, {0, 5}) is None, "nothing ran"


def test_time_at_a_k_that_may_run_no_more_is_not_compared_and_most_of_it_leaves_nothing_known() -> None:
    some = Spent(0.0, 10.0, 0.0, {Cell(0, 5): 6.0, Cell(0, 3): 4.0})
    assert found(some, 0).compared_s == 6.0
    most = Spent(0.0, 10.0, 0.0, {Cell(0, 5): 4.0, Cell(0, 3): 6.0})
    assert gained(most, model(TWICE_AND_HALF), 0, {0, 5}) is None


def test_reports_add_up() -> None:
    spent = Spent(7.0).plus(2.0, 0.5, {Cell(0, 5): 1.0}).plus(3.0, 0.25, {Cell(0, 5): 1.5, Cell(1, 0): 1.0})
    assert spent == Spent(7.0, 5.0, 0.75, {Cell(0, 5): 2.5, Cell(1, 0): 1.0})


@pytest.mark.parametrize("wild", [1e-300, 1e300])
def test_an_estimate_that_cannot_be_gives_no_number(wild: float) -> None:
    assert gained(Spent(0.0, 1.0, 0.0, {Cell(0, 5): 1.0}), model([[1.0, wild], [1.0, 1.0]]), 0, {0, 5}) is None


def test_a_former_k_that_ran_for_a_few_steps_or_elsewhere_alone_is_not_measured() -> None:
    few, many = CellEvidence(MEASURED_STEPS - 1.0, -1.0, 8.0), CellEvidence(MEASURED_STEPS, -1.0, 8.0)
    evidence = Evidence(cells={Cell(0, 0): few, Cell(1, 1): many, Cell(2, 3): many})
    assert measured(evidence, {Cell(2, 3)}) == {1}
    assert gained(Spent(0.0, 10.0, 0.0, {Cell(0, 5): 10.0}), model(TWICE_AND_HALF), 0, measured(evidence, ())) is None
