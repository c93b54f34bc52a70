"""Tables and the HTML page, from rows made by hand."""

from __future__ import annotations

from nightjar.loadtests.simulation.evidence.policy_report import render_policy_report
from nightjar.loadtests.simulation.evidence.rows import RunRow
from tests.benchmarks.policy.suite import SUITE
from tests.loadtests.simulation.evidence.run_rows import row, summary_of

ROWS: list[RunRow] = [
    row("open_loop", "fleet", "p/poisson-60%", tokens_per_busy_s=95.0, tpot_p50_s=0.05, requests_per_s=2.0),
    row("open_loop", "nightjar", "p/poisson-60%", tokens_per_busy_s=100.0, tpot_p50_s=0.04, requests_per_s=2.0),
    row("open_loop", "oracle", "p/poisson-60%", tokens_per_busy_s=110.0, tpot_p50_s=0.04, requests_per_s=2.0),
    row("storm", "off", "p/storm", tokens=(10.0, 10.0)),
    row("storm", "fleet", "p/storm", variant="chunked, coordinated", tokens=(9.0, 12.0)),
    row("paper", "off", "p/alpaca 5/s", tokens_per_s=10.0, tokens_per_busy_s=10.0, e2e_mean_s=2.0),
    row("paper", "nightjar", "p/alpaca 5/s", tokens_per_s=12.0, tokens_per_busy_s=11.0, e2e_mean_s=1.0),
    row("steady", "fleet", "p/<batch>", seed=3, error="ValueError: <no>"),
]


def test_a_liars_moves_are_counted_beside_those_that_cost_something() -> None:
    rows = [
        row(
            "liar",
            "fleet",
            variant="times ten",
            plan=(4.0, 5.0, 0.0),
            plan_without_liar=(3.0, 3.0, 0.0),
            true_tokens_per_s=(98.0, 180.0, 300.0),
            true_tokens_per_s_without_liar=(100.0, 200.0, 300.0),
            refused_reports=0.0,
        ),
    ]
    found = next(grid for grid in SUITE.grids(rows) if grid.title == "One of sixteen lies")
    assert found.rows[0][2:5] == ("2", "1", "3")


def page_of(rows: list[RunRow]) -> str:
    return render_policy_report(summary_of(rows), rows, SUITE.grids(rows), SUITE.charts)


def page() -> str:
    return page_of(ROWS)


def test_a_cell_where_we_lose_is_on_the_page() -> None:
    losses = next(grid for grid in SUITE.grids(ROWS) if grid.title == "Where we lose")
    assert losses.rows == (("0.9500", "p/poisson-60%, fleet over nightjar", "1"),)
    assert "0.9500" in page()


def test_the_page_is_self_contained_and_escapes_what_rows_say() -> None:
    html = page()
    assert "<script" not in html
    assert "http" not in html
    assert "&lt;no&gt;" in html
    assert "<batch>" not in html


def test_a_failed_run_is_named_with_its_seed() -> None:
    html = page()
    assert "Runs that failed" in html
    assert "ValueError" in html


def test_the_page_draws_load_curves_and_the_storm() -> None:
    html = page()
    assert "against load" in html
    assert "Restart storm" in html
    assert html.count("<svg") >= 3


def test_every_table_of_an_empty_run_is_empty_and_its_page_still_renders() -> None:
    assert all(not grid.rows for grid in SUITE.grids([]))
    assert "not run" in page_of([])


def test_the_paper_stands_beside_ours_with_its_version() -> None:
    averages = next(grid for grid in SUITE.grids(ROWS) if grid.title.startswith("The paper's comparison"))
    assert averages.rows[0][:4] == ("AR", "1.273 (v3)", "1.200", "-")
    per_busy_s = next(grid for grid in SUITE.grids(ROWS) if grid.title == "The same, tokens per busy engine-second")
    assert per_busy_s.rows[0][:2] == ("AR", "1.100")
