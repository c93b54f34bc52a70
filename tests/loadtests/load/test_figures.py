"""The figures of a load: of all processes together, with the load generator's own lateness beside the latencies."""

from __future__ import annotations

from nightjar.loadtests.load.figures import LoadSummary, ProcessReport, Seen, figures_of, lines_of
from nightjar.loadtests.load.rows import RequestRow
from nightjar.loadtests.load.trace_join import JoinShares
from tests.loadtests import recorded


def row(number: int, *, lag_s: float = 0.0, error: str = "", output: int = 10) -> RequestRow:
    return recorded.row(
        f"trace-{number}", "trace", number, start_s=1000.0 + number + lag_s, error=error, schedule_lag_s=lag_s, ttft_s=0.2,
        tpot_s=0.05, e2e_s=1.0, prompt_tokens=110, completion_tokens=output, asked_prompt_tokens=100, asked_output_tokens=10,
    )  # fmt: skip


def report(*rows: RequestRow, began_s: float = 1000.0, delays_s: tuple[float, ...] = (0.001,) * 100) -> ProcessReport:
    return ProcessReport(began_s, list(delays_s), [Seen.of(one) for one in rows])


def told(*reports: ProcessReport) -> str:
    summary = LoadSummary(
        host="http://host",
        model="tiny",
        load="trace.csv",
        seed=3,
        token_counting="estimated",
        shares=JoinShares(clipped_prompts=0.1, clipped_outputs=0, cut_texts=0.4, stretched_texts=0.5, repeated_texts=0),
        figures=figures_of(reports),
    )
    return "\n".join(f"{name}: {value}" for name, value in lines_of(summary))


def test_processes_add_up_and_what_failed_has_no_latency() -> None:
    figures = figures_of([report(row(0), row(2)), report(row(1), row(3, error="refused"), began_s=1000.25)])
    assert (figures.processes, figures.requests, figures.failed) == (2, 4, 1)
    assert (figures.duration_s, figures.tokens_per_s) == (4.0, 30 / 4.0)
    assert (figures.ttft.n, figures.ttft.p50_s, figures.tpot.p99_s) == (3, 0.2, 0.05)
    assert figures.start_spread_s == 0.25


def test_a_report_survives_the_message_to_the_master() -> None:
    sent = report(row(0), row(1, error="refused"))
    assert ProcessReport.from_plain(sent.plain()) == sent


def test_the_servers_count_stands_beside_the_joins_and_short_answers_are_told() -> None:
    figures = figures_of([report(row(0), row(1, output=4), row(2), row(3))])
    assert (figures.prompt_tokens_over_asked, figures.short_answers) == (1.1, 0.25)
    assert "the server counted +10 a request, 1.100 of that" in told(report(row(0)))
    assert "25.0% ended before the recorded length" in told(report(row(0), row(1, output=4), row(2), row(3)))


def test_a_load_generator_that_keeps_up_says_how_late_it_was_and_nothing_else() -> None:
    said = told(report(*(row(number, lag_s=0.002) for number in range(200)), row(200, lag_s=0.3)))
    assert "sent late ms p50 / p99 / max: 2.0 / 2.0 / 300.0" in said
    assert "could not keep up" not in said


def test_one_that_sends_too_many_requests_late_says_that_it_could_not_keep_up() -> None:
    late = report(*(row(number, lag_s=0.2 if number % 4 == 0 else 0.0) for number in range(100)))
    assert not figures_of([late]).keeps_up
    assert "could not keep up: 25 of 100 requests were sent more than 50 ms late (p99 200 ms)" in told(late)


def test_one_that_is_too_busy_to_see_tokens_when_they_come_says_so_too() -> None:
    busy = report(row(0), delays_s=(0.001,) * 90 + (0.12,) * 10)
    assert not figures_of([busy]).keeps_up
    assert "could not keep up: its processes woke 120 ms late at most (p99 120 ms), so" in told(busy)


def test_a_load_without_a_request_is_told_without_a_latency() -> None:
    assert "TTFT ms p50 / p99 / max: -" in told(report())
