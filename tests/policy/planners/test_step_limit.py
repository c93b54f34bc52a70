"""An operator's limit of a step: K is one whose predicted step, with its doubt and its prefill, keeps it; off always may run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.planners.base import GroupPlan, GroupView, present_indices
from nightjar.policy.planners.calibration import measurements
from nightjar.policy.planners.fleet import fleet_plan
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.operator import OperatorSettings, SettingsError, parse_operator_settings
from nightjar.policy.words import in_words
from tests.policy.planners.test_planners import KEY, known

KS = (0, 1, 3, 5)
STEPS_S = {(4, 0): 0.020, (4, 1): 0.021, (4, 3): 0.024, (4, 5): 0.029}
SURE = 2000.0
"""Clean steps of a cell of which little is in doubt."""


def steady(seconds: dict[tuple[int, int], float], steps: float) -> Evidence:
    """Cells whose steps take the same time each."""
    evidence = known(seconds, steps=steps)
    cells = {at: cell._replace(log_seconds_squared=cell.log_seconds**2 / cell.steps) for at, cell in evidence.cells.items()}
    return replace(evidence, cells=cells)


def view(evidence: Evidence, max_step_ms: float | None) -> GroupView:
    return GroupView(KEY, OperatorSettings(allowed_num_speculative_tokens=KS, max_step_ms=max_step_ms), evidence)


def planned(evidence: Evidence, max_step_ms: float | None) -> GroupPlan:
    seen = view(evidence, max_step_ms)
    return fleet_plan(seen, seen.goodput_model())


@pytest.mark.parametrize(("max_step_ms", "k"), [(None, 5), (40.0, 5), (26.5, 3), (22.5, 1), (20.5, 0), (1.0, 0)])
def test_the_best_k_whose_step_keeps_the_limit_runs_and_off_always_may(max_step_ms: float | None, k: int) -> None:
    assert planned(steady(STEPS_S, SURE), max_step_ms).num_speculative_tokens(4) == k


def test_where_the_limit_decided_the_reason_says_what_it_forbids() -> None:
    reason = in_words(planned(steady(STEPS_S, SURE), 26.5).causes(4))
    assert "K=3 gives" in reason
    assert "; K=5 would give more, but max_step_ms 26.5 forbids its steps of up to 29." in reason
    assert "max_step_ms" not in in_words(planned(steady(STEPS_S, SURE), 40.0).causes(4))


def test_a_plan_in_force_that_exceeds_a_new_limit_gives_way() -> None:
    evidence = steady(STEPS_S, SURE)
    seen = view(evidence, 22.5).with_plan(planned(evidence, None))
    assert fleet_plan(seen, seen.goodput_model()).num_speculative_tokens(4) == 1


def test_what_is_in_doubt_counts_as_longer_than_it_is_expected() -> None:
    just_below = 24.3
    assert planned(steady(STEPS_S, SURE), just_below).num_speculative_tokens(4) == 3
    assert planned(steady(STEPS_S, 3.0), just_below).num_speculative_tokens(4) < 3


def with_prefill(evidence: Evidence, off_s: float, length_s: float) -> Evidence:
    """Steps of 500 prompt tokens at K = 0, and at each other K."""
    bucket = batch_bucket(4)
    cells = {
        Cell(bucket, k, prefill=True): CellEvidence(
            400, seconds=400 * (length_s if k else off_s), rows=1600, prefill_tokens=200_000, draft_tokens=1600 * k
        )
        for k in KS
    }
    return replace(evidence, mixed_cells=cells)


def test_a_step_with_prefill_must_keep_the_limit_too_where_it_does_at_off() -> None:
    evidence = steady(STEPS_S, SURE)
    assert planned(with_prefill(evidence, 0.030, 0.033), 40.0).num_speculative_tokens(4) == 5
    assert planned(with_prefill(evidence, 0.030, 0.060), 40.0).num_speculative_tokens(4) == 0


def test_where_prefill_alone_exceeds_the_limit_pure_decode_steps_decide() -> None:
    evidence = with_prefill(steady(STEPS_S, SURE), 0.300, 0.330)
    assert planned(evidence, 40.0).num_speculative_tokens(4) == 5
    assert planned(evidence, 26.5).num_speculative_tokens(4) == 3


@pytest.mark.parametrize(("length_s", "k"), [(0.320, 5), (0.340, 0)])
def test_what_exceeds_the_limit_at_off_is_prolonged_by_a_tenth_at_most(length_s: float, k: int) -> None:
    evidence = replace(with_prefill(steady(STEPS_S, SURE), 0.300, length_s), mixed_steps_per_token=0.01)
    assert planned(evidence, 40.0).num_speculative_tokens(4) == k


def test_what_is_rarer_than_the_steps_that_may_exceed_the_limit_does_not_count_where_off_exceeds_it() -> None:
    evidence = replace(with_prefill(steady(STEPS_S, SURE), 0.300, 0.340), mixed_steps_per_token=0.0005)
    assert planned(evidence, 40.0).num_speculative_tokens(4) == 5


@given(
    st.dictionaries(st.tuples(st.sampled_from([1, 4, 16, 32]), st.sampled_from(KS)), st.floats(0.001, 1.0), max_size=8),
    st.floats(0.5, 2000.0),
    st.floats(1.0, 2000.0),
)
def test_whatever_is_known_nothing_beyond_the_limit_is_planned_or_measured(
    seconds: dict[tuple[int, int], float], max_step_ms: float, steps: float
) -> None:
    seen = view(known(seconds, steps=steps), max_step_ms)
    model = seen.goodput_model()
    plan = fleet_plan(seen, model)
    chosen = present_indices(seen.with_plan(plan))
    off_is_known = any(k == 0 for _, k in seconds)
    assert model.limit is not None
    planned_s = (model.limit.most_step_s if off_is_known else model.limit.expected_step_s)[np.arange(len(chosen)), chosen]
    assert (planned_s[chosen > 0] <= max_step_ms / 1e3).all(), "beyond doubt, once off was measured"
    for bucket, wanted in measurements(seen, model, chosen).items():
        for one in wanted:
            k = model.ks.index(one.cell[1])
            assert k == 0 or model.limit.expected_step_s[bucket, k] <= max_step_ms / 1e3


@pytest.mark.parametrize("value", [0, -5, float("nan"), 1e9, "fast"])
def test_a_limit_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="max_step_ms"):
        parse_operator_settings({"max_step_ms": value})


def test_the_longer_prompts_count_the_more_steps_carry_one() -> None:
    evidence = with_prefill(steady(STEPS_S, SURE), 0.030, 0.033)
    tokens_per_step = 4 * evidence.tokens_per_row(5)
    planned_at = {share: planned(replace(evidence, mixed_steps_per_token=share / tokens_per_step), 40.0) for share in (0.01, 0.3)}
    assert [plan.num_speculative_tokens(4) for plan in planned_at.values()] == [5, 0]


def test_the_noise_of_the_groups_own_steps_counts() -> None:
    evidence = steady(STEPS_S, SURE)
    noisy = {
        at: cell._replace(log_seconds_squared=cell.log_seconds_squared + cell.steps * 0.1**2) for at, cell in evidence.cells.items()
    }
    assert planned(evidence, 30.0).num_speculative_tokens(4) == 5
    assert planned(replace(evidence, cells=noisy), 30.0).num_speculative_tokens(4) == 1
