"""A canary's verdict from numbers: rare without a difference, certain with one, and never from two numbers."""

from __future__ import annotations

import math
import random
from statistics import fmean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.operator.canary.compare import Work, compare, together
from nightjar.policy.operator.canary.student import deviations, upper_tail
from nightjar.policy.operator.canary.verdict import (
    BASELINE_BLOCKS,
    LEAST_DEVIATION,
    LEVEL,
    Sample,
    blocks_of,
    interval,
    judge,
    level_of,
)

NUMBERS = st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=60)


def sample(numbers: list[float]) -> Sample:
    found = Sample()
    for number in numbers:
        found = found.plus(number)
    return found


def verdict_of(before: list[float], after: list[float]) -> str:
    """As a canary is judged: look after look, until one decides."""
    known, since, look = sample(before), Sample(), 0
    for number in after:
        since = since.plus(number)
        if since.count >= blocks_of(look):
            verdict, _ = judge(known, since, since, look)
            look += 1
            if verdict != "open":
                return verdict
    return "open"


@given(NUMBERS)
def test_sums_give_the_mean_and_the_variance_of_the_numbers(numbers: list[float]) -> None:
    found = sample(numbers)
    assert found.mean == pytest.approx(fmean(numbers), abs=1e-9)
    assert found.variance == pytest.approx(max(variance(numbers), LEAST_DEVIATION**2), rel=1e-6, abs=1e-9)


@given(NUMBERS, NUMBERS)
def test_the_interval_holds_the_ratio_and_is_wider_at_a_lower_level(before: list[float], since: list[float]) -> None:
    wide, narrow = (interval(sample(before), sample(since), level) for level in (0.001, 0.1))
    assert wide is not None
    assert narrow is not None
    assert wide.low <= narrow.low <= narrow.ratio <= narrow.high <= wide.high


@pytest.mark.parametrize("degrees", [1, 2, 3, 199, 200])
def test_however_rare_the_level_a_value_is_found_that_exceeds_it_no_more_often(degrees: int) -> None:
    assert upper_tail(deviations(1e-300, degrees), degrees) <= 1e-300


def test_two_numbers_are_needed_on_either_side() -> None:
    assert interval(sample([0.0]), sample([1.0, 1.0]), 0.1) is None
    assert interval(sample([0.0, 0.0]), sample([1.0]), 0.1) is None


def test_levels_of_all_looks_add_up_to_the_level() -> None:
    assert sum(level_of(look) for look in range(10_000)) == pytest.approx(LEVEL, rel=1e-3)
    assert [blocks_of(look) for look in range(4)] == [3, 6, 12, 24]


@pytest.mark.parametrize(("follows", "most"), [(0.0, 0.02), (0.5, 0.05)])
def test_of_many_canaries_without_a_difference_few_are_ever_rolled_back(follows: float, most: float) -> None:
    """Seen of 600: none of independent numbers in 96 blocks, 1.8 % where each is half the one before it."""
    rng = random.Random(5)

    def numbers(count: int) -> list[float]:
        found, last = [], rng.gauss(0.0, 0.02)
        for _ in range(count):
            last = follows * last + math.sqrt(1.0 - follows**2) * rng.gauss(0.0, 0.02)
            found.append(0.1 + last)
        return found

    runs = 400
    series = [numbers(BASELINE_BLOCKS + 96) for _ in range(runs)]
    judged = sum(verdict_of(one[:BASELINE_BLOCKS], one[BASELINE_BLOCKS:]) == "worse" for one in series)
    assert judged <= most * runs


@pytest.mark.parametrize(("difference", "verdict"), [(-0.3, "worse"), (0.3, "better")])
def test_a_large_difference_is_judged_within_a_dozen_blocks(difference: float, verdict: str) -> None:
    rng = random.Random(3)
    for _ in range(50):
        before, after = ([rng.gauss(shift, 0.03) for _ in range(12)] for shift in (0.05, 0.05 + difference))
        assert verdict_of(before[:BASELINE_BLOCKS], after) == verdict


def test_a_difference_that_was_there_in_the_baseline_is_none() -> None:
    rng = random.Random(4)
    slow_cards = [-0.5 + rng.gauss(0.0, 0.02) for _ in range(BASELINE_BLOCKS + 24)]
    assert verdict_of(slow_cards[:BASELINE_BLOCKS], slow_cards[BASELINE_BLOCKS:]) == "open"


WORKS = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 8)),
    st.builds(Work, st.floats(10.0, 1e6), st.floats(0.5, 100.0)),
    min_size=1,
    max_size=6,
)


@given(WORKS, st.floats(0.1, 10.0))
def test_a_canary_that_gives_so_many_times_as_much_everywhere_is_told_so_whatever_its_batches(
    works: dict[tuple[str, int], Work], times: float
) -> None:
    canary = {place: Work(work.tokens * times, work.seconds) for place, work in works.items()}
    seen, at_best = compare(canary, works, 1.0)
    assert seen == at_best == pytest.approx(math.log(times), abs=1e-9)


@given(WORKS, WORKS)
def test_what_is_seen_is_of_the_batches_alone_that_both_saw(
    canary: dict[tuple[str, int], Work], control: dict[tuple[str, int], Work]
) -> None:
    seen, _ = compare(canary, control, 1.0)
    common = canary.keys() & control.keys()
    if not common:
        assert seen is None
    only_common = compare({place: canary[place] for place in common}, control, 1.0)[0]
    assert seen == (None if only_common is None else pytest.approx(only_common, abs=1e-9))


def test_a_canary_that_filled_up_beyond_its_controls_batches_is_worse_where_it_gives_less_even_there() -> None:
    control = {("chat", 4): Work(1000.0, 10.0)}
    for tokens in (600.0, 1500.0):
        seen, at_best = compare({("chat", 9): Work(tokens, 10.0)}, control, 10.0)
        assert seen is None
        assert at_best == pytest.approx(math.log(tokens / 1000.0))
    assert compare({("mail", 9): Work(600.0, 10.0)}, control, 10.0) == (None, None)


def test_too_little_beside_one_another_says_nothing() -> None:
    little = {("chat", 4): Work(10.0, 0.1)}
    assert compare(little, little, 10.0) == (None, None)


def test_work_without_seconds_is_none() -> None:
    assert together({}, [(("chat", 4), Work(5.0, 0.0))]) == {}
