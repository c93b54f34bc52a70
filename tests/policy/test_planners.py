"""Each planner as a function of what is known: static ones obey the operator, `fleet` follows evidence and fails towards off."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.acceptance import AcceptanceEvidence
from nightjar.policy.batch_buckets import batch_bucket, buckets_up_to
from nightjar.policy.evidence import CellEvidence, Evidence
from nightjar.policy.planners import PLANNERS
from nightjar.policy.planners.calibration import missing_measurements
from nightjar.policy.planners.planner import GroupPlan, GroupView
from nightjar.policy.records import GroupKey, Table
from nightjar.policy.settings import OperatorSettings, parse_operator_settings

KEY = GroupKey(target="t", max_num_speculative_tokens=5, max_num_seqs=32)
SETTINGS = OperatorSettings(allowed_num_speculative_tokens=(0, 1, 3, 5))


def known(seconds: dict[tuple[int, int], float], acceptance: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4, 0.3)) -> Evidence:
    """Evidence by (decode batch, K) -> step seconds, and acceptance on a million rows."""
    cells = {
        (batch_bucket(batch), length): CellEvidence(20.0, 20.0 * math.log(value), 20.0 * batch)
        for (batch, length), value in seconds.items()
    }
    rows = (1e6,) * len(acceptance)
    return Evidence(cells, AcceptanceEvidence(rows, tuple(1e6 * share for share in acceptance)))


def fleet_plan(evidence: Evidence, present: GroupPlan | None = None) -> GroupPlan:
    return PLANNERS["fleet"](GroupView(KEY, SETTINGS, evidence, present))


def test_off_is_off_everywhere() -> None:
    plan = PLANNERS["off"](GroupView(KEY, SETTINGS, Evidence()))
    assert {plan.num_speculative_tokens(batch) for batch in range(33)} == {0}


@pytest.mark.parametrize(("wanted", "allowed", "runs"), [(None, None, 5), (4, None, 4), (9, None, 5), (4, (0, 3), 3), (2, (3,), 0)])
def test_fixed_runs_the_wanted_length_or_the_next_lower_one_that_may_run(
    wanted: int | None, allowed: tuple[int, ...] | None, runs: int
) -> None:
    settings = OperatorSettings(num_speculative_tokens=wanted, allowed_num_speculative_tokens=allowed)
    plan = PLANNERS["fixed"](GroupView(KEY, settings, Evidence()))
    assert plan.num_speculative_tokens(7) == runs
    assert ("may not run here" in plan.summary) == (wanted is not None and wanted != runs)


def test_schedule_runs_the_operators_table_within_the_engines_maximum() -> None:
    settings = parse_operator_settings({"planner": "schedule", "num_speculative_tokens_per_batch_size": [[1, 4, 9], [5, 16, 2]]})
    plan = PLANNERS["schedule"](GroupView(KEY, settings, Evidence()))
    assert [plan.num_speculative_tokens(batch) for batch in (1, 4, 5, 16, 17)] == [5, 5, 2, 2, 0]
    assert plan.summary == "K=5 at batch 1-4, K=2 at batch 5-16"


def test_fleet_takes_the_length_with_the_highest_predicted_goodput_and_says_so() -> None:
    plan = fleet_plan(known({(1, 0): 0.1, (1, 1): 0.11, (1, 3): 0.12, (1, 5): 0.2}))
    assert plan.num_speculative_tokens(1) == 3
    assert plan.reason(1) == "batch 1: K=3 gives 24.2 tok/s predicted against 10.0 off (20 clean steps)"


def test_fleet_stays_off_where_speculation_gains_less_than_the_margin() -> None:
    plan = fleet_plan(known({(1, 0): 0.100, (1, 1): 0.178}))
    assert plan.num_speculative_tokens(1) == 0
    assert "no more than the margin above it" in plan.reason(1)


def test_fleet_keeps_a_running_length_inside_the_margin_but_never_below_off() -> None:
    running = fleet_plan(known({(1, 0): 0.1, (1, 1): 0.15}))
    assert running.num_speculative_tokens(1) == 1
    assert fleet_plan(known({(1, 0): 0.1, (1, 1): 0.178}), running).num_speculative_tokens(1) == 1
    assert fleet_plan(known({(1, 0): 0.1, (1, 1): 0.181}), running).num_speculative_tokens(1) == 0
    close_rival = known({(1, 0): 0.1, (1, 1): 0.12, (1, 3): 0.12 * 2.9 / 1.8 / 1.01})
    assert fleet_plan(close_rival, running).num_speculative_tokens(1) == 1
    assert fleet_plan(close_rival).num_speculative_tokens(1) == 3


def test_a_bucket_whose_off_was_never_measured_does_not_speculate_on_its_own_evidence() -> None:
    assert fleet_plan(known({(1, 3): 0.05})).num_speculative_tokens(1) == 0


def test_buckets_not_measured_take_the_least_of_their_measured_neighbours() -> None:
    evidence = known({(2, 0): 0.1, (2, 5): 0.11, (8, 0): 0.1, (8, 1): 0.1, (16, 0): 0.1, (16, 3): 0.1})
    plan = fleet_plan(evidence)
    assert [plan.num_speculative_tokens(batch) for batch in (1, 2, 4, 8, 12, 16, 32)] == [5, 5, 1, 1, 1, 3, 3]


def test_nothing_measured_is_off_everywhere() -> None:
    plan = fleet_plan(Evidence())
    assert plan.summary == "off at batch 1-32"
    assert plan.reason(5) == "batch 4-5: off, nothing measured yet"


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
    plan = fleet_plan(evidence, fleet_plan(known(earlier, acceptance)) if earlier is not None else None)
    Table(rows=plan.rows)
    assert len(plan.reasons) == len(buckets_up_to(32))
    for batch in range(1, 33):
        length = plan.num_speculative_tokens(batch)
        assert length in {0, 1, 3, 5}
        chosen = evidence.goodput_tokens_per_s(batch_bucket(batch), length)
        off = evidence.goodput_tokens_per_s(batch_bucket(batch), 0)
        assert off is None or (chosen is not None and chosen >= off)
    highest = max((batch_bucket(batch) for batch, length in seconds if length == 0), default=None)
    if highest is not None:
        assert plan.num_speculative_tokens(32) <= plan.num_speculative_tokens((1, 2, 3, 4, 6, 8, 12, 16, 24, 32)[highest])


def missing(evidence: Evidence, batch: int = 1) -> tuple[int, ...]:
    return missing_measurements(GroupView(KEY, SETTINGS, evidence), batch_bucket(batch))


def test_calibration_measures_off_alone_first() -> None:
    assert missing(Evidence()) == (0,)
    assert missing(known({(1, 3): 0.1})) == (0,)


def test_calibration_goes_by_promise_as_the_nearest_measured_batch_knows_it() -> None:
    neighbour = {(2, 0): 0.1, (2, 1): 0.11, (2, 3): 0.2, (2, 5): 0.4}
    assert missing(known({(1, 0): 0.1, **neighbour})) == (1, 3, 5)
    assert missing(known({(1, 0): 0.1})) == (5, 3, 1)


def test_calibration_skips_lengths_that_could_not_win_with_the_best_acceptance_the_evidence_allows() -> None:
    assert missing(known({(1, 0): 0.1, (1, 1): 0.1}, acceptance=(0.01, 0.0, 0.0, 0.0, 0.0))) == ()
    assert missing(known({(1, 0): 0.1, (1, 1): 0.3}, acceptance=(0.9, 0.6, 0.3, 0.1, 0.05))) == ()


def test_calibration_ends_when_all_is_measured() -> None:
    assert missing(known({(1, length): 0.1 for length in (0, 1, 3, 5)})) == ()


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), max_size=6),
)
def test_acceptance_never_rises_with_the_position_and_stays_a_probability(counts: list[tuple[int, float]]) -> None:
    evidence = AcceptanceEvidence(tuple(float(n) for n, _ in counts), tuple(n * share for n, share in counts))
    for shares in (evidence.acceptance(8), evidence.optimistic_acceptance(8)):
        assert len(shares) == 8
        assert all(0.0 <= later <= earlier <= 1.0 for earlier, later in pairwise(shares))
    assert all(a <= b + 1e-12 for a, b in zip(evidence.acceptance(1), evidence.optimistic_acceptance(1), strict=True))
