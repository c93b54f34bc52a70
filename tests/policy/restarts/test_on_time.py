"""The value of being on: tokens until the load leaves, by where it stands."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.goodput import HORIZON_S
from nightjar.policy.restarts.on_time import HALF_LIFE_S, IDLE, SAMPLE_PERIOD_S, LoadState, TransitionCounts, TransitionWeight

MANY = 1_000_000
G = 1.0 - SAMPLE_PERIOD_S / HORIZON_S
NO_RETURN: dict[int, float] = {}


def moves_of(counts: Mapping[tuple[int, int], float]) -> TransitionCounts:
    """Moves from bucket to bucket, where it makes no difference from where a replica came."""
    seen: dict[tuple[LoadState, LoadState], TransitionWeight] = {}
    for (origin, target), count in counts.items():
        for was_falling in (False, True):
            is_falling = target < origin if target != origin else was_falling
            seen[LoadState(origin, was_falling), LoadState(target, is_falling)] = TransitionWeight(count, count)
    return TransitionCounts().plus(seen, 0.0)


def values_of(
    transitions: TransitionCounts, gains: Mapping[int, float], lag_costs: Mapping[int, float] = NO_RETURN
) -> dict[int, float]:
    """Values by bucket, the same wherever a replica came from."""
    values = transitions.value_tokens(gains, lag_costs)
    for bucket in gains:
        assert values[LoadState(bucket, is_falling=False)] == pytest.approx(values[LoadState(bucket, is_falling=True)], rel=1e-6)
    return {state.bucket: value for state, value in values.items()}


def test_one_bucket_that_is_left_every_tenth_second_is_worth_nearly_ten_seconds() -> None:
    transitions = moves_of({(3, 3): 9 * MANY, (3, 9): MANY})
    assert values_of(transitions, {3: 50.0})[3] == pytest.approx(50.0 / (1.0 - G * 0.9), rel=1e-4)


def test_a_bucket_that_is_never_left_is_worth_the_horizon_at_most() -> None:
    transitions = moves_of({(3, 3): MANY})
    assert values_of(transitions, {3: 50.0})[3] == pytest.approx(50.0 * HORIZON_S, rel=0.01)


def test_two_buckets_by_hand() -> None:
    """From 1: half stays, half goes to 2; from 2: half goes to 1, half leaves. V1 = 8 + g(V1 + V2)/2, V2 = 2 + g V1 / 2."""
    transitions = moves_of({(1, 1): MANY, (1, 2): MANY, (2, 1): MANY, (2, IDLE): MANY})
    values = values_of(transitions, {1: 8.0, 2: 2.0})
    first = (8.0 + G / 2 * 2.0) / (1.0 - G / 2 - G * G / 4)
    assert values == pytest.approx({1: first, 2: 2.0 + G / 2 * first}, rel=1e-4)


def test_the_edge_is_worth_less_than_the_depth_even_at_equal_gain() -> None:
    values = values_of(moves_of({(1, 1): 900, (1, 2): 100, (2, 1): 300, (2, 3): 700}), {1: 10.0, 2: 10.0})
    assert values[2] < values[1] / 2


def test_a_load_that_falls_through_a_bucket_is_worth_more_there_than_one_that_rises_through_it() -> None:
    rising, falling = LoadState(2, is_falling=False), LoadState(2, is_falling=True)
    up, down = (rising, LoadState(3, is_falling=False)), (falling, LoadState(1, is_falling=True))
    values = (
        TransitionCounts().plus(dict.fromkeys((up, down), TransitionWeight(100.0, 100.0)), 0.0).value_tokens({1: 10.0, 2: 10.0}, {})
    )
    assert values[falling] > 3 * values[rising]


def test_a_direction_that_was_never_seen_counts_as_its_bucket_does() -> None:
    stays = (LoadState(2, is_falling=False), LoadState(2, is_falling=False))
    values = TransitionCounts().plus({stays: TransitionWeight(MANY, MANY)}, 0.0).value_tokens({2: 10.0}, {})
    assert values[LoadState(2, is_falling=True)] == pytest.approx(10.0 * HORIZON_S, rel=0.01)


def test_a_place_in_which_nobody_is_believed_counts_as_its_bucket_does() -> None:
    state, gone = LoadState(2, is_falling=True), LoadState(IDLE, is_falling=True)
    bucket = moves_of({(2, 2): MANY, (2, IDLE): MANY})
    doubted = bucket.plus({(state, gone): TransitionWeight(0.0, 0.0), (state, state): TransitionWeight(0.0, 0.0)}, 0.0)
    assert values_of(doubted, {2: 10.0}) == pytest.approx(values_of(bucket, {2: 10.0}))


def test_an_excursion_by_hand() -> None:
    """From 1 every tenth sample leads to 2, where speculation is off and which is left at once, back to 1 or for good."""
    transitions = moves_of({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY / 2, (2, IDLE): MANY / 2})
    kept = (10.0 - G * 0.1 * 3.0) / (1.0 - G * 0.9 - G * G * 0.1 * 0.5)
    assert values_of(transitions, {1: 10.0}, {2: 3.0}) == pytest.approx({1: kept}, rel=1e-3)


def test_an_excursion_that_costs_more_than_the_way_back_is_worth_ends_the_on_time() -> None:
    transitions = moves_of({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY})
    assert values_of(transitions, {1: 10.0}, {2: 1e6}) == pytest.approx(values_of(transitions, {1: 10.0}))


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(IDLE, 4)), st.floats(0.0, 1e4), max_size=12),
    st.dictionaries(st.integers(0, 4), st.floats(0.01, 100.0), min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 4), st.floats(0.0, 100.0), max_size=5),
)
def test_to_bear_excursions_is_never_worth_less_and_never_more_than_the_whole_horizon(
    counts: dict[tuple[int, int], float], gains: dict[int, float], lag_costs: dict[int, float]
) -> None:
    transitions = moves_of(counts)
    without, borne = transitions.value_tokens(gains, {}), transitions.value_tokens(gains, lag_costs)
    assert without.keys() == borne.keys()
    assert {state.bucket for state in borne} == gains.keys()
    for state, value in without.items():
        assert value - 1e-6 <= borne[state] <= max(gains.values()) * HORIZON_S * (1.0 + 1e-9)


def test_before_any_evidence_being_on_lasts_about_ten_seconds() -> None:
    assert values_of(TransitionCounts(), {1: 10.0})[1] == pytest.approx(100.0, rel=0.1)
    assert TransitionCounts().value_tokens({}, {1: 3.0}) == {}


def test_old_moves_count_half_after_the_half_life() -> None:
    stays, leaves = (LoadState(1, is_falling=False),) * 2, (LoadState(1, is_falling=False), LoadState(2, is_falling=False))
    transitions = (
        TransitionCounts()
        .plus({stays: TransitionWeight(100.0, 10.0)}, 0.0)
        .plus({leaves: TransitionWeight(100.0, 0.0)}, HALF_LIFE_S)
    )
    assert transitions.counts == {stays: TransitionWeight(50.0, 5.0), leaves: TransitionWeight(100.0, 0.0)}
