"""Each planner as a function of what is known: static ones obey the operator, `fleet` follows evidence and fails towards off."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners import LEARNING_PLANNERS, LOCAL_PLANNERS, PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView, present_indices
from nightjar.policy.planners.calibration import measurements
from nightjar.policy.planners.fleet import choose, fleet_plan
from nightjar.policy.wire.batch_buckets import batch_bucket, buckets_up_to
from nightjar.policy.wire.operator import PLANNER_NAMES, OperatorSettings, parse_operator_settings
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import Table
from nightjar.policy.words import in_words

KEY = GroupKey(target="t", max_num_speculative_tokens=5, max_num_seqs=32)
SETTINGS = OperatorSettings(allowed_num_speculative_tokens=(0, 1, 3, 5))


def known(
    seconds: dict[tuple[int, int], float], acceptance: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4, 0.3), steps: float = 20.0
) -> Evidence:
    """Evidence by (decode batch, K) -> step seconds, and acceptance on a million rows."""
    cells = {
        Cell(batch_bucket(batch), k): CellEvidence(steps, steps * math.log(value), steps * batch)
        for (batch, k), value in seconds.items()
    }
    rows = (1e6,) * len(acceptance)
    return Evidence(cells, AcceptanceEvidence(rows, tuple(1e6 * share for share in acceptance)))


def plan_for(evidence: Evidence, present: GroupPlan | None = None) -> GroupPlan:
    view = GroupView(KEY, SETTINGS, evidence, present)
    return fleet_plan(view, view.goodput_model())


def test_every_name_that_an_operator_may_set_has_one_planner() -> None:
    assert sorted([*PLANNERS, *LEARNING_PLANNERS]) == sorted(PLANNER_NAMES)
    assert LOCAL_PLANNERS.keys() <= PLANNERS.keys()


def test_off_is_off_everywhere() -> None:
    plan = PLANNERS["off"](GroupView(KEY, SETTINGS, Evidence()))
    assert {plan.num_speculative_tokens(batch) for batch in range(33)} == {0}


@pytest.mark.parametrize(("wanted", "allowed", "runs"), [(None, None, 5), (4, None, 4), (9, None, 5), (4, (0, 3), 3), (2, (3,), 0)])
def test_fixed_runs_the_wanted_k_or_the_next_lower_one_that_may_run(
    wanted: int | None, allowed: tuple[int, ...] | None, runs: int
) -> None:
    settings = OperatorSettings(num_speculative_tokens=wanted, allowed_num_speculative_tokens=allowed)
    plan = PLANNERS["fixed"](GroupView(KEY, settings, Evidence()))
    assert plan.num_speculative_tokens(7) == runs
    assert ("may not run here" in in_words(plan.summary)) == (wanted is not None and wanted != runs)


def test_schedule_runs_the_operators_table_within_the_engines_maximum() -> None:
    settings = parse_operator_settings({"planner": "schedule", "num_speculative_tokens_per_batch_size": [[1, 4, 9], [5, 16, 2]]})
    plan = PLANNERS["schedule"](GroupView(KEY, settings, Evidence()))
    assert [plan.num_speculative_tokens(batch) for batch in (1, 4, 5, 16, 17)] == [5, 5, 2, 2, 0]
    assert in_words(plan.summary) == "K=5 at batch 1-4, K=2 at batch 5-16"


def test_fleet_takes_the_k_with_the_highest_predicted_goodput_and_says_so() -> None:
    plan = plan_for(known({(1, 0): 0.1, (1, 1): 0.11, (1, 3): 0.12, (1, 5): 0.2}))
    assert plan.num_speculative_tokens(1) == 3
    assert in_words(plan.causes(1)).startswith("batch 1: K=3 gives 24.")
    assert in_words(plan.causes(1)).endswith(" off (20 clean steps)")


def test_fleet_stays_off_where_speculation_gains_less_than_the_margin_and_its_doubt() -> None:
    plan = plan_for(known({(1, 0): 0.100, (1, 1): 0.178, (1, 3): 0.4, (1, 5): 0.6}))
    assert plan.num_speculative_tokens(1) == 0
    assert in_words(plan.causes(1)).startswith(
        "batch 1: off gives 10.0 tok/s predicted; K=1 may give 10.1, a gain smaller than its doubt (±"
    )
    sure = plan_for(known({(1, 0): 0.100, (1, 1): 0.178, (1, 3): 0.4, (1, 5): 0.6}, steps=1e6))
    assert in_words(sure.causes(1)).endswith("K=1 may give 10.1, a gain smaller than switch_margin (2.0%)"), in_words(
        sure.causes(1)
    )


def test_fleet_keeps_a_running_k_inside_the_margin_but_never_below_off() -> None:
    running = plan_for(known({(1, 0): 0.1, (1, 1): 0.15, (1, 3): 0.4, (1, 5): 0.6}))
    assert running.num_speculative_tokens(1) == 1
    slow = {(1, 3): 0.4, (1, 5): 0.6}
    assert plan_for(known({(1, 0): 0.1, (1, 1): 0.177} | slow), running).num_speculative_tokens(1) == 1
    assert plan_for(known({(1, 0): 0.1, (1, 1): 0.184} | slow), running).num_speculative_tokens(1) == 0
    close_rival = known({(1, 0): 0.1, (1, 1): 0.12, (1, 3): 0.12 * 2.9 / 1.8 / 1.005, (1, 5): 0.6})
    assert plan_for(close_rival, running).num_speculative_tokens(1) == 1


def test_a_gain_within_two_deviations_of_what_is_known_changes_nothing() -> None:
    seconds = {(1, 0): 0.1, (1, 1): 0.18 / 1.06, (1, 3): 0.4, (1, 5): 0.6}
    assert plan_for(known(seconds)).num_speculative_tokens(1) == 1
    assert plan_for(known(seconds, steps=1.0)).num_speculative_tokens(1) == 0


def test_until_off_was_measured_the_odds_decide_and_the_fuller_the_batch_the_worse_they_are() -> None:
    plan = plan_for(known({(1, 5): 0.05}))
    ks = [plan.num_speculative_tokens(batch) for batch in (1, 8, 32)]
    assert ks[0] > 0
    assert ks == sorted(ks, reverse=True)
    hopeless = known({(1, 5): 0.05}, acceptance=(0.05, 0.0, 0.0, 0.0, 0.0))
    assert in_words(plan_for(hopeless).summary) == "off at batch 1-32"


@pytest.mark.parametrize(("accepted", "runs"), [(0.44, 5), (0.2, 0)])
def test_until_off_was_measured_a_measured_k_goes_on_while_it_is_predicted_no_worse(accepted: float, runs: int) -> None:
    """To stop a fleet on a model's guess costs each replica a restart, while one of them measures off in a second."""
    running = plan_for(known({(8, 0): 0.1, (8, 5): 0.1}))
    assert running.num_speculative_tokens(8) == 5
    evidence = known({(8, 5): 0.1}, acceptance=(accepted, accepted / 2, 0.0, 0.0, 0.0))
    assert plan_for(evidence).num_speculative_tokens(8) == 0, "the odds"
    assert plan_for(evidence, running).num_speculative_tokens(8) == runs


@pytest.mark.parametrize(("steps", "replicas", "goes_on"), [(7.0, 1, True), (8.0, 1, False), (127.0, 16, True), (128.0, 16, False)])
def test_a_cold_group_changes_nothing_on_fewer_steps_than_one_measurement_has_for_each_replica(
    steps: float, replicas: int, goes_on: bool
) -> None:
    """Load that begins just before a tick: one step of each replica said nothing yet, and sixteen paid a restart for it."""

    def plan_on(evidence: Evidence, present: GroupPlan | None, settings: OperatorSettings = SETTINGS) -> GroupPlan:
        view = GroupView(KEY, settings, evidence, present, replicas=replicas)
        return fleet_plan(view, view.goodput_model())

    first = plan_on(Evidence(), None)
    assert first.num_speculative_tokens(1) > 0
    hopeless = known({(1, first.num_speculative_tokens(1)): 0.05}, acceptance=(0.05, 0.0, 0.0, 0.0, 0.0), steps=steps)
    assert (plan_on(hopeless, first).rows == first.rows) == goes_on
    assert plan_on(hopeless, None).num_speculative_tokens(1) == 0, "no plan to go on with"
    limited = SETTINGS.model_copy(update={"max_step_ms": 1.0})
    assert plan_on(hopeless, first, limited).num_speculative_tokens(1) == 0, "the operator's limit holds at once"


def test_where_only_off_was_measured_speculation_runs_as_measured_batches_nearby_tell() -> None:
    around = {(batch, k): (0.1 + 0.0005 * batch) * (1.0 + 0.05 * k) for batch in (4, 12) for k in (0, 1, 3, 5)}
    plan = plan_for(known({**around, (8, 0): 0.104}))
    assert plan.num_speculative_tokens(8) == plan.num_speculative_tokens(4) == 5
    assert in_words(plan.causes(8)).startswith("batch 8-11: K=5 gives ~")


@pytest.mark.parametrize(
    ("accepted", "words"),
    [((0.95, 0.9, 0.86, 0.82, 0.78), "batch 1: K=5, what"), ((0.05, 0.0, 0.0, 0.0, 0.0), "batch 1: off by the odds, what")],
)
def test_where_a_single_k_ever_ran_no_number_is_told_of_another(accepted: tuple[float, ...], words: str) -> None:
    plan = plan_for(known({(batch, 5): 0.05 for batch in (1, 8, 32)}, acceptance=accepted))
    reasons = [in_words(plan.causes(batch)) for batch in (1, 8, 32)]
    assert reasons[0].startswith(words)
    assert all(reason.endswith(" what other K give is not known: only K=5 ever ran here") for reason in reasons)


def test_far_from_all_that_was_measured_the_plan_is_off() -> None:
    plan = plan_for(known({(1, 0): 0.1, (1, 1): 0.11, (1, 3): 0.12, (1, 5): 0.13}))
    assert plan.num_speculative_tokens(1) == 5
    assert plan.num_speculative_tokens(32) == 0


def test_with_nothing_measured_a_full_batch_is_off_and_the_reason_says_that_nothing_is_known() -> None:
    view = GroupView(KEY.model_copy(update={"max_num_seqs": 256}), SETTINGS, Evidence())
    plan = fleet_plan(view, view.goodput_model())
    assert plan.num_speculative_tokens(256) == 0
    assert plan.num_speculative_tokens(1) > 0
    assert in_words(plan.causes(256)) == "batch 256: off by the odds, nothing measured yet"


seconds_by_cell = st.dictionaries(
    st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]), st.sampled_from([0, 1, 3, 5])), st.floats(1e-3, 1.0), max_size=30
)


@given(
    seconds_by_cell,
    st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5).map(lambda shares: tuple(sorted(shares, reverse=True))),
    st.one_of(st.none(), seconds_by_cell),
)
def test_a_plan_is_a_legal_table_and_never_predicted_below_off(
    seconds: dict[tuple[int, int], float], acceptance: tuple[float, ...], earlier: dict[tuple[int, int], float] | None
) -> None:
    evidence = known(seconds, acceptance)
    plan = plan_for(evidence, plan_for(known(earlier, acceptance)) if earlier is not None else None)
    Table(rows=plan.rows)
    assert len(plan.reasons) == len(buckets_up_to(32))
    model = GroupView(KEY, SETTINGS, evidence).goodput_model()
    assert np.isfinite(model.log_goodput).all()
    for batch in range(1, 33):
        k = plan.num_speculative_tokens(batch)
        assert k in {0, 1, 3, 5}
        bucket = batch_bucket(batch)
        assert model.goodput_tokens_per_s(bucket, k) >= model.goodput_tokens_per_s(bucket, 0)


def wanted(evidence: Evidence, batch: int = 1, now_s: float = 0.0, replicas: int = 1) -> set[int]:
    view = GroupView(KEY, SETTINGS, evidence, now_s=now_s, replicas=replicas)
    model = view.goodput_model()
    planned = present_indices(view.with_plan(fleet_plan(view, view.goodput_model())))
    return {one.cell[1] for one in measurements(view, model, planned).get(batch_bucket(batch), ())}


def test_where_nothing_is_known_every_other_k_is_worth_a_measurement_and_so_is_off() -> None:
    planned = plan_for(Evidence()).num_speculative_tokens(1)
    assert wanted(Evidence()) == {0, 1, 3, 5} - {planned}


def test_a_k_that_could_only_win_by_a_miracle_is_not_worth_a_measurement() -> None:
    assert wanted(known({(1, 0): 0.1, (1, 1): 0.1}, acceptance=(0.01, 0.0, 0.0, 0.0, 0.0))) == set()
    assert wanted(known({(1, 0): 0.1, (1, 1): 0.3}, acceptance=(0.5, 0.2, 0.1, 0.05, 0.02))) == set()


def test_measurements_end_when_all_is_known_and_reopen_as_it_ages() -> None:
    all_known = known({(1, 0): 0.1, (1, 1): 0.15, (1, 3): 0.3, (1, 5): 0.6})
    assert wanted(all_known) == set()
    assert wanted(all_known, now_s=3600.0)


def test_near_ties_are_looked_at_again_while_their_doubt_leaves_a_chance() -> None:
    tie = {(1, 0): 0.1, (1, 1): 0.15, (1, 3): 0.24, (1, 5): 0.6}
    assert wanted(known(tie)) == {3}
    assert wanted(known(tie, steps=2000.0)) == set()


SLOW_AT_TWO_ROWS = {(1, 0): 0.2, (1, 1): 0.27, (1, 3): 0.31, (2, 0): 0.21, (2, 1): 0.28, (2, 3): 0.33, (2, 5): 0.75}
FALLING = (0.76, 0.6, 0.5, 0.3, 0.25)


def test_the_model_thinks_little_at_one_row_of_what_is_slow_at_two() -> None:
    model = GroupView(KEY, SETTINGS, known(SLOW_AT_TWO_ROWS, FALLING, steps=60.0)).goodput_model()
    assert model.goodput_tokens_per_s(0, 5) < 0.75 * model.goodput_tokens_per_s(0, 3)


@pytest.mark.parametrize(
    ("steps", "replicas", "tried"), [(40.0, 1, False), (60.0, 1, True), (60.0, 2, True), (60.0, 3, False), (200.0, 3, True)]
)
def test_a_bucket_at_home_with_one_k_tries_each_other_though_the_model_thinks_little_of_it(
    steps: float, replicas: int, tried: bool
) -> None:
    assert (5 in wanted(known(SLOW_AT_TWO_ROWS, FALLING, steps), replicas=replicas)) == tried


@pytest.mark.parametrize("seen_steps", [3.0, 8.0])
def test_it_does_so_once_even_where_the_measurement_was_cut_short(seen_steps: float) -> None:
    evidence = known(SLOW_AT_TWO_ROWS, FALLING, steps=60.0)
    slow = CellEvidence(seen_steps, seen_steps * math.log(0.75), seen_steps)
    assert 5 in wanted(evidence)
    assert 5 not in wanted(replace(evidence, cells={**evidence.cells, Cell(0, 5): slow}))


def test_a_k_that_is_expected_to_give_less_than_half_is_not_tried_even_there() -> None:
    assert 5 not in wanted(known({**SLOW_AT_TWO_ROWS, (2, 5): 3.0}, acceptance=(0.76, 0.6, 0.5, 0.1, 0.05), steps=60.0))


def test_a_bucket_at_home_with_off_tries_nothing_for_that() -> None:
    off_is_best = {(1, 0): 0.1, (1, 1): 0.27, (1, 3): 0.5, (2, 0): 0.11, (2, 1): 0.28, (2, 3): 0.5, (2, 5): 0.75}
    assert wanted(known(off_is_best, FALLING, steps=60.0)) == set()


def test_off_is_measured_again_where_speculation_has_run_for_ten_minutes() -> None:
    clear = known({(1, 0): 0.2, (1, 1): 0.11, (1, 3): 0.5, (1, 5): 0.9}, steps=200.0)
    assert wanted(clear, now_s=599.0) == set()
    assert wanted(clear, now_s=601.0) == {0}


def test_where_off_has_run_for_ten_minutes_the_best_k_is_measured_again() -> None:
    hopeless = known({(1, 0): 0.1, (1, 1): 0.3, (1, 3): 0.9, (1, 5): 1.5}, steps=200.0)
    assert wanted(hopeless, now_s=599.0) == set()
    assert wanted(hopeless, now_s=601.0) == {1}


def test_a_bucket_in_use_measures_once_what_no_neighbour_can_tell() -> None:
    acceptance = (0.76, 0.62, 0.53, 0.45, 0.4)
    measured = {(4, 0): 0.237, (4, 3): 0.554, (4, 5): 0.687}
    assert 1 in wanted(known(measured, acceptance, steps=200.0), batch=4)
    assert 1 not in wanted(known({**measured, (4, 1): 0.4}, acceptance, steps=200.0), batch=4)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), max_size=6),
)
def test_acceptance_never_rises_with_the_position_and_stays_a_probability(counts: list[tuple[int, float]]) -> None:
    evidence = AcceptanceEvidence(tuple(float(n) for n, _ in counts), tuple(n * share for n, share in counts))
    shares = evidence.acceptance(8)
    assert len(shares) == 8
    assert all(0.0 <= later <= earlier <= 1.0 for earlier, later in pairwise(shares))
    covariance = evidence.covariance(shares, now_s=0.0)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    older = evidence.covariance(shares, now_s=600.0)
    assert (np.diag(older) >= np.diag(covariance)).all()


def _model(gains_over_off: tuple[float, ...], deviation: float) -> GoodputModel:
    """One bucket, K 0, 2 and 5, of log goodput above off with independent doubt; off itself is known."""
    deviations = np.array([0.0, deviation, deviation])
    return GoodputModel(
        ks=(0, 2, 5),
        log_goodput=np.array([[0.0, *gains_over_off]]),
        covariance=np.diag(deviations**2)[None],
        rows=np.array([4.0]),
        tokens_per_row=np.ones(3),
        tokens_deviation=deviations,
    )


@pytest.mark.parametrize(
    ("gains_over_off", "present", "chosen", "why"),
    [
        ((0.30, 0.25), 2, 1, "both far above off: five per cent at 3.5 per cent of doubt are enough"),
        ((0.30, 0.27), 2, 2, "both far above off: three per cent are not"),
        ((0.06, 0.01), 2, 2, "the present one is in doubt against off: its rival must be beyond doubt"),
        ((0.05, -0.20), 0, 0, "off gives way only beyond two deviations"),
        ((0.06, -0.20), 0, 1, "and does so there"),
        ((0.30, -0.01), 2, 1, "what is predicted below off does not stay"),
    ],
)
def test_a_change_between_two_k_that_beat_off_needs_less_proof_than_one_away_from_off(
    gains_over_off: tuple[float, ...], present: int, chosen: int, why: str
) -> None:
    model = _model(gains_over_off, deviation=0.025)
    assert choose(model, np.array([present]), switch_margin=0.02).tolist() == [chosen], why
