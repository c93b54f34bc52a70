"""INV-10 where evidence is merged: no replica weighs more than a third, and a lie moves the mean less than a plan's margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.estimate.acceptance import AcceptanceEvidence
from nightjar.policy.estimate.evidence import CellEvidence, Evidence
from nightjar.policy.estimate.pooling import LEAST_STEPS, Pending, capped_weights, merge, robust_mean, voices_on

CELL = (0, 3)
FOREVER = 1e12

weights = st.lists(st.floats(0.1, 1e6), min_size=3, max_size=20)


def voice(step_seconds: float, steps: float = 10.0, accepted: float = 0.5, rows: float = 100.0, heard_at_s: float = 0.0) -> Pending:
    cells = {CELL: CellEvidence(steps, steps * math.log(step_seconds), steps, measured_at_s=heard_at_s)}
    return Pending(cells, AcceptanceEvidence((rows,), (rows * accepted,)).at(heard_at_s))


def merged_step_seconds(pending: dict[str, Pending]) -> float:
    evidence, _ = merge(Evidence(), pending, FOREVER)
    return evidence.cells[CELL].step_seconds


@given(weights)
def test_no_weight_is_more_than_a_third_and_none_grows(given_weights: list[float]) -> None:
    before = np.array(given_weights)
    after = capped_weights(before)
    assert after.max() <= after.sum() / 3 * (1 + 1e-9)
    assert (after <= before).all()
    assert (after > 0).all()


@given(weights)
def test_weights_that_are_fair_already_stay(given_weights: list[float]) -> None:
    before = np.array(given_weights)
    if before.max() <= before.sum() / 3:
        assert capped_weights(before) == pytest.approx(before)


@given(
    honest=st.lists(st.floats(0.095, 0.105), min_size=2, max_size=15),
    lie=st.floats(1e-5, 600.0),
    claimed_steps=st.floats(LEAST_STEPS, 1e12),
)
def test_inv_10_whatever_one_of_three_or_more_says_the_mean_stays_near_the_honest_ones(
    honest: list[float], lie: float, claimed_steps: float
) -> None:
    pending = {f"r{number}": voice(value) for number, value in enumerate(honest)}
    told = merged_step_seconds({**pending, "liar": voice(lie, claimed_steps)})
    spread = max(max(honest) / min(honest) - 1.0, 0.003)
    assert min(honest) * (1 - 2 * spread) <= told <= max(honest) * (1 + 2 * spread)


def test_inv_10_where_honest_replicas_agree_a_lie_moves_the_mean_less_than_the_default_switch_margin() -> None:
    for lie in (1e-4, 100.0):
        told = merged_step_seconds({"a": voice(0.1), "b": voice(0.1), "liar": voice(lie, 1e6)})
        assert told == pytest.approx(0.1, rel=0.004)


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_inv_10_a_lie_about_acceptance_moves_it_less_than_a_point(lie: float) -> None:
    pending = {"a": voice(0.1), "b": voice(0.1), "liar": voice(0.1, accepted=lie)}
    evidence, _ = merge(Evidence(), pending, FOREVER)
    assert evidence.acceptance.measured()[0] == pytest.approx(0.5, abs=0.01)


def test_inv_10_a_lie_about_acceptance_that_a_later_position_gives_away_has_no_say_at_the_first() -> None:
    rows = (60.0, 60.0, 60.0)
    shares = {"a": 0.62, "b": 0.68, "c": 0.72, "d": 0.78}
    honest = {
        name: Pending(acceptance=AcceptanceEvidence(rows, (60 * first, 30 * first, 15 * first))) for name, first in shares.items()
    }
    evidence, left = merge(Evidence(), {**honest, "liar": Pending(acceptance=AcceptanceEvidence(rows, rows))}, FOREVER)
    alone, _ = merge(Evidence(), honest, FOREVER)
    assert evidence.acceptance.measured() == pytest.approx(alone.acceptance.measured())
    assert left["liar"] == Pending()


def test_three_replicas_of_which_one_has_other_prompts_still_learn_together() -> None:
    pending = {name: voice(0.1, accepted=share) for name, share in {"a": 0.8, "b": 0.8, "c": 0.1}.items()}
    evidence, _ = merge(Evidence(), pending, FOREVER)
    assert evidence.acceptance.measured()[0] == pytest.approx(0.8)


def test_three_replicas_wait_for_each_other_and_then_count_once() -> None:
    evidence, left = merge(Evidence(), {"a": voice(0.1), "b": voice(0.1), "c": Pending()}, FOREVER)
    assert not evidence.cells
    assert not left
    evidence, left = merge(evidence, {"a": voice(0.1), "b": voice(0.1), "c": voice(0.1)}, FOREVER)
    assert evidence.cells[CELL].steps == pytest.approx(30.0)
    assert left == dict.fromkeys("abc", Pending())


@given(lie=st.one_of(st.floats(1e-5, 0.04), st.floats(0.25, 600.0)))
def test_inv_10_a_lie_makes_no_quorum_with_two_honest_voices_where_others_may_still_speak(lie: float) -> None:
    pending = {"a": voice(0.1), "b": voice(0.101), "c": Pending(), "liar": voice(lie)}
    evidence, left = merge(Evidence(), pending, FOREVER)
    assert CELL not in evidence.cells
    assert left.keys() == {"a", "b", "liar"}
    assert all(CELL in waiting.cells for waiting in left.values())
    assert voices_on(CELL, pending, now_s=0.0) == {"a": True, "b": True, "liar": False}


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_inv_10_a_lie_about_acceptance_makes_no_quorum_either(lie: float) -> None:
    pending = {"a": voice(0.1), "b": voice(0.1, accepted=0.52), "liar": voice(0.1, accepted=lie)}
    waits, left = merge(Evidence(), {**pending, "c": Pending()}, FOREVER)
    assert waits.acceptance == AcceptanceEvidence()
    assert all(waiting.acceptance == pending[name].acceptance for name, waiting in left.items())
    of_three, _ = merge(Evidence(), pending, FOREVER)
    assert of_three.acceptance.reached


@given(lie=st.one_of(st.floats(1e-5, 0.04), st.floats(0.25, 600.0)))
def test_inv_10_with_three_honest_voices_a_lie_changes_nothing_at_all(lie: float) -> None:
    honest = {"a": voice(0.1), "b": voice(0.101), "c": voice(0.102)}
    told, _ = merge(Evidence(), {**honest, "liar": voice(lie)}, FOREVER)
    without, _ = merge(Evidence(), honest, FOREVER)
    assert told.cells == without.cells


def test_a_group_of_three_learns_though_one_of_them_cannot_be_right() -> None:
    assert merged_step_seconds({"a": voice(0.1), "b": voice(0.101), "liar": voice(10.0)}) == pytest.approx(0.1, rel=0.02)


def test_a_replica_with_too_few_steps_has_no_voice_and_keeps_them() -> None:
    pending = {name: voice(0.1) for name in "abc"} | {"d": voice(0.1, steps=LEAST_STEPS - 1)}
    evidence, left = merge(Evidence(), pending, FOREVER)
    assert evidence.cells[CELL].steps == pytest.approx(30.0)
    assert left["d"].cells == pending["d"].cells


HOURS_LATER_S = 3.0 * 3600.0


@given(steps=st.floats(LEAST_STEPS, 1e12))
def test_a_voice_waits_for_others_for_a_few_minutes_and_is_none_any_more_after_half_an_hour(steps: float) -> None:
    waiting = voice(0.1, steps)
    assert waiting.has_voice(CELL, 0.0)
    assert waiting.has_voice(CELL, 600.0)
    assert not waiting.has_voice(CELL, 1800.0)


def test_a_voice_of_three_hours_ago_makes_no_quorum_with_two_fresh_ones() -> None:
    pending = {name: voice(0.1, heard_at_s=HOURS_LATER_S) for name in "ab"} | {"old": voice(0.2, 1e6)}
    evidence, left = merge(Evidence(), pending, FOREVER, HOURS_LATER_S)
    assert not evidence.cells
    assert left["old"].cells == pending["old"].cells


def test_what_waited_for_three_hours_does_not_outvote_what_is_fresh_where_no_quorum_is_asked() -> None:
    old, fresh = voice(0.2, 1e6, accepted=0.0, rows=1e6), voice(0.1, 5.0, accepted=0.8, rows=400.0, heard_at_s=HOURS_LATER_S)
    evidence, _ = merge(Evidence(), {"old": old, "fresh": fresh}, FOREVER, HOURS_LATER_S)
    assert evidence.cells[CELL].step_seconds == pytest.approx(0.1, rel=0.05)
    assert evidence.cells[CELL].steps == pytest.approx(5.0, rel=0.1)
    assert evidence.acceptance.measured()[0] > 0.65


@given(steps=st.floats(0.1, 1e12), age_s=st.floats(0.0, 1e6), later_s=st.floats(0.0, 1e6))
def test_sums_that_age_keep_their_mean_and_only_lose_weight(steps: float, age_s: float, later_s: float) -> None:
    sums = CellEvidence(steps, -4.0 * steps, 2.0 * steps)
    aged = sums.aged(age_s)
    assert aged.steps == sums.steps_at(age_s) <= steps
    assert sums.steps_at(age_s + later_s) <= aged.steps
    assert aged.step_seconds == pytest.approx(sums.step_seconds)
    assert aged.rows / aged.steps == pytest.approx(2.0)


def test_in_a_group_of_two_evidence_counts_as_it_comes_and_each_step_weighs_the_same() -> None:
    evidence, left = merge(Evidence(), {"a": voice(0.1, steps=3.0), "b": Pending()}, FOREVER)
    assert evidence.cells[CELL].steps == 3.0
    evidence, _ = merge(evidence, {"a": left["a"], "b": voice(0.2, steps=1.0)}, FOREVER)
    assert evidence.cells[CELL].step_seconds == pytest.approx(0.1 ** (3 / 4) * 0.2 ** (1 / 4))


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_replicas_does_not_matter(order: list[str]) -> None:
    values = {"a": 0.1, "b": 0.11, "c": 0.12, "d": 0.5}
    pending = {name: voice(values[name], steps=10.0 * values[name] * 10) for name in order}
    expected, _ = merge(Evidence(), dict(sorted(pending.items())), FOREVER)
    assert merge(Evidence(), pending, FOREVER)[0] == expected


@given(st.lists(st.floats(-10.0, 10.0), min_size=3, max_size=20))
def test_the_robust_mean_lies_among_the_values(values: list[float]) -> None:
    mean = robust_mean(np.array(values), np.ones(len(values)))
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
