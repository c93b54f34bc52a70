"""The table says what rows and samples hold, and nothing else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from nightjar.loadtests.commands import GOODPUT_WIDTH, TABLE_WIDTH
from nightjar.loadtests.demo_screen import result_table
from nightjar.loadtests.goodput import GoodputTarget
from nightjar.loadtests.regimes import parse_regime
from nightjar.loadtests.report import COLUMNS, columns, render_report, table_cells
from nightjar.loadtests.samples import (
    EngineHistory,
    SamplesError,
    StatusSample,
    acceptance_rate,
    all_work,
    mean_length,
    read_samples,
    seconds_per_token,
    share_off,
)
from nightjar.loadtests.summary import RunSummary, Times, headline, stretches, summarise
from tests.loadtests.recorded import replica, row, sample, totals

REGIME = parse_regime("quiet:10@0.1,surge:10@0.2")
ROWS = (
    row("a", "quiet", 1.0, start_s=101.0),
    row("b", "surge", 12.0, start_s=112.0, ttft_s=1.5),
    row("c", "surge", 19.0, start_s=119.0, ttft_s=0.7),
    row("d", "surge", 19.5, start_s=119.5, error="refused"),
)
SAMPLES = (
    sample(99.0, "off", replica("r1", totals(0, 10))),
    sample(110.0, "off", replica("r1", totals(0, 30), totals(5, 10, tokens=40, accepted=30)), replica("r2", totals(0, 4))),
    sample(121.5, "off", replica("r1", totals(0, 60), totals(5, 20, tokens=80, accepted=60)), replica("r2", totals(0, 8))),
)


def test_work_between_two_moments_is_the_difference_of_cumulative_counts_over_all_engines() -> None:
    work = EngineHistory(SAMPLES).work(99.0, 121.5)
    assert {length: one.steps for length, one in work.items()} == {0: 54, 5: 20}
    assert all_work(work).generated_tokens == 54 + 80
    assert mean_length(work) == pytest.approx(100 / 74)
    assert share_off(work) == pytest.approx(54 / 74)
    assert seconds_per_token(work) == pytest.approx(7.4 / 134)
    assert acceptance_rate(work) == pytest.approx(60 / 100)


def test_work_of_adjoining_stretches_adds_up() -> None:
    history = EngineHistory(SAMPLES)
    parts = all_work(history.work(99.0, 110.0)) + all_work(history.work(110.0, 121.5))
    whole = all_work(history.work(99.0, 121.5))
    assert (parts.steps, parts.generated_tokens) == (whole.steps, whole.generated_tokens)
    assert parts.step_seconds == pytest.approx(whole.step_seconds)


def test_missing_samples_and_a_policy_that_forgot_a_replica_lose_no_work() -> None:
    gap = (SAMPLES[0], StatusSample(time_s=105.0, mode="off", error="503"), sample(110.0, "off"), SAMPLES[2])
    assert EngineHistory(gap).work(99.0, 121.5)[5].steps == 20


def test_a_replaced_engine_starts_from_zero() -> None:
    before = sample(1.0, "off", replica("r1", totals(0, 100)))
    after = sample(2.0, "off", replica("r1-again", totals(0, 3)))
    later = sample(3.0, "off", replica("r1-again", totals(0, 7)))
    assert EngineHistory([before, after, later]).work(1.0, 3.0)[0].steps == 4


def test_without_work_there_is_nothing_to_divide_by() -> None:
    work = EngineHistory(SAMPLES).work(99.0, 99.5)
    assert (dict(work), mean_length(work), share_off(work), seconds_per_token(work), acceptance_rate(work)) == (
        {},
        None,
        None,
        None,
        None,
    )


def test_phases_lie_where_the_rows_were_due_and_the_last_one_ends_with_the_last_answer() -> None:
    assert stretches(REGIME, ROWS) == (("quiet", 100.0, 110.0), ("surge", 110.0, 121.5))
    assert stretches(REGIME, ()) == ()


def test_the_table_counts_requests_where_they_arrived_and_steps_where_they_ran() -> None:
    quiet, surge, whole = summarise(REGIME, ["off", "auto"], ROWS, SAMPLES)
    assert [(line.mode, line.phase, line.requests, line.errors) for line in (quiet, surge, whole)] == [
        ("off", "quiet", 1, 0),
        ("off", "surge", 3, 1),
        ("off", "all", 4, 1),
    ]
    assert (quiet.steps, surge.steps, whole.steps) == (30, 44, 74)
    assert surge.tokens_per_s == pytest.approx((30 + 40 + 4) / 11.5)
    assert (surge.ttft.n, surge.ttft.max_s) == (2, 1.5)
    assert surge.ttft.p50_s == pytest.approx(1.1)


def test_the_headline_sets_every_mode_against_the_baseline_in_the_first_and_the_busiest_phase() -> None:
    auto_rows = [one.model_copy(update={"mode": "auto"}) for one in ROWS]
    auto_samples = [one.model_copy(update={"mode": "auto"}) for one in SAMPLES]
    phases = summarise(REGIME, ["off", "auto"], [*ROWS, *auto_rows], [*SAMPLES, *auto_samples])
    line = headline(phases, "off", ["off", "auto"])
    assert line == "Engine time per token, as a multiple of off's: auto 1.00 in quiet, 1.00 in surge."
    assert headline((), "off", ["off"]) == "Nothing was measured."


def test_samples_come_back_as_written_and_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(one.model_dump_json() + "\n" for one in SAMPLES))
    assert read_samples(path) == SAMPLES
    path.write_text(SAMPLES[0].model_dump_json() + "\n[]\n")
    with pytest.raises(SamplesError, match=r"samples\.jsonl:2"):
        read_samples(path)


def run_summary() -> RunSummary:
    phases = summarise(REGIME, ["off"], ROWS, SAMPLES)
    return RunSummary(
        regime=str(REGIME),
        seed=1,
        model="a <model>",
        modes=("off",),
        phases=phases,
        policy_killed_at_s=112.0,
        headline="one & line",
    )


def test_the_report_is_one_page_with_every_number_of_the_table_and_nothing_from_elsewhere() -> None:
    page = render_report(run_summary(), REGIME, ROWS, SAMPLES)
    for line in run_summary().phases:
        assert len(table_cells(line)) == len(COLUMNS)
        assert "".join(f"<td>{cell}</td>" for cell in table_cells(line)) in page
    assert page.count("<svg") == 6
    assert "one &amp; line" in page
    assert "a &lt;model&gt;" in page
    assert "killed here" in page
    assert all(foreign not in page for foreign in ("http:", "https:", "<script", "src=", "@import", "url("))


def test_a_target_adds_two_columns_to_table_and_page() -> None:
    phases = summarise(REGIME, ("off",), ROWS, SAMPLES, GoodputTarget(ttft_ms=700))
    assert [(line.phase, line.goodput.share if line.goodput else None) for line in phases] == [
        ("quiet", 1.0), ("surge", pytest.approx(1 / 3)), ("all", 0.5),
    ]  # fmt: skip
    summary = run_summary().model_copy(update={"phases": phases})
    assert columns(phases)[-2:] == ("within ttft:700", "their tokens/s")
    assert all(len(table_cells(line)) == len(columns(phases)) for line in phases)
    page, file = render_report(summary, REGIME, ROWS, SAMPLES), io.StringIO()
    Console(file=file, width=TABLE_WIDTH + GOODPUT_WIDTH).print(result_table(summary))
    for told in ("33.3%", "50.0%"):
        assert f"<td>{told}</td>" in page
        assert told in file.getvalue()
    assert "…" not in file.getvalue()


def test_every_chart_is_well_formed_and_draws_inside_its_box() -> None:
    drawings = re.findall(r"<svg.*?</svg>", render_report(run_summary(), REGIME, ROWS, SAMPLES), flags=re.DOTALL)
    for drawing in map(ET.fromstring, drawings):
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        across = [float(value) for node in drawing.iter() for key, value in node.attrib.items() if key in {"x", "x1", "x2", "cx"}]
        down = [float(value) for node in drawing.iter() for key, value in node.attrib.items() if key in {"y", "y1", "y2", "cy"}]
        assert across
        assert 0 <= min(across) <= max(across) <= width
        assert 0 <= min(down) <= max(down) <= height


def test_the_printed_table_is_not_cut_in_the_width_that_it_is_given() -> None:
    wide = {
        "requests": 12_345, "tokens_per_s": 12_345.6, "ttft": Times(n=12_345, p50_s=123.4, max_s=234.5),
        "tpot": Times(n=12_345, p50_s=1.234, max_s=2.345), "engine_seconds_per_token": 1.2345, "share_of_steps_off": 1.0,
    }  # fmt: skip
    phases = tuple(line.model_copy(update={"mode": "pin=5", **wide}) for line in run_summary().phases)
    file = io.StringIO()
    Console(file=file, width=TABLE_WIDTH).print(result_table(run_summary().model_copy(update={"phases": phases})))
    assert "…" not in file.getvalue()
    assert all(cell in file.getvalue() for line in phases for cell in table_cells(line))


def test_a_run_without_rows_still_has_a_page() -> None:
    empty = run_summary().model_copy(update={"phases": ()})
    assert "<svg" not in render_report(empty, REGIME, (), ())
