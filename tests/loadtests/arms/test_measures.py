"""Sums that rounds are compared by, from our rows and from result files of vllm bench serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nightjar.loadtests.arms.measures import MEASURES, ResultError, figures_by_phase, load_summary, read_result
from nightjar.loadtests.arms.statistics import Speed
from tests.loadtests.compare.harness import result
from tests.loadtests.recorded import row


def test_figures_sum_whole_answers_phase_by_phase_and_count_those_that_failed() -> None:
    rows = [
        row("1", "quiet", 1.0, start_s=101.0),
        row("2", "quiet", 4.0, start_s=104.0),
        row("3", "quiet", 5.0, start_s=105.0, error="HTTP 503"),
        row("4", "surge", 9.0, start_s=109.0),
    ]
    found = figures_by_phase(rows, 0.0)
    assert list(found) == ["quiet", "surge"]
    quiet = found["quiet"]
    assert (quiet.requests, quiet.failed, quiet.tokens) == (3, 1, 32)
    assert (quiet.seconds, quiet.answer_seconds, quiet.ttft_seconds) == (6.0, 4.0, 1.0)
    assert quiet.decode_tokens == 30
    assert quiet.decode_seconds == pytest.approx(3.0)
    speeds = {name: measure.speed(quiet) for name, measure in MEASURES.items()}
    assert speeds["answer"] == Speed(32, 4.0)
    assert speeds["ttft"] == Speed(2, 1.0)
    assert speeds["throughput"] == Speed(32, 6.0)


def test_what_was_sent_to_warm_up_does_not_count() -> None:
    with_phase = [row("1", "warm-up", 0.0, start_s=100.0), row("2", "quiet", 6.0, start_s=106.0)]
    assert {phase: one.requests for phase, one in figures_by_phase(with_phase, 5.0).items()} == {"quiet": 1}
    of_a_trace = [row("1", "trace", 0.0, start_s=100.0), row("2", "trace", 6.0, start_s=106.0)]
    assert figures_by_phase(of_a_trace, 5.0)["trace"].requests == 1


def written(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_a_result_with_and_one_without_its_single_requests_tell_the_same(tmp_path: Path) -> None:
    whole = result(0.02)
    plain = {name: value for name, value in whole.items() if name not in {"ttfts", "itls", "output_lens", "errors"}}
    detailed, summed = (read_result(written(tmp_path / "r.json", values)).figures() for values in (whole, plain))
    assert detailed == pytest.approx(summed)
    assert (detailed.requests, detailed.failed, detailed.tokens) == (8, 0, 136)
    assert detailed.answer_seconds == pytest.approx(136 * 0.02)


def test_requests_that_failed_are_counted_and_their_times_are_not(tmp_path: Path) -> None:
    values: dict[str, Any] = result(0.02) | {"completed": 7, "failed": 1, "total_output_tokens": 7 * 17}
    values |= {"errors": ["", "", "refused", "", "", "", "", ""], "ttfts": [0.02, 0.02, 9.0, *[0.02] * 5]}
    found = read_result(written(tmp_path / "r.json", values)).figures()
    assert (found.requests, found.failed) == (8, 1)
    assert found.ttft_seconds == pytest.approx(7 * 0.02)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "duration"), ("[1]", "is no result of vllm bench serve"), ("", "it is no JSON"), ('{"duration": "x"}', "duration")],
)
def test_a_file_that_is_no_result_is_one_line_that_names_it(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ResultError) as refused:
        read_result(path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_result_is_shown_as_a_load_test_of_ours(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", result(0.02))
    figures = load_summary(path, read_result(path)).figures
    assert (figures.requests, figures.failed) == (8, 0)
    assert figures.tpot.p50_s == pytest.approx(0.02)
    assert figures.tokens_per_s == pytest.approx(50.0)
