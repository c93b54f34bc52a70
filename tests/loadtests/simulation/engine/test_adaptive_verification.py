"""A simulated engine in which vLLM chooses how many drafts are verified, up to a ceiling."""

from __future__ import annotations

import numpy as np
import pytest

from nightjar.loadtests.simulation.engine.draft_budget import DraftBudget
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.profiles import Mechanics
from tests.loadtests.simulation.engine.engines import EAGLE, engine, held

ANSWER_TOKENS = 4000
STEPS = 150


def emitted_per_row(length: int, users: int, confidence: float | None) -> tuple[float, float]:
    """Tokens of a row and step, and seconds of a step, of an engine that holds K while nobody comes or goes."""
    busy = engine(EAGLE, held(length), mechanics=Mechanics.STOCK, confidence=confidence)
    for number in range(users):
        busy.submit(SimulatedRequest(number, 0.0, 40, ANSWER_TOKENS, number % len(EAGLE.acceptance_classes)))
    for _ in range(STEPS):
        busy.step()
    busy.check_integrity()
    cells = [cell for cell in busy.report().snapshot.counters.cells if not cell.prefill]
    rows, steps = sum(cell.decode_rows for cell in cells), sum(cell.steps for cell in cells)
    return sum(cell.generated_tokens for cell in cells) / rows, sum(cell.step_seconds for cell in cells) / steps


def test_at_k_0_nothing_is_chosen_and_steps_are_those_of_any_engine() -> None:
    assert emitted_per_row(0, 64, 0.6) == emitted_per_row(0, 64, None)


def test_a_full_engine_verifies_fewer_drafts_and_an_empty_one_nearly_all() -> None:
    kept_empty, kept_full = (emitted_per_row(5, users, 0.0)[0] / emitted_per_row(5, users, None)[0] for users in (1, 240))
    assert kept_empty > 0.97
    assert kept_full < 0.92


def test_in_a_full_engine_steps_are_shorter_than_without_it() -> None:
    assert emitted_per_row(5, 240, 0.0)[1] < 0.9 * emitted_per_row(5, 240, None)[1]


def test_a_surer_drafter_keeps_more_of_as_many_drafts() -> None:
    speeds = []
    for confidence in (0.0, 0.6, 1.0):
        emitted, seconds = emitted_per_row(5, 120, confidence)
        speeds.append(emitted / seconds)
    assert speeds == sorted(speeds)
    assert speeds[2] > 1.05 * speeds[0]


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0])
def test_confidences_are_right_on_average(confidence: float) -> None:
    budget = DraftBudget(EAGLE, confidence, seed=5)
    survival = np.tile(np.array([0.8, 0.5, 0.3, 0.2, 0.1]), (20_000, 1))
    kept = (np.random.default_rng(6).random(20_000)[:, None] < survival).sum(axis=1)
    known = budget._known(survival, kept)
    assert known.mean(axis=0) == pytest.approx(survival[0], abs=0.01)
    assert (np.diff(known, axis=1) <= 1e-12).all()
    if confidence:
        correlation = np.corrcoef(known[:, 0], kept > 0)[0, 1]
        assert correlation == pytest.approx(confidence, abs=0.03)


def test_such_an_engine_says_that_its_acceptance_is_censored() -> None:
    told = [engine(EAGLE, held(3), mechanics=Mechanics.STOCK, confidence=confidence).report().group for confidence in (None, 0.0)]
    assert [group.adaptive_verification for group in told] == [False, True]
    assert told[0].group_id != told[1].group_id
