"""docs/results/paper.md says what the kept rows say, and rows that are no evidence are not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightjar.loadtests.simulation.evidence.rows import RunRow, write_rows
from tests.benchmarks.results import paper
from tests.benchmarks.results.kept import RESULTS, KeptError
from tests.loadtests.simulation.evidence.run_rows import row


def run_of(folder: Path, *rows: RunRow) -> Path:
    """A run's folder with these rows, and a summary that says that it ended."""
    (folder / "summary.json").write_text((RESULTS / "policy.json").read_text(encoding="utf-8"), encoding="utf-8")
    write_rows(folder / "rows.jsonl", rows)
    return folder


def test_the_page_in_the_repository_is_the_one_that_make_docs_writes() -> None:
    assert paper.page() == paper.PAGE.read_text(encoding="utf-8")


def test_rows_of_the_comparison_are_kept_with_what_the_page_shows_and_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    folder = run_of(
        tmp_path, row("paper", "off", "p/alpaca 35/s", tokens_per_s=1.23456789, preemptions=3.0), row("steady", "off", "p/a")
    )
    kept = tmp_path / "kept.csv", tmp_path / "again.csv"
    for path in kept:
        paper.keep([folder], path)
    assert kept[0].read_bytes() == kept[1].read_bytes()
    (only,) = paper.read(kept[0])
    assert only.measures == {"tokens_per_s": 1.2346}


def test_rows_that_broke_off_are_not_kept(tmp_path: Path) -> None:
    broken = row("paper", "off", "p/alpaca 35/s").model_copy(update={"error": "ValueError"})
    with pytest.raises(KeptError, match="1 rows of the paper's comparison, 1 of them broke off"):
        paper.keep([run_of(tmp_path, broken)], tmp_path / "kept.csv")


def test_rows_of_a_quick_run_are_not_kept(tmp_path: Path) -> None:
    folder = run_of(tmp_path, row("paper", "off", "p/alpaca 35/s", tokens_per_s=1.0))
    summary = folder / "summary.json"
    summary.write_text(summary.read_text(encoding="utf-8").replace('"effort": "whole"', '"effort": "quick"'), encoding="utf-8")
    with pytest.raises(KeptError, match="is of a quick run: run it without --quick"):
        paper.keep([folder], tmp_path / "kept.csv")


def test_a_page_of_too_few_rows_names_what_they_do_not_tell(tmp_path: Path) -> None:
    paper.keep([run_of(tmp_path, row("paper", "off", "p/alpaca 35/s", tokens_per_s=1.0))], tmp_path / "kept.csv")
    with pytest.raises(KeptError, match="is nothing among the kept rows; tables are The paper's comparison"):
        paper.page(tmp_path / "kept.csv")
