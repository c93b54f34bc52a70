"""The value of being on: tokens until the load leaves, by where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.on_time import HALF_LIFE_S, HORIZON_SAMPLES, IDLE, Moves, Place, Watch

MANY = 1_000_000
G = 1.0 - 1.0 / HORIZON_SAMPLES
NO_RETURN: dict[int, float] = {}


def moves_of(counts: Mapping[tuple[int, int], float]) -> Moves:
    """Moves from bucket to bucket, where it makes no difference from where a replica came."""
    seen: dict[tuple[Place, Place], float] = {}
    for (origin, target), count in counts.items():
        for was_falling in (False, True):
            is_falling = target < origin if target != origin else was_falling
            seen[Place(origin, was_falling), Place(target, is_falling)] = count
    return Moves().plus(seen, 0.0)


def values_of(moves: Moves, gains: Mapping[int, float], lag_costs: Mapping[int, float] = NO_RETURN) -> dict[int, float]:
    """Values by bucket, the same wherever a replica came from."""
    values = moves.value_tokens(gains, lag_costs)
    for bucket in gains:
        assert values[Place(bucket, is_falling=False)] == pytest.approx(values[Place(bucket, is_falling=True)], rel=1e-6)
    return {place.bucket: value for place, value in values.items()}


def test_one_bucket_that_is_left_every_tenth_second_is_worth_nearly_ten_seconds() -> None:
    moves = moves_of({(3, 3): 9 * MANY, (3, 9): MANY})
    assert values_of(moves, {3: 50.0})[3] == pytest.approx(50.0 / (1.0 - G * 0.9), rel=1e-4)


def test_a_bucket_that_is_never_left_is_worth_the_horizon_at_most() -> None:
    moves = moves_of({(3, 3): MANY})
    assert values_of(moves, {3: 50.0})[3] == pytest.approx(50.0 * HORIZON_SAMPLES, rel=0.01)


def test_two_buckets_by_hand() -> None:
    """From 1: half stays, half goes to 2; from 2: half goes to 1, half leaves. V1 = 8 + g(V1 + V2)/2, V2 = 2 + g V1 / 2."""
    moves = moves_of({(1, 1): MANY, (1, 2): MANY, (2, 1): MANY, (2, IDLE): MANY})
    values = values_of(moves, {1: 8.0, 2: 2.0})
    first = (8.0 + G / 2 * 2.0) / (1.0 - G / 2 - G * G / 4)
    assert values == pytest.approx({1: first, 2: 2.0 + G / 2 * first}, rel=1e-4)


def test_the_edge_is_worth_less_than_the_depth_even_at_equal_gain() -> None:
    values = values_of(moves_of({(1, 1): 900, (1, 2): 100, (2, 1): 300, (2, 3): 700}), {1: 10.0, 2: 10.0})
    assert values[2] < values[1] / 2


def test_a_load_that_falls_through_a_bucket_is_worth_more_there_than_one_that_rises_through_it() -> None:
    rising, falling = Place(2, is_falling=False), Place(2, is_falling=True)
    up, down = (rising, Place(3, is_falling=False)), (falling, Place(1, is_falling=True))
    values = Moves().plus({up: 100.0, down: 100.0}, 0.0).value_tokens({1: 10.0, 2: 10.0}, {})
    assert values[falling] > 3 * values[rising]


def test_a_direction_that_was_never_seen_counts_as_its_bucket_does() -> None:
    stays = (Place(2, is_falling=False), Place(2, is_falling=False))
    values = Moves().plus({stays: MANY}, 0.0).value_tokens({2: 10.0}, {})
    assert values[Place(2, is_falling=True)] == pytest.approx(10.0 * HORIZON_SAMPLES, rel=0.01)


def test_an_excursion_by_hand() -> None:
    """From 1 every tenth sample leads to 2, where speculation is off and which is left at once, back to 1 or for good."""
    moves = moves_of({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY / 2, (2, IDLE): MANY / 2})
    kept = (10.0 - G * 0.1 * 3.0) / (1.0 - G * 0.9 - G * G * 0.1 * 0.5)
    assert values_of(moves, {1: 10.0}, {2: 3.0})[1] == pytest.approx(kept, rel=1e-3)


def test_an_excursion_that_costs_more_than_the_way_back_is_worth_ends_the_on_time() -> None:
    moves = moves_of({(1, 1): 9 * MANY, (1, 2): MANY, (2, 1): MANY})
    assert values_of(moves, {1: 10.0}, {2: 1e6}) == pytest.approx(values_of(moves, {1: 10.0}))


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(IDLE, 4)), st.floats(0.0, 1e4), max_size=12),
    st.dictionaries(st.integers(0, 4), st.floats(0.01, 100.0), max_size=5),
    st.dictionaries(st.integers(0, 4), st.floats(0.0, 100.0), max_size=5),
)
def test_to_bear_excursions_is_never_worth_less_and_never_more_than_the_whole_horizon(
    counts: dict[tuple[int, int], float], gains: dict[int, float], lag_costs: dict[int, float]
) -> None:
    moves = moves_of(counts)
    without, borne = moves.value_tokens(gains, {}), moves.value_tokens(gains, lag_costs)
    for place, value in without.items():
        assert value - 1e-6 <= borne[place] <= max(gains.values()) * HORIZON_SAMPLES * (1.0 + 1e-9)


def test_before_any_evidence_being_on_lasts_about_ten_seconds() -> None:
    assert values_of(Moves(), {1: 10.0})[1] == pytest.approx(100.0, rel=0.1)
    assert Moves().value_tokens({}, {1: 3.0}) == {}


def test_old_moves_count_half_after_the_half_life() -> None:
    stays, leaves = (Place(1, is_falling=False),) * 2, (Place(1, is_falling=False), Place(2, is_falling=False))
    moves = Moves().plus({stays: 100}, 0.0).plus({leaves: 100}, HALF_LIFE_S)
    assert moves.counts == pytest.approx({stays: 50.0, leaves: 100.0})


def watched(batches: Callable[[int], dict[str, int]], seconds: int = 600) -> Moves:
    """The moves of a group that runs `batches` in each second."""
    watch, moves = Watch(), Moves()
    for second in range(seconds):
        watch, seen = watch.look(batches(second), float(second))
        moves = moves.plus(seen, float(second))
    return moves


@pytest.mark.parametrize("honest", [2, 7])
def test_inv_10_a_replica_that_jumps_every_second_does_not_end_the_on_time_of_its_group(honest: int) -> None:
    calm = {f"r{number}": 4 for number in range(honest)}
    beside = watched(lambda second: {**calm, "liar": 4 if second % 2 else 256})
    for place, alone in watched(lambda second: calm).value_tokens({3: 1.0}, {}).items():
        assert 0.6 * alone < beside.value_tokens({3: 1.0}, {})[place] <= 1.01 * alone


def test_where_a_whole_group_moves_every_move_counts() -> None:
    moves = watched(lambda second: dict.fromkeys("abcd", 4 if second % 2 else 8), seconds=3)
    up, down = Place(5, is_falling=False), Place(3, is_falling=True)
    assert moves.counts == pytest.approx({(Place(5, is_falling=True), down): 4.0, (down, up): 4.0}, rel=0.01)


def test_a_look_counts_one_move_a_second_and_none_over_a_silence() -> None:
    idle = Place(IDLE, is_falling=True)
    watch, moves = Watch().look({"a": 1, "b": 0}, 0.0)
    assert moves == {}
    watch, moves = watch.look({"a": 8, "b": 1}, 0.5)
    assert moves == {}
    watch, moves = watch.look({"a": 8, "b": 0}, 1.0)
    assert moves == {(Place(0, is_falling=True), Place(5, is_falling=False)): 1, (idle, idle): 1}
    watch, moves = watch.look({"a": 1, "b": 0}, 9.0)
    assert moves == {}
    assert watch.look({"a": 1}, 10.0)[1] == {(Place(0, is_falling=True),) * 2: 1}


def test_where_a_replica_stands_is_told_by_its_last_change_of_bucket() -> None:
    watch, _ = Watch().look({"a": 8}, 0.0)
    assert watch.place("a", 5) == Place(5, is_falling=True)
    assert watch.place("a", 7) == Place(7, is_falling=False)
    watch, _ = watch.look({"a": 16}, 1.0)
    assert [watch.place("a", bucket).is_falling for bucket in (6, 7, 8)] == [True, False, False]
    assert watch.place("b", 3) == Place(3, is_falling=True)
