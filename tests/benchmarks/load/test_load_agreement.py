"""Two load generators on the same requests: what is read of each, and when they agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.load.rows import RequestRow, RowWriter
from nightjar.loadtests.load.traces import TraceRow, read_trace
from tests.benchmarks.load.agreement import Round, bars, table
from tests.benchmarks.load.commands import Served, Times, ours, read_ours, read_theirs, theirs, write_even_trace

SERVED = Served("http://host", "tiny", Path("tokenizer"))


def rounds(*factors: float) -> list[Round]:
    theirs = Times((0.1, 0.2, 0.3), (0.02, 0.03, 0.04))
    return [
        Round(number, "ours", Times(tuple(factor * one for one in theirs.ttft_s), theirs.tpot_s), theirs)
        for number, factor in enumerate(factors)
    ]


def verdicts(played: list[Round]) -> dict[str, str]:
    return {bar.name: bar.verdict for bar in bars(played, 0)}


def test_tools_agree_where_the_interval_holds_one_and_is_narrow() -> None:
    assert set(verdicts(rounds(0.97, 1.02, 1.0, 1.03, 0.99)).values()) == {"reached"}
    assert "1.002" in table(rounds(0.97, 1.02, 1.0, 1.03, 0.99), 0).rows[0]


def test_one_that_is_slower_in_every_round_is_told_from_the_other() -> None:
    found = verdicts(rounds(1.04, 1.05, 1.06, 1.05, 1.05))
    assert (found["ttft_ratio_from_1"], found["ttft_ratio_side"]) == ("MISSED", "reached")
    assert (found["tpot_ratio_from_1"], found["tpot_ratio_side"]) == ("reached", "reached")


def test_rounds_that_scatter_say_nothing() -> None:
    found = verdicts(rounds(0.5, 2.0, 0.6, 1.7, 1.0))
    assert (found["ttft_ratio_from_1"], found["ttft_ratio_side"]) == ("reached", "MISSED")


def result_file(folder: Path, **changes: object) -> Path:
    result = {"errors": ["", ""], "completed": 2, "ttfts": [0.1, 0.2], "itls": [[0.02, 0.04], []], "output_lens": [4, 1]}
    (folder / "result.json").write_text(json.dumps(result | changes))
    return folder


def test_the_times_of_vllms_tool_are_read_per_token_and_not_per_event(tmp_path: Path) -> None:
    assert read_theirs(result_file(tmp_path), 2) == Times((0.1, 0.2), (0.02,))


def test_our_times_are_the_rows(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "latest/requests.jsonl")
    row = RequestRow(request_id="trace-0", phase="trace", scheduled_s=0, start_s=1, ttft_s=0.1, tpot_s=0.02, e2e_s=1, status=200)
    writer.write(row)
    assert read_ours(tmp_path, 1) == Times((0.1,), (0.02,))
    writer.write(row.model_copy(update={"error": "refused"}))
    writer.close()
    with pytest.raises(TurnError, match=r"2 of 2 requests, 1 failed; the first: .'refused'"):
        read_ours(tmp_path, 2)


def test_a_tool_that_lost_a_request_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(TurnError, match="2 of 3 requests"):
        read_theirs(result_file(tmp_path), 3)
    with pytest.raises(TurnError, match=r"the first error: .'refused'"):
        read_theirs(result_file(tmp_path, errors=["", "refused"]), 2)


def test_the_trace_that_both_play_is_evenly_spaced(tmp_path: Path) -> None:
    write_even_trace(tmp_path / "trace.csv", [TraceRow(9.0, 5, 2), TraceRow(3.0, 7, 1)], 2.0)
    assert read_trace(tmp_path / "trace.csv") == (TraceRow(0.0, 5, 2), TraceRow(0.5, 7, 1))


def test_both_commands_ask_the_same_of_the_same_server(tmp_path: Path) -> None:
    one, other = ours(SERVED, Path("t.csv"), Path("p.jsonl"), tmp_path, 512), theirs(SERVED, Path("join.jsonl"), 9, 2.0, tmp_path)
    assert {"--ignore-eos", "http://host", "tiny", "tokenizer"} <= set(one) & set(other)
    assert other[other.index("--burstiness") + 1] == "inf"
