"""Durations as people type them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.cluster.display.times import format_duration, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), (" 1.5h ", 5400)])
def test_a_number_with_a_unit_is_that_many_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "-5m", "3x", "1h30m", "1e3s", "٣m"])
def test_anything_else_is_refused_with_the_value_and_examples(text: str) -> None:
    with pytest.raises(ValueError, match="30m, 2h or 1d") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["0s", "0.0h", "31d", "9999999999d"])
def test_zero_and_more_than_thirty_days_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at most 30d"):
        parse_duration(text)


@given(st.integers(min_value=1, max_value=30 * 86_400))
def test_a_formatted_duration_never_claims_more_than_is_left_and_drops_little(seconds: int) -> None:
    shown = sum(parse_duration(part) for part in re.findall(r"\d+[dhms]", format_duration(seconds)))
    assert 0.95 * seconds < shown <= seconds
