"""Common random numbers: a request draws for itself, whoever serves it, beside whom, and at whatever K."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.engine.decode_rows import DRAWN_STEPS, DecodeRows
from nightjar.loadtests.simulation.engine.random_numbers import PLACES, draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from tests.loadtests.simulation.engine.engines import PAIR

LONGEST = 5


def asked(number: int) -> SimulatedRequest:
    """A request that goes on for longer than any test."""
    return SimulatedRequest(number, 0.0, 10, 100_000, 1, generated_tokens=1, draft_tokens=10)


def rows_of(*requests: SimulatedRequest, seed: int = 3) -> DecodeRows:
    """An engine's rows."""
    rows = DecodeRows(AcceptanceClasses(PAIR), draws_of(seed))
    for request in requests:
        rows.join(request)
    return rows


def tokens_alone(number: int, steps: int, verified: int = LONGEST, seed: int = 3) -> list[int]:
    """What each step gives a request that has an engine to itself."""
    rows = rows_of(asked(number), seed=seed)
    return [rows.advance(verified, draft_runs=True)[0] for _ in range(steps)]


def taken_out(rows: DecodeRows, number: int) -> SimulatedRequest:
    """The request's row is removed, as by a preemption; draft KV is read again with the prompt."""
    request = rows.remove([row.number for row in rows.requests].index(number))
    request.draft_tokens = request.prefill_tokens
    return request


@given(before=st.integers(0, 2 * DRAWN_STEPS), together=st.integers(1, 2 * DRAWN_STEPS), beside=st.integers(1, 40))
def test_neighbours_and_the_time_of_joining_change_nothing(before: int, together: int, beside: int) -> None:
    rows = rows_of(*(asked(100 + number) for number in range(beside)))
    for _ in range(before):
        rows.advance(3, draft_runs=True)
    rows.join(asked(7))
    for _ in range(together):
        rows.advance(LONGEST, draft_runs=True)
    assert taken_out(rows, 7).generated_tokens - 1 == sum(tokens_alone(7, together))


@given(first=st.integers(1, 3 * DRAWN_STEPS), waits=st.integers(0, DRAWN_STEPS), then=st.integers(1, 3 * DRAWN_STEPS))
def test_a_preempted_request_goes_on_where_its_draws_stopped(first: int, waits: int, then: int) -> None:
    rows = rows_of(asked(100), asked(7))
    for _ in range(first):
        rows.advance(LONGEST, draft_runs=True)
    request = taken_out(rows, 7)
    for _ in range(waits):
        rows.advance(LONGEST, draft_runs=True)
    rows.join(request)
    for _ in range(then):
        rows.advance(LONGEST, draft_runs=True)
    assert taken_out(rows, 7).generated_tokens - 1 == sum(tokens_alone(7, first + then))


@given(steps=st.lists(st.booleans(), min_size=1, max_size=3 * DRAWN_STEPS))
def test_steps_that_verify_nothing_draw_nothing(steps: list[bool]) -> None:
    rows = rows_of(asked(7))
    given_tokens = [rows.advance(LONGEST if verifies else 0, draft_runs=True)[0] for verifies in steps]
    drafted = [tokens for tokens, verifies in zip(given_tokens, steps, strict=True) if verifies]
    assert drafted == tokens_alone(7, len(drafted))


@given(number=st.integers(0, 1 << 40), verified=st.integers(1, LONGEST))
def test_a_shorter_k_has_what_it_can_have_of_the_same_draws(number: int, verified: int) -> None:
    longest = tokens_alone(number, DRAWN_STEPS)
    assert tokens_alone(number, DRAWN_STEPS, verified) == [min(tokens, verified + 1) for tokens in longest]


@given(steps=st.integers(0, 2 * DRAWN_STEPS))
def test_an_acceptance_that_is_set_anew_to_what_it_was_changes_nothing(steps: int) -> None:
    rows = rows_of(asked(7))
    before = [rows.advance(LONGEST, draft_runs=True)[0] for _ in range(steps)]
    rows.draw_anew()
    after = [rows.advance(LONGEST, draft_runs=True)[0] for _ in range(DRAWN_STEPS)]
    assert before + after == tokens_alone(7, steps + DRAWN_STEPS)


@given(number=st.integers(0, 1 << 60), drawn=st.integers(0, 1 << 40))
def test_every_place_lies_in_the_table(number: int, drawn: int) -> None:
    assert 0 <= draws_of(0).place(number, drawn) < PLACES


def test_other_requests_and_other_seeds_have_other_draws() -> None:
    runs = [tokens_alone(number, 200, seed=seed) for number in (1, 2, 3) for seed in (0, 1)]
    assert len({tuple(run) for run in runs}) == len(runs)
