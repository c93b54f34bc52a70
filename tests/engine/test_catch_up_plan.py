"""Which missing draft tokens a step recomputes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.engine.catch_up_plan import WORTHWHILE_LAG_PER_TOKEN, Candidate, plan_catch_up

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


def test_a_request_that_is_about_to_end_is_not_worth_a_long_context() -> None:
    assert Candidate("a", 0, WORTHWHILE_LAG_PER_TOKEN * 3, 1, 3).is_worthwhile
    assert not Candidate("a", 0, WORTHWHILE_LAG_PER_TOKEN * 3 + 1, 1, 3).is_worthwhile
