"""What a group's replicas are seen to do, and how far one of them is believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nightjar.policy.restarts.on_time import IDLE, LoadState, LoadTracker, TransitionCounts, TransitionWeight

FOUR_ROWS = 3
"""The bucket of a batch of 4."""
ON = {FOUR_ROWS: 1.0}
ABOVE = dict.fromkeys(range(FOUR_ROWS + 1, 12), 5.0)
"""What it costs to fall behind in the buckets above."""


def watched(batches: Callable[[int], dict[str, int]], seconds: int = 600) -> TransitionCounts:
    """The moves of a group that runs `batches` in each second."""
    tracker, transitions = LoadTracker(), TransitionCounts()
    for second in range(seconds):
        tracker, seen = tracker.look(batches(second), float(second))
        transitions = transitions.plus(seen, float(second))
    return transitions


def steady(honest: int) -> Callable[[int], dict[str, int]]:
    """Rise once and stay."""
    return lambda second: dict.fromkeys(map(str, range(honest)), 4 if second else 0)


def swinging(honest: int) -> Callable[[int], dict[str, int]]:
    """Three minutes of a surge, three minutes of its end, a minute idle, each a little after the one before."""

    def at(second: int) -> dict[str, int]:
        phases = {str(number): (second - number) % 420 for number in range(honest)}
        return {name: 256 if phase < 180 else 4 if phase < 360 else 0 for name, phase in phases.items()}

    return at


@pytest.mark.parametrize("honest", [2, 7])
@pytest.mark.parametrize("jumps", [(4, 256), (256, 4, 0), (4, 0)])
@pytest.mark.parametrize("load", [steady, swinging])
def test_inv_10_a_replica_that_jumps_every_second_does_not_end_the_on_time_of_its_group(
    honest: int, jumps: tuple[int, ...], load: Callable[[int], Callable[[int], dict[str, int]]]
) -> None:
    """Wherever honest replicas come from, and where none of them does."""
    at = load(honest)
    alone = watched(at, 1260).value_tokens(ON, ABOVE)
    beside = watched(lambda second: {**at(second), "liar": jumps[second % len(jumps)]}, 1260).value_tokens(ON, ABOVE)
    for state, value in alone.items():
        assert 0.5 * value < beside[state] <= 1.2 * value


def test_inv_10_a_place_that_one_replica_alone_visits_counts_as_its_bucket_does() -> None:
    at, falling = steady(7), LoadState(FOUR_ROWS, is_falling=True)
    alone = watched(at).value_tokens(ON, ABOVE)[falling]
    bursts = watched(lambda second: {**at(second), "bursts": (256, 4, 4, 4, 4, 0)[second % 6]}).value_tokens(ON, ABOVE)[falling]
    assert 0.5 * alone < bursts <= alone


def test_two_replicas_are_believed_whatever_they_do() -> None:
    transitions = watched(lambda second: {"a": 4, "b": (4, 256)[second % 2]}, seconds=101)
    left = [count for (origin, target), count in transitions.counts.items() if origin.bucket == FOUR_ROWS != target.bucket]
    assert sum(count.of_state for count in left) == pytest.approx(50.0, rel=0.1)
    assert sum(count.of_bucket for count in left) == pytest.approx(50.0, rel=0.1)


def test_where_a_whole_group_moves_every_move_counts() -> None:
    transitions = watched(lambda second: dict.fromkeys("abcd", 4 if second % 2 else 8), seconds=3)
    up, down = LoadState(5, is_falling=False), LoadState(FOUR_ROWS, is_falling=True)
    whole = pytest.approx((4.0, 4.0), rel=0.01)
    assert transitions.counts == {(LoadState(5, is_falling=True), down): whole, (down, up): whole}


def test_a_look_counts_one_move_a_second_and_none_over_a_silence() -> None:
    idle, once = LoadState(IDLE, is_falling=True), TransitionWeight(1.0, 1.0)
    tracker, transitions = LoadTracker().look({"a": 1, "b": 0}, 0.0)
    assert transitions == {}
    tracker, transitions = tracker.look({"a": 8, "b": 1}, 0.5)
    assert transitions == {}
    tracker, transitions = tracker.look({"a": 8, "b": 0}, 1.0)
    assert transitions == {(LoadState(0, is_falling=True), LoadState(5, is_falling=False)): once, (idle, idle): once}
    tracker, transitions = tracker.look({"a": 1, "b": 0}, 9.0)
    assert transitions == {}
    assert tracker.look({"a": 1}, 10.0)[1] == {(LoadState(0, is_falling=True),) * 2: once}


def test_where_a_replica_stands_is_told_by_its_last_change_of_bucket() -> None:
    tracker, _ = LoadTracker().look({"a": 8}, 0.0)
    assert tracker.state("a", 5) == LoadState(5, is_falling=True)
    assert tracker.state("a", 7) == LoadState(7, is_falling=False)
    tracker, _ = tracker.look({"a": 16}, 1.0)
    assert [tracker.state("a", bucket).is_falling for bucket in (6, 7, 8)] == [True, False, False]
    assert tracker.state("b", 3) == LoadState(3, is_falling=True)
