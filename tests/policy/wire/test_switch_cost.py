"""C_switch: a measured table, looked up between its points and beyond them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.wire.operator import SettingsError, parse_operator_settings
from nightjar.policy.wire.switch_cost import SwitchCost, SwitchCostRow, format_rows, parse_rows

ROWS = st.dictionaries(
    st.tuples(st.integers(1, 10**6), st.integers(1, 4096)), st.floats(0.0, 600.0, allow_nan=False), min_size=1, max_size=20
).map(lambda cells: tuple((lag, batch, seconds) for (lag, batch), seconds in cells.items()))


@given(ROWS)
def test_a_measured_point_is_looked_up_as_it_was_measured(rows: tuple[SwitchCostRow, ...]) -> None:
    cost = SwitchCost(rows)
    for lag, batch, seconds in rows:
        assert cost.seconds(lag, batch) == pytest.approx(seconds)


@given(ROWS)
def test_the_text_of_a_table_is_read_back_exactly(rows: tuple[SwitchCostRow, ...]) -> None:
    assert parse_rows(format_rows(rows)) == rows


@given(ROWS, st.integers(0, 4096))
def test_without_a_lag_a_restart_is_free(rows: tuple[SwitchCostRow, ...], batch: int) -> None:
    assert SwitchCost(rows).seconds(0, batch) == 0.0


def test_without_a_table_a_restart_is_free() -> None:
    assert SwitchCost(()).seconds(512, 32) == 0.0


def test_the_nearest_batch_counts_and_the_smaller_of_two() -> None:
    cost = SwitchCost([(100, 8, 0.08), (100, 16, 0.16)])
    assert [cost.seconds(100, batch) for batch in (1, 8, 12, 13, 999)] == [0.08, 0.08, 0.08, 0.16, 0.16]


def test_the_settings_give_no_table_unless_asked_to_and_an_empty_one_is_one() -> None:
    assert parse_operator_settings({}).switch_cost_table is None
    assert parse_operator_settings({"switch_cost_table": []}).switch_cost_table == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[10**9, 8, 0.1]], "switch cost [1000000000, 8, 0.1]: a row is [longest lag in tokens >= 1 and below 10^9"),
        ([[8, 10**5, 0.1]], "switch cost [8, 100000, 0.1]: a row is [longest lag in tokens >= 1 and below 10^9"),
        ([[0, 8, 0.1]], "switch cost [0, 8, 0.1]: a row is [longest lag in tokens >= 1"),
        ([[10, 8, -0.1]], "switch cost [10, 8, -0.1]"),
        ([[10, 8, 0.1], [10, 8, 0.2]], "lag 10 at batch 8 is given twice"),
        ([[10, 8]], "switch_cost_table.0.2"),
    ],
)
def test_settings_with_a_table_that_is_none_are_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_operator_settings({"switch_cost_table": rows})
