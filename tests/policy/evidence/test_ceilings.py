"""Tokens under a ceiling: what was measured counts, what never ran is doubtful, and nothing is said that no engine can emit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.ceilings import acceptance_giving, kept_at, predict_emitted
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.planners.base import GroupView
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.report import LoadReport
from tests.policy.engines import AUTO, KEY, Fleet, Replica

KS = (0, 1, 2, 3, 5, 7)
BATCHES = (1, 4, 16, 64, 256)
ROWS = np.array(BATCHES, dtype=float)


def cell(batch: int, tokens_per_row: float, steps: float = 100.0, at_s: float = 0.0) -> CellEvidence:
    rows = steps * batch
    return CellEvidence(steps, -3.0 * steps, rows, generated_tokens=rows * tokens_per_row, measured_at_s=at_s)


@st.composite
def measured(draw: st.DrawFn) -> dict[Cell, CellEvidence]:
    """Cells that any engine may report: each K keeps between none and all of its drafts."""
    cells = {}
    for batch, k in draw(st.sets(st.tuples(st.sampled_from(BATCHES), st.sampled_from(KS)), max_size=12)):
        kept = draw(st.floats(0.0, 1.0))
        cells[Cell(batch_bucket(batch), k)] = cell(batch, 1.0 + kept * k, draw(st.floats(1.0, 1e6)), draw(st.floats(-1e5, 0.0)))
    return cells


@given(measured())
def test_no_prediction_is_what_no_engine_can_emit_and_off_is_known(cells: dict[Cell, CellEvidence]) -> None:
    found = predict_emitted(cells, KS, ROWS, 0.0)
    assert (found.tokens >= 1.0).all()
    assert (found.tokens <= 1.0 + np.array(KS)).all()
    assert (found.tokens[:, 0] == 1.0).all()
    assert found.covariance[:, 0, :] == pytest.approx(0.0)
    assert np.linalg.eigvalsh(found.covariance).min() > -1e-9


@given(measured())
def test_the_order_in_which_cells_were_measured_says_nothing(cells: dict[Cell, CellEvidence]) -> None:
    one, other = (predict_emitted(dict(order), KS, ROWS, 0.0) for order in (cells.items(), reversed(cells.items())))
    assert one.tokens == pytest.approx(other.tokens)
    assert one.covariance == pytest.approx(other.covariance, abs=1e-9)


@given(measured(), st.sampled_from(BATCHES), st.sampled_from(KS[1:]))
def test_another_measured_cell_makes_nothing_more_doubtful(cells: dict[Cell, CellEvidence], batch: int, k: int) -> None:
    place = Cell(batch_bucket(batch), k)
    before = {other: known for other, known in cells.items() if other != place}
    without = predict_emitted(before, KS, ROWS, 0.0)
    more = predict_emitted({**before, place: cell(batch, 1.0 + k / 2)}, KS, ROWS, 0.0)
    doubt, less = (np.diagonal(found.covariance, axis1=1, axis2=2) for found in (without, more))
    assert (less <= doubt + 1e-9).all()


@given(st.sampled_from(BATCHES), st.sampled_from(KS[1:]), st.floats(0.05, 0.95))
def test_what_ran_for_long_is_predicted_as_it_was_measured(batch: int, k: int, kept: float) -> None:
    emitted = 1.0 + kept * k
    found = predict_emitted({Cell(batch_bucket(batch), k): cell(batch, emitted, 1e6)}, KS, ROWS, 0.0)
    place = BATCHES.index(batch), KS.index(k)
    assert found.tokens[place] == pytest.approx(emitted, rel=0.01)
    assert math.sqrt(found.covariance[place[0], place[1], place[1]]) < 0.01


def test_doubt_grows_with_the_distance_in_ceiling_and_in_batch_and_with_age() -> None:
    known = {Cell(batch_bucket(16), 3): cell(16, 2.2, 1e4)}
    found = predict_emitted(known, KS, ROWS, 0.0)
    deviation = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    at = KS.index(3)
    assert deviation[2, at] < deviation[2, KS.index(5)] < deviation[2, KS.index(7)]
    assert deviation[2, at] < deviation[3, at] < deviation[4, at]
    older = predict_emitted(known, KS, ROWS, 3600.0)
    assert older.covariance[2, at, at] > found.covariance[2, at, at]


def test_a_ceiling_that_never_ran_is_what_the_ones_beside_it_say() -> None:
    """A full engine admits few drafts, whatever the ceiling: its neighbours know that, the acceptance of an empty one does not."""
    empty = {Cell(batch_bucket(1), k): cell(1, float(kept_at(0.8, np.array([k]))[0]), 1e5) for k in (1, 3, 5, 7)}
    full = {Cell(batch_bucket(256), k): cell(256, 1.3, 1e4) for k in (1, 3, 7)}
    found = predict_emitted({**empty, **full}, KS, ROWS, 0.0)
    assert found.tokens[4, KS.index(5)] == pytest.approx(1.3, abs=0.1)
    assert found.tokens[0, KS.index(2)] == pytest.approx(2.44, abs=0.15)


def test_without_evidence_the_shape_is_the_prior_of_acceptance() -> None:
    found = predict_emitted({}, KS, ROWS, 0.0)
    prior = Evidence()
    assert found.tokens[0] == pytest.approx([prior.tokens_per_row(k) for k in KS])


@given(st.floats(0.0, 1.0), st.sampled_from(KS[1:]))
def test_acceptance_and_tokens_are_each_others_inverse(acceptance: float, k: int) -> None:
    tokens = kept_at(acceptance, np.array([float(k)]))
    assert acceptance_giving(tokens, np.array([float(k)]))[0] == pytest.approx(acceptance, abs=1e-6)


class Trimmed(Replica):
    """An engine in which vLLM chooses how many drafts are verified."""

    def report(self, **changes: object) -> LoadReport:
        """What the agent would send now."""
        return super().report(group=KEY.model_copy(update={"adaptive_verification": True}), **changes)


def test_a_censored_group_learns_tokens_by_ceiling_and_plans_by_them() -> None:
    fleet = Fleet([Trimmed("a", batch=64)])
    fleet.run(20.0)
    assert not fleet.refusals
    (group,) = fleet.state.groups.values()
    assert group.evidence.is_censored
    for place, known in group.evidence.cells.items():
        emitted = 1 + sum(fleet.replicas[0].acceptance[: place.num_speculative_tokens])
        assert known.generated_tokens / known.rows == pytest.approx(emitted, rel=0.05)
    model = GroupView(group.key, AUTO, group.evidence, now_s=fleet.now_s).goodput_model()
    assert model.tokens_per_row[batch_bucket(64)] == pytest.approx([1.0, 1.68, 2.27, 2.42], rel=0.06)


def test_a_group_without_adaptive_verification_keeps_no_tokens() -> None:
    fleet = Fleet([Replica("a", batch=64)])
    fleet.run(5.0)
    (group,) = fleet.state.groups.values()
    assert not group.evidence.is_censored
