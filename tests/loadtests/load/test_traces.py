"""Traces: both forms of file, a bad row by its line, and what scaling and cutting do to them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.load.traces import TraceError, TraceFit, TraceRow, fit_trace, read_trace

ROWS = st.lists(
    st.builds(TraceRow, st.floats(0, 1e5), st.integers(1, 100_000), st.integers(1, 10_000)), min_size=1, max_size=30
).map(sorted)


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:48.5,30,4\r\n2023-11-16 18:15:46,10,2\r\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:02.5+00:00,30,4\n2024-05-10 02:00:00+02:00,10,2\n",
        "time,prompt_tokens,output_tokens\n102.5,30,4\n100,10,2\n",
        "Time (s), Prompt Tokens, Output Tokens\n102.5, 30, 4\n100, 10, 2\n\n",
        "id,output_tokens,time_s,prompt_tokens\na,4,2.5,30\nb,2,0,10\n",
        "2.5,30,4\n0,10,2\n",
    ],
)
def test_azures_form_and_the_plain_one_give_the_same_rows_in_time_order_from_zero(tmp_path: Path, text: str) -> None:
    assert read_trace(written(tmp_path, text)) == (TraceRow(0.0, 10, 2), TraceRow(2.5, 30, 4))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,prompt_tokens,output_tokens\n0,1,2\n1,two,3\n", r"trace\.csv:3: '1,two,3' is no row like"),
        ("time,prompt_tokens,output_tokens\n0,1,2\n\n1,2\n", r"trace\.csv:4: "),
        ("time,prompt_tokens,output_tokens\n0,-1,2\n", r"trace\.csv:2: "),
        ("time,prompt_tokens,output_tokens\nnan,1,2\n", r"trace\.csv:2: "),
        ("time,prompt_tokens,output_tokens\n0,1.5,2\n", r"trace\.csv:2: "),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n16/11/2023,1,2\n", r"trace\.csv:2: "),
        ("1,2\n", r"trace\.csv:1: "),
        ("time,prompt_tokens\n", "column output_tokens is missing"),
        ("when,prompt_tokens,output_tokens\n", "column time is missing"),
        ("time,prompt_tokens,output_tokens\n", "0 rows"),
        ("", "0 rows"),
    ],
)
def test_a_bad_trace_is_one_line_with_the_number_of_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(TraceError, match=told) as refused:
        read_trace(written(tmp_path, text))
    assert "\n" not in str(refused.value)


@given(rows=ROWS, time_scale=st.floats(0.01, 100), length_scale=st.floats(0.01, 10), most=st.integers(1, 5000))
def test_fitting_keeps_every_request_its_order_and_the_limits_and_counts_what_it_cut(
    rows: list[TraceRow], time_scale: float, length_scale: float, most: int
) -> None:
    fit = TraceFit(time_scale, length_scale, max_prompt_tokens=most, max_output_tokens=most)
    free, fitted = fit_trace(rows, TraceFit(time_scale, length_scale)), fit_trace(rows, fit)
    assert [row.due_s for row in fitted.rows] == [row.due_s * time_scale for row in rows]
    for row, before in zip(fitted.rows, free.rows, strict=True):
        assert 1 <= row.prompt_tokens == min(before.prompt_tokens, most)
        assert 1 <= row.output_tokens == min(before.output_tokens, most)
    assert fitted.clipped_prompts == sum(row.prompt_tokens > most for row in free.rows)
    assert fitted.clipped_outputs == sum(row.output_tokens > most for row in free.rows)
    assert (free.clipped_prompts, free.clipped_outputs) == (0, 0)


@given(rows=ROWS, duration_s=st.floats(0.1, 1e5))
def test_what_is_due_after_the_wanted_seconds_is_left_out(rows: list[TraceRow], duration_s: float) -> None:
    wanted = [row for row in rows if row.due_s < duration_s]
    if wanted:
        assert list(fit_trace(rows, TraceFit(duration_s=duration_s)).rows) == wanted
    else:
        with pytest.raises(TraceError, match="no request of the trace is due"):
            fit_trace(rows, TraceFit(duration_s=duration_s))


@pytest.mark.parametrize("bad", [{"time_scale": 0.0}, {"length_scale": math.nan}, {"duration_s": 0.0}, {"max_output_tokens": 0}])
def test_a_scale_or_limit_that_makes_no_load_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(TraceError, match=next(iter(bad))):
        TraceFit(**bad)
