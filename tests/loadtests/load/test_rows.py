"""Rows survive their file, and a line that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightjar.loadtests.load.rows import RequestRow, RowsError, RowWriter, read_rows, regime_start_s

ROW = RequestRow(
    request_id="r1", phase="quiet", scheduled_s=2.0, schedule_lag_s=0.5, start_s=102.5, ttft_s=0.25, e2e_s=1.0, status=200
)


def test_rows_come_back_as_written_also_from_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    first, second = RowWriter(path), RowWriter(path)
    first.write(ROW)
    second.write(ROW.model_copy(update={"request_id": "r2"}))
    first.write(ROW.model_copy(update={"request_id": "r3"}))
    first.close()
    second.close()
    assert [row.request_id for row in read_rows(path)] == ["r1", "r2", "r3"]
    assert read_rows(path)[0] == ROW


def test_an_error_with_a_line_break_of_unicode_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    broken = ROW.model_copy(update={"error": "a\u2028b\u2029c\x85d"})
    writer = RowWriter(path)
    writer.write(broken)
    writer.close()
    assert read_rows(path) == (broken,)


def test_a_line_that_is_no_row_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW.model_dump_json() + "\n{}\n")
    with pytest.raises(RowsError, match=r"rows\.jsonl:2 .*request_id"):
        read_rows(path)


def test_the_regime_began_where_the_rows_say_they_were_due() -> None:
    assert regime_start_s([ROW, ROW, ROW]) == 100.0
    assert regime_start_s([]) is None
