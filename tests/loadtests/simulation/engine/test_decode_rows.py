"""Decoding rows: whatever is done to them, their sums are those of the rows (SIM-6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.engine.decode_rows import DecodeRows
from nightjar.loadtests.simulation.engine.random_numbers import draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from tests.loadtests.simulation.engine.engines import PAIR

LONGEST = 5

Deed = tuple[str, int]

deeds = st.lists(
    st.one_of(
        st.tuples(st.just("draft"), st.integers(0, LONGEST)),
        st.tuples(st.just("sleep"), st.integers(0, LONGEST)),
        st.tuples(st.just("catch up"), st.integers(1, 60)),
        st.tuples(st.just("join"), st.integers(0, 40)),
        st.tuples(st.just("leave"), st.integers(0, 100)),
        st.tuples(st.just("forget"), st.just(0)),
    ),
    max_size=60,
)


def do(rows: DecodeRows, deed: Deed, number: int) -> None:
    """One thing that an engine does to its rows. `amount` is what it verifies, computes, has computed or takes out."""
    what, amount = deed
    if what == "join":
        rows.join(SimulatedRequest(number, 0.0, 40, 100_000, 0, generated_tokens=1, draft_tokens=amount))
    elif not rows.count:
        return
    elif what == "leave":
        rows.remove(amount % rows.count)
    elif what == "forget":
        rows.forget_draft()
    elif what == "catch up":
        rows.catch_up(amount)
        rows.advance(0, draft_runs=True)
    else:
        rows.advance(amount, draft_runs=what == "draft")


@given(deeds)
def test_sim_6_lag_is_what_the_draft_has_not_computed_whatever_is_done_to_the_rows(done: list[Deed]) -> None:
    rows = DecodeRows(AcceptanceClasses(PAIR), draws_of(3))
    for number, deed in enumerate([("join", 40), ("join", 40), *done]):
        do(rows, deed, number)
        rows.check_integrity()


@pytest.mark.parametrize("seed", range(3))
def test_of_as_many_verified_drafts_the_likeliest_bring_more_tokens_and_without_more_drafts_than_that_the_same(seed: int) -> None:
    def generated(best_of: int) -> int:
        rows = DecodeRows(AcceptanceClasses(PAIR), draws_of(seed))
        for number in range(40):
            kind = number % len(PAIR.acceptance_classes)
            rows.join(SimulatedRequest(number, 0.0, 40, 100_000, kind, generated_tokens=1, draft_tokens=40))
        return sum(rows.advance(2, draft_runs=True, best_of=best_of)[0] for _ in range(200))

    assert generated(0) == generated(2) < generated(3)
