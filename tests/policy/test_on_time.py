"""The value of being on: tokens until the load leaves, by where it stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.on_time import HALF_LIFE_S, HORIZON_SAMPLES, IDLE, Moves, Watch

MANY = 1_000_000
G = 1.0 - 1.0 / HORIZON_SAMPLES


def test_one_bucket_that_is_left_every_tenth_second_is_worth_nearly_ten_seconds() -> None:
    moves = Moves().plus({(3, 3): 9 * MANY, (3, 9): MANY}, 0.0)
    assert moves.value_tokens({3: 50.0}, {})[3] == pytest.approx(50.0 / (1.0 - G * 0.9), rel=1e-4)


def test_a_bucket_that_is_never_left_is_worth_the_horizon_at_most() -> None:
    moves = Moves().plus({(3, 3): MANY}, 0.0)
    assert moves.value_tokens({3: 50.0}, {})[3] == pytest.approx(50.0 * HORIZON_SAMPLES, rel=0.01)


def test_two_buckets_by_hand() -> None:
    """From 1: half stays, half goes to 2; from 2: half goes to 1, half leaves. V1 = 8 + g(V1 + V2)/2, V2 = 2 + g V1 / 2."""
    moves = Moves().plus({(1, 1): MANY, (1, 2): MANY, (2, 1): MANY, (2, IDLE): MANY}, 0.0)
    values = moves.value_tokens({1: 8.0, 2: 2.0}, {})
    first = (8.0 + G / 2 * 2.0) / (1.0 - G / 2 - G * G / 4)
    assert values == pytest.approx({1: first, 2: 2.0 + G / 2 * first}, rel=1e-4)


def test_the_edge_is_worth_less_than_the_depth_even_at_equal_gain() -> None:
    moves = Moves().plus({(1, 1): 90, (1, 2): 10, (2, 1): 30, (2, 3): 70}, 0.0)
    values = moves.value_tokens({1: 10.0, 2: 10.0}, {})
    assert values[2] < values[1] / 2


def test_an_excursion_by_hand() -> None:
    """From 1 every tenth sample leads to 2, where speculation is off and which is left at once, back to 1 or for good."""
    moves = Moves().plus({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY / 2, (2, IDLE): MANY / 2}, 0.0)
    kept = (10.0 - G * 0.1 * 3.0) / (1.0 - G * 0.9 - G * G * 0.1 * 0.5)
    assert moves.value_tokens({1: 10.0}, {2: 3.0}) == pytest.approx({1: kept}, rel=1e-3)


def test_an_excursion_that_costs_more_than_the_way_back_is_worth_ends_the_on_time() -> None:
    moves = Moves().plus({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY}, 0.0)
    assert moves.value_tokens({1: 10.0}, {2: 1e6}) == pytest.approx(moves.value_tokens({1: 10.0}, {}))


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(IDLE, 4)), st.floats(0.0, 1e4), max_size=12),
    st.dictionaries(st.integers(0, 4), st.floats(0.01, 100.0), min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 4), st.floats(0.0, 100.0), max_size=5),
)
def test_to_bear_excursions_is_never_worth_less_and_never_more_than_the_whole_horizon(
    counts: dict[tuple[int, int], float], gains: dict[int, float], lag_costs: dict[int, float]
) -> None:
    moves = Moves().plus(counts, 0.0)
    without, borne = moves.value_tokens(gains, {}), moves.value_tokens(gains, lag_costs)
    assert without.keys() == borne.keys() == gains.keys()
    for bucket, value in without.items():
        assert value - 1e-6 <= borne[bucket] <= max(gains.values()) * HORIZON_SAMPLES * (1.0 + 1e-9)


def test_before_any_evidence_being_on_lasts_about_ten_seconds() -> None:
    assert Moves().value_tokens({1: 10.0}, {})[1] == pytest.approx(100.0, rel=0.1)
    assert Moves().value_tokens({}, {1: 3.0}) == {}


def test_old_moves_count_half_after_the_half_life() -> None:
    moves = Moves().plus({(1, 1): 100}, 0.0).plus({(1, 2): 100}, HALF_LIFE_S)
    assert moves.counts == pytest.approx({(1, 1): 50.0, (1, 2): 100.0})


def watched(batches: Callable[[int], dict[str, int]], seconds: int = 600) -> Moves:
    """The moves of a group that runs `batches` in each second."""
    watch, moves = Watch(), Moves()
    for second in range(seconds):
        watch, seen = watch.look(batches(second), float(second))
        moves = moves.plus(seen, float(second))
    return moves


@pytest.mark.parametrize("honest", [2, 7])
@pytest.mark.parametrize("jumps", [(4, 256), (256, 4, 0)])
def test_inv_10_a_replica_that_jumps_every_second_does_not_end_the_on_time_of_its_group(
    honest: int, jumps: tuple[int, ...]
) -> None:
    def calm(second: int) -> dict[str, int]:
        return dict.fromkeys(map(str, range(honest)), 4 if second else 0)

    costs = dict.fromkeys(range(4, 12), 5.0)
    alone = watched(calm).value_tokens({3: 1.0}, costs)[3]
    beside = watched(lambda second: {**calm(second), "liar": jumps[second % len(jumps)]}).value_tokens({3: 1.0}, costs)[3]
    assert 0.6 * alone < beside <= 1.01 * alone


def test_where_a_whole_group_moves_every_move_counts() -> None:
    moves = watched(lambda second: dict.fromkeys("abcd", 4 if second % 2 else 8), seconds=3)
    assert moves.counts == pytest.approx({(5, 3): 4.0, (3, 5): 4.0}, rel=0.01)


def test_a_look_counts_one_move_a_second_and_none_over_a_silence() -> None:
    watch, moves = Watch().look({"a": 1, "b": 0}, 0.0)
    assert moves == {}
    watch, moves = watch.look({"a": 8, "b": 1}, 0.5)
    assert moves == {}
    watch, moves = watch.look({"a": 8, "b": 0}, 1.0)
    assert moves == {(0, 5): 1, (IDLE, IDLE): 1}
    watch, moves = watch.look({"a": 1, "b": 0}, 9.0)
    assert moves == {}
    assert watch.look({"a": 1}, 10.0)[1] == {(0, 0): 1}
