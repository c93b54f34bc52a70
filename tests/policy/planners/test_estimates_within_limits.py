"""A plan within a limit that concerns some replicas alone: the group's K where it keeps the limit, elsewhere the best that does."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.planners.base import GroupPlan, GroupView
from nightjar.policy.planners.estimates import Estimate, refreshed, replan, within
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.words import in_words
from tests.policy.planners.test_planners import KEY, known
from tests.policy.planners.test_step_limit import KS, STEPS_S, SURE, steady

SETTINGS = OperatorSettings(allowed_num_speculative_tokens=KS)


def seen(evidence: Evidence, max_step_ms: float | None = None) -> GroupView:
    return GroupView(KEY, SETTINGS.model_copy(update={"max_step_ms": max_step_ms}), evidence)


def estimate_of(evidence: Evidence, max_step_ms: float | None = None) -> Estimate:
    return replan(seen(evidence, max_step_ms))


def limited(evidence: Evidence, max_step_ms: float, last: GroupPlan | None = None) -> GroupPlan:
    return within(seen(evidence), estimate_of(evidence), max_step_ms, last).plan


def test_where_the_groups_k_exceeds_the_limit_the_best_that_keeps_it_runs_and_the_reason_says_what_it_forbids() -> None:
    known_well = steady(STEPS_S, SURE)
    plan = limited(known_well, 26.5)
    assert (estimate_of(known_well).plan.num_speculative_tokens(4), plan.num_speculative_tokens(4)) == (5, 3)
    assert "K=5 would give more, but max_step_ms 26.5 forbids its steps of up to" in in_words(plan.causes(4))


def test_where_the_groups_k_keeps_the_limit_it_runs_with_the_groups_own_reason() -> None:
    known_well = steady(STEPS_S, SURE)
    group, plan = estimate_of(known_well).plan, limited(known_well, 400.0)
    assert (plan.rows, plan.reasons) == (group.rows, group.reasons)


def test_a_limit_that_nothing_keeps_leaves_off_which_may_always_run_and_be_measured() -> None:
    evidence = steady(STEPS_S, SURE)
    made = within(seen(evidence), estimate_of(evidence), 1.0, None)
    assert {row.num_speculative_tokens for row in made.plan.rows} == {0}
    assert [k for k, may in zip(KS, made.goodput_model.may_be_tried[batch_bucket(4)], strict=True) if may] == [0]


def test_what_ran_within_the_limit_stays_where_it_is_not_beyond_doubt_better_than_off_any_more() -> None:
    steps_s = {(4, 0): 0.020, (4, 1): 0.0345, (4, 3): 0.064, (4, 5): 0.060}
    sure, unsure = (steady(steps_s, steps) for steps in (SURE, 4.0))
    before = limited(sure, 50.0)
    assert (estimate_of(sure).plan.num_speculative_tokens(4), before.num_speculative_tokens(4)) == (5, 1)
    assert limited(unsure, 50.0).num_speculative_tokens(4) == 0
    assert limited(unsure, 50.0, last=before).num_speculative_tokens(4) == 1


def test_it_is_thought_of_again_only_where_the_thought_or_the_limit_is_another() -> None:
    view = seen(steady(STEPS_S, SURE))
    group = replan(view)
    made = refreshed(view, group, 26.5, None)
    assert refreshed(view, group, 26.5, made) is made
    assert refreshed(view, group, 22.5, made) is not made
    assert refreshed(view, replace(group, at_s=1.0), 26.5, made) is not made


@given(
    st.dictionaries(st.tuples(st.sampled_from([1, 4, 16, 32]), st.sampled_from(KS)), st.floats(0.001, 1.0), max_size=8),
    st.floats(0.5, 2000.0),
    st.floats(1.0, 2000.0),
)
def test_whatever_is_known_a_replicas_limit_keeps_the_groups_k_or_takes_one_that_the_same_limit_for_all_would_allow(
    seconds: dict[tuple[int, int], float], max_step_ms: float, steps: float
) -> None:
    evidence = known(seconds, steps=steps)
    plan, group, model = (
        limited(evidence, max_step_ms),
        estimate_of(evidence).plan,
        estimate_of(evidence, max_step_ms).goodput_model,
    )
    off_is_known = any(k == 0 for _, k in seconds)
    for bucket in seen(evidence).buckets:
        runs, planned = (one.num_speculative_tokens(FIRST_BATCH_SIZES[bucket]) for one in (plan, group))
        assert (model.allowed if off_is_known else model.may_be_tried)[bucket, model.ks.index(runs)]
        if model.allowed[bucket, model.ks.index(planned)]:
            assert runs == planned
