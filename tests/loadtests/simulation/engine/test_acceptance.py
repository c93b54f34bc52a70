"""Acceptance of simulated rows: what the classes say, on average, by position and under drift."""

import numpy as np
import pytest

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses, scaled
from nightjar.loadtests.simulation.engine.decode_rows import DecodeRows
from nightjar.loadtests.simulation.engine.random_numbers import draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from tests.loadtests.simulation.engine.engines import PAIR, engine, held, keep_busy

STEPS = 400


def rows_of(*kinds: int) -> DecodeRows:
    """Rows of the given classes that go on for longer than any test."""
    rows = DecodeRows(AcceptanceClasses(PAIR), draws_of(3))
    for number, kind in enumerate(kinds):
        rows.join(SimulatedRequest(number, 0.0, 10, 100_000, kind, generated_tokens=1, draft_tokens=10))
    return rows


def accepted_shares(rows: DecodeRows, verified: int) -> list[float]:
    """Share of the rows' verifications that accepted more than i drafts."""
    sums = np.sum([rows.advance(verified, draft_runs=True)[1] for _ in range(STEPS)], axis=0)
    return [float(hits) / (STEPS * rows.count) for hits in sums]


def leave(rows: DecodeRows, number: int) -> None:
    """Remove the row of a request."""
    rows.remove([request.number for request in rows.requests].index(number))


@pytest.mark.parametrize("verified", [1, 3, 5])
def test_rows_accept_what_the_survival_of_their_classes_says(verified: int) -> None:
    kinds = [0, 1, 2, 3] * 12
    expected = AcceptanceClasses(PAIR).survival.mean(axis=0)[:verified]
    assert accepted_shares(rows_of(*kinds), verified) == pytest.approx(expected, abs=0.015)


def test_a_row_that_joins_in_the_middle_accepts_like_its_class_and_not_like_its_neighbours() -> None:
    rows = rows_of(*[0] * 20)
    rows.advance(5, draft_runs=True)
    for number in range(20):
        leave(rows, number)
        rows.join(SimulatedRequest(100 + number, 0.0, 10, 100_000, 3, generated_tokens=1, draft_tokens=10))
    assert accepted_shares(rows, 1) == pytest.approx([PAIR.acceptance_classes[3].survival[0]], abs=0.02)


def test_a_row_whose_draft_lacks_context_accepts_nothing() -> None:
    rows = rows_of(0, 0)
    rows.join(SimulatedRequest(2, 0.0, 10, 100_000, 0, generated_tokens=1, draft_tokens=4))
    leave(rows, 0)
    leave(rows, 1)
    assert rows.advance(3, draft_runs=True) == (1, [0, 0, 0])


def test_a_profile_of_other_texts_says_what_drift_does() -> None:
    drifted = AcceptanceClasses(PAIR)
    drifted.scale(0.5)
    assert AcceptanceClasses(scaled(PAIR, 0.5)).survival == pytest.approx(drifted.survival)
    assert AcceptanceClasses(scaled(PAIR, 1.0)).survival == pytest.approx(AcceptanceClasses(PAIR).survival)


def test_drift_scales_each_conditional_acceptance_so_deeper_positions_lose_more() -> None:
    classes = AcceptanceClasses(PAIR)
    nominal = classes.survival.copy()
    classes.scale(0.5)
    assert classes.survival == pytest.approx(nominal * np.array([0.5, 0.25, 0.125, 0.0625, 0.03125]))
    classes.scale(1.0)
    assert classes.survival == pytest.approx(nominal)
    classes.scale(10.0)
    assert classes.survival.max() <= 1.0


def test_what_an_engine_generates_is_what_its_truth_expects() -> None:
    steady = engine(plan=held(3), track_regret=True)
    for number in range(24):
        steady.submit(SimulatedRequest(number, 0.0, 50, 1500, number % 4))
    for _ in range(30):
        steady.step()
    tokens, expected = steady.totals.tokens, steady.totals.expected_tokens
    for _ in range(STEPS):
        steady.step()
    assert steady.totals.expected_tokens - expected == pytest.approx(steady.totals.tokens - tokens, rel=0.02)


def test_more_rows_than_there_was_room_for_join() -> None:
    crowded = engine(plan=held(2))
    keep_busy(crowded, users=90, steps=60)
    crowded.check_integrity()
    assert crowded.decode_batch_size > 64
