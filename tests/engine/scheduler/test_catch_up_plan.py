"""Which missing draft tokens a step recomputes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.engine.scheduler.catch_up_plan import (
    Candidate,
    expected_tokens,
    most_expected_tokens,
    plan_catch_up,
)

candidates = st.lists(
    st.builds(
        Candidate,
        request_id=st.uuids().map(str),
        valid_tokens=st.integers(0, 100),
        lag_tokens=st.integers(0, 50),
        own_tokens=st.integers(0, 5),
        expected_tokens=st.integers(1, 100),
    ),
    max_size=8,
)


@given(candidates, st.integers(1, 200), st.booleans())
def test_a_plan_stays_within_its_tokens_but_for_the_own_tokens_of_the_last_request(
    rows: list[Candidate], max_tokens: int, reads_own: bool
) -> None:
    plan = plan_catch_up(rows, max_tokens, reads_own_tokens=reads_own)
    assert sum(portion.last_token_exclusive - portion.first_token for portion in plan) <= max_tokens


@given(candidates, st.integers(1, 200), st.booleans())
def test_every_portion_is_the_beginning_of_what_its_request_misses(rows: list[Candidate], max_tokens: int, reads_own: bool) -> None:
    by_id = {row.request_id: row for row in rows}
    plan = plan_catch_up(rows, max_tokens, reads_own_tokens=reads_own)
    assert len({portion.request_id for portion in plan}) == len(plan)
    for portion in plan:
        row = by_id[portion.request_id]
        assert portion.first_token == row.valid_tokens
        assert portion.last_token_exclusive <= row.valid_tokens + row.lag_tokens
        if portion.own_tokens:
            assert reads_own
            assert portion.last_token_exclusive == row.valid_tokens + row.lag_tokens


@given(candidates)
def test_with_tokens_for_all_nothing_is_missing_afterwards(rows: list[Candidate]) -> None:
    enough = sum(row.lag_tokens + row.own_tokens for row in rows) + 1
    plan = plan_catch_up(rows, enough, reads_own_tokens=True)
    assert sum(portion.last_token_exclusive - portion.first_token for portion in plan) == sum(row.lag_tokens for row in rows)
    assert {portion.request_id for portion in plan if portion.own_tokens} == {row.request_id for row in rows if row.own_tokens}


def test_the_request_that_promises_most_for_its_lag_comes_first() -> None:
    rows = [Candidate("ends soon", 0, 10, 1, 2), Candidate("long", 0, 10, 1, 200), Candidate("short lag", 0, 1, 1, 50)]
    plan = plan_catch_up(rows, 100, reads_own_tokens=False)
    assert [portion.request_id for portion in plan] == ["short lag", "long", "ends soon"]


def test_a_request_is_worth_64_lag_tokens_for_each_token_that_it_still_generates() -> None:
    now, later = Candidate("a", 0, 192, 1, 3), Candidate("a", 0, 193, 1, 3, 4)
    assert (now.is_worthwhile, now.may_become_worthwhile) == (True, False), "nothing more is expected of it by default"
    assert (later.is_worthwhile, later.may_become_worthwhile) == (False, True)
    assert not Candidate("a", 0, 64, 1, 3).may_become_worthwhile
    assert Candidate("a", 0, 0, 1, 3).may_become_worthwhile
    assert Candidate("a", 0, 256, 1, 3, 4).may_become_worthwhile
    assert not Candidate("a", 0, 257, 1, 3, 4).may_become_worthwhile


@pytest.mark.parametrize(
    ("num_output_tokens", "max_tokens", "expected", "most"),
    [
        (0, None, 16, 1 << 40),  # one that has just begun
        (17, None, 17, 1 << 40),  # as much again
        (0, 10, 10, 10),  # no more than it may
        (0, 1000, 16, 500),  # grows up to half of what it may
        (499, 1000, 499, 500),
        (500, 1000, 500, 500),
        (501, 1000, 499, 499),
        (999, 1000, 1, 1),
        (1000, 1000, 1, 1),  # one at least
        (0, 33, 16, 16),
        (2, 40, 16, 20),
    ],
)
def test_what_a_request_still_generates_is_guessed_from_what_it_did_and_may(
    num_output_tokens: int, max_tokens: int | None, expected: int, most: int
) -> None:
    assert expected_tokens(num_output_tokens, max_tokens) == expected
    assert most_expected_tokens(num_output_tokens, max_tokens) == most


@pytest.mark.parametrize(
    ("max_tokens", "portions"),
    [
        (5, [("a", 10, 15, False)]),
        (6, [("a", 10, 16, True)]),  # one more is read than was allowed, but not left missing alone
        (7, [("a", 10, 16, True)]),
        (8, [("a", 10, 16, True), ("b", 0, 1, False)]),
        (47, [("a", 10, 16, True), ("b", 0, 40, True)]),
    ],
)
def test_own_tokens_count_and_nothing_begins_without_tokens_left(
    max_tokens: int, portions: list[tuple[str, int, int, bool]]
) -> None:
    rows = [Candidate("a", 10, 6, 1, 100), Candidate("b", 0, 40, 1, 100)]
    assert [tuple(portion) for portion in plan_catch_up(rows, max_tokens, reads_own_tokens=True)] == portions


def test_a_row_without_tokens_in_this_step_has_none_read() -> None:
    rows = [Candidate("a", 10, 6, 0, 100), Candidate("b", 0, 2, 0, 1)]
    plan = plan_catch_up(rows, 100, reads_own_tokens=True)
    assert [tuple(portion) for portion in plan] == [("a", 10, 16, False), ("b", 0, 2, False)]


def test_equal_rows_are_taken_by_name() -> None:
    rows = [Candidate(name, 0, 6, 1, 100) for name in "cab"]
    assert [portion.request_id for portion in plan_catch_up(rows, 100, reads_own_tokens=False)] == ["a", "b", "c"]
