"""What is kept of a bench's run: whole runs only, or marked; and the page says what the kept summaries say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.loadtests.arms.statistics import Interval
from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.evidence.bars import Bar, BenchSummary, by_name
from tests.benchmarks.results.__main__ import app
from tests.benchmarks.results.kept import BENCHES, RESULTS, KeptError, keep, read_kept
from tests.benchmarks.results.page import PAGE, page

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|mnt)/")
BARS = (
    Bar(name="slow", meaning="m | n", direction="at most", limit=1.0, value=2.5, at="batch 8",
        interval=Interval(low=2.0, high=3.0, kind="range of 3 rounds")),
    Bar(name="fine", meaning="m", direction="at least", limit=1.0, value=1.5),
)  # fmt: skip


def run_folder(folder: Path, **changes: object) -> Path:
    """As a bench leaves it."""
    facts = RunFacts.begun("engine", "make bench-engine", "whole", ["off"]).after(12.0, has_ended=True).model_copy(update=changes)
    summary = BenchSummary(run=facts, seeds={"all": (0, 1, 2)}, bars=by_name(BARS))
    (folder / "summary.json").write_text(summary.model_dump_json())
    return folder


def test_a_whole_run_is_kept_with_its_bars_and_the_page_tells_them(tmp_path: Path) -> None:
    path = keep(run_folder(tmp_path), tmp_path / "results")
    assert path.name == "engine.json"
    told = page(tmp_path / "results")
    assert "| `slow` | 2.5 | 2 to 3 | range of 3 rounds | <= 1 | MISSED | batch 8 | m / n |" in told
    assert "| `fine` | 1.5 | - | - | >= 1 | reached | - | m |" in told
    assert "- **Missed: slow = 2.5, wanted <= 1, at batch 8**" in told
    assert "Seeds: all 0-2" in told
    assert "No whole run is kept yet: `make bench-live`." in told
    assert "No evidence" not in told


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"effort": "quick"}, "a quick run"),
        ({"effort": "partial"}, "a partial run"),
        ({"has_ended": False}, "a run that broke off"),
    ],
    ids=["quick", "partial", "broke off"],
)
def test_what_is_no_evidence_is_refused_or_marked(changes: dict[str, object], what: str, tmp_path: Path) -> None:
    folder, results = run_folder(tmp_path, **changes), tmp_path / "results"
    with pytest.raises(KeptError, match=f"is of {what}.*make bench-engine.*--anyway"):
        keep(folder, results)
    assert read_kept(results) == {}
    keep(folder, results, anyway=True)
    assert f"**No evidence: this was {what}.**" in page(results)


def test_what_is_no_summary_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(KeptError, match="cannot be read: No such file"):
        keep(tmp_path)
    (tmp_path / "summary.json").write_text('{"bars": []}')
    with pytest.raises(KeptError, match="is no summary of a bench: run"):
        keep(tmp_path)
    with pytest.raises(KeptError, match="of the bench 'coffee': there are policy"):
        keep(run_folder(tmp_path, bench="coffee"))
    refused = CliRunner().invoke(app, ["keep", str(tmp_path / "nowhere")])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: ")


def test_the_page_in_the_repository_is_the_one_that_make_docs_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_kept_summaries_bear_the_names_of_their_benches_and_no_path_of_a_machine() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= BENCHES.keys()
    for bench, summary in read_kept().items():
        assert summary.run.bench == bench
    for path in RESULTS.iterdir():
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8")), path
