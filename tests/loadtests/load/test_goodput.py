"""Goodput under a target: who keeps it, what those brought, and how it is said on a command line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.loadtests.load.figures import LOAD_FILE, LoadSummary, ProcessReport, Seen, figures_of
from nightjar.loadtests.load.goodput import GoodputError, GoodputTarget, Timed, goodput_of, parse_goodput, pooled
from nightjar.loadtests.load.rows import RowWriter
from tests.loadtests import recorded

MILLISECONDS = st.floats(0.001, 1e6)
SECONDS = st.floats(0, 1e3)
BOUNDS = MILLISECONDS | st.none()
TARGETS = st.builds(GoodputTarget, ttft_ms=BOUNDS, tpot_ms=BOUNDS, e2el_ms=BOUNDS)
REQUESTS = st.lists(st.builds(Timed, SECONDS, SECONDS | st.none(), SECONDS, st.integers(1, 1000)), max_size=20)
TARGET = GoodputTarget(ttft_ms=500, tpot_ms=50)


@pytest.mark.parametrize(
    ("request_times", "kept"),
    [
        (Timed(0.5, 0.05, 9.0, 10), True),
        (Timed(0.501, 0.05, 9.0, 10), False),
        (Timed(0.5, 0.0501, 9.0, 10), False),
        (Timed(0.1, None, 0.1, 1), True),
        (Timed(None, None, 0.1, 0), False),
    ],
)
def test_a_request_keeps_a_target_where_it_keeps_each_bound_and_one_token_has_no_tpot(request_times: Timed, kept: bool) -> None:
    assert TARGET.is_kept_by(request_times) is kept


def test_the_whole_answer_can_be_bounded_too() -> None:
    assert GoodputTarget(e2el_ms=2000).is_kept_by(Timed(1.9, 9.0, 2.0, 3))
    assert not GoodputTarget(e2el_ms=2000).is_kept_by(Timed(0.1, 0.1, 2.001, 3))


@given(target=TARGETS, whole=REQUESTS, failed=st.integers(0, 5))
def test_the_share_is_of_all_requests_and_the_tokens_of_those_within(
    target: GoodputTarget, whole: list[Timed], failed: int
) -> None:
    found = goodput_of(target, whole, len(whole) + failed, 10.0)
    kept = [one for one in whole if target.is_kept_by(one)]
    assert (found.requests, found.kept) == (len(whole) + failed, len(kept))
    assert found.tokens_per_s * 10.0 == pytest.approx(sum(one.tokens for one in kept))


@given(target=TARGETS, whole=REQUESTS, factor=st.floats(1.0, 10.0))
def test_a_looser_target_is_kept_by_all_that_keep_the_tighter(target: GoodputTarget, whole: list[Timed], factor: float) -> None:
    looser = GoodputTarget(**{name: value * factor for name, value in target.model_dump().items() if value is not None})
    assert all(looser.is_kept_by(one) for one in whole if target.is_kept_by(one))


@given(target=TARGETS.filter(str))
def test_a_target_is_said_as_it_is_read(target: GoodputTarget) -> None:
    again = parse_goodput(str(target).split())
    assert again is not None
    for name, value in target.model_dump().items():
        assert value == pytest.approx(getattr(again, name), rel=1e-5) if value is not None else getattr(again, name) is None


@pytest.mark.parametrize(
    "words", [["ttft"], ["ttft:"], ["ttft:fast"], ["ttft:0"], ["ttft:-3"], ["ttft:nan"], ["itl:5"], ["ttft:1", "ttft:2"]]
)
def test_words_that_are_no_target_are_refused_with_the_form(words: list[str]) -> None:
    with pytest.raises(GoodputError, match="for example ttft:500 tpot:50"):
        parse_goodput(words)


def test_nothing_pooled_is_nothing_and_no_request_has_no_share() -> None:
    assert pooled([]) is None
    assert goodput_of(TARGET, [], 0, 1.0).share is None


def load_test(folder: Path, ttfts_s: tuple[float, ...]) -> Path:
    """A recorded load test of one process, ten tokens a request."""
    writer, rows = RowWriter(folder / "requests.jsonl"), []
    for number, ttft_s in enumerate(ttfts_s):
        one = recorded.row(f"trace-{number}", "trace", 0, start_s=100, ttft_s=ttft_s, tpot_s=0.01, e2e_s=10, completion_tokens=10)
        rows.append(one)
        writer.write(one)
    writer.close()
    figures = figures_of([ProcessReport(100.0, [0.0], [Seen.of(row) for row in rows])])
    summary = LoadSummary(host="http://host", model="tiny", load="trace.csv", seed=0, figures=figures)
    (folder / LOAD_FILE).write_text(summary.model_dump_json())
    return folder


def test_report_tells_the_goodput_of_a_load_test_in_the_words_of_vllm_bench_serve(tmp_path: Path) -> None:
    folder = load_test(tmp_path, (0.1, 0.2, 0.6, 0.9))
    told = CliRunner().invoke(app, ["report", str(folder), "--goodput", "ttft:500", "tpot:50"])
    assert told.exit_code == 0, told.output
    assert "goodput: 50.0% of 4 requests within ttft:500 tpot:50, 2.0 tokens per second of those" in told.output
    told = CliRunner().invoke(app, ["report", "--goodput", "ttft:700", "-o", "json", str(folder)])
    goodput = LoadSummary.model_validate_json(told.stdout).figures.goodput
    assert goodput is not None
    assert goodput.share == 0.75


@pytest.mark.parametrize("command", ["report", "simulate"])
def test_a_bad_target_is_one_line_at_every_command(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--goodput", "ttft:500", "tpot:slow"])
    assert told.exit_code == 2
    words = "allowed are ttft:MS, tpot:MS or e2el:MS, each once, in milliseconds above 0, for example ttft:500 tpot:50"
    assert told.stderr.strip().splitlines() == [f"error: goodput 'tpot:slow': {words}"]


def test_the_figures_of_a_load_have_the_goodput_of_all_its_processes() -> None:
    good, bad = Seen(0.0, 0.0, 1.0, 0.1, 0.01, 5, 10, None, None, True), Seen(4.0, 0.0, 1.0, 0.9, 0.01, 5, 10, None, None, True)
    failed = Seen(2.0, 0.0, 1.0, 0.1, 0.01, 5, 10, None, None, False)
    goodput = figures_of([ProcessReport(0.0, [], [good, bad]), ProcessReport(0.0, [], [failed, good])], TARGET).goodput
    assert goodput is not None
    assert (goodput.requests, goodput.kept, goodput.share) == (4, 2, 0.5)
    assert math.isclose(goodput.tokens_per_s, 20 / 5.0)
