"""A missed bar fails a strict bench and no other, and is what it prints last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.loadtests.simulation.campaign.campaign import Campaign
from nightjar.loadtests.simulation.evidence.bars import Bar, by_name, missed_lines
from nightjar.loadtests.simulation.evidence.summary import NOT_JUDGED
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun
from tests.benchmarks.results.kept import BENCHES
from tests.loadtests.simulation.evidence.run_rows import row, summary_of

MAKEFILE = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
MISSED = Bar(name="slow", meaning="m", direction="at most", limit=1.0, value=2.0, at="batch 8")
REACHED = Bar(name="fine", meaning="m", direction="at least", limit=1.0, value=1.5)
NO_PLACE = Bar(name="nowhere", meaning="m", direction="at least", limit=1.0, at="nothing to win anywhere")
NO_VALUE = Bar(name="forgotten", meaning="m", direction="at least", limit=1.0)
STATED = Bar(name="told", meaning="m", direction="stated", value=0.0)
LINE = "missed: slow = 2, wanted <= 1, at batch 8"


def bench(folder: Path, *bars: Bar) -> BenchRun:
    run = BenchRun("step", seeds=[0], sections=["hooks"], output=folder, effort="whole")
    run.found("hooks", Outcome(bars=list(bars)))
    return run


@pytest.mark.parametrize(
    ("bars", "strict", "code"),
    [
        ([MISSED, REACHED], True, 1),
        ([MISSED, REACHED], False, 0),
        ([REACHED, NO_PLACE, STATED], True, 0),
        ([REACHED, NO_VALUE], True, 1),
    ],
    ids=["missed", "not strict", "no place and stated", "no value where one was due"],
)
def test_the_exit_code_of_a_bench(bars: list[Bar], strict: bool, code: int, tmp_path: Path) -> None:
    assert bench(tmp_path, *bars).end(strict=strict) == code


def test_missed_bars_are_printed_last_each_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, MISSED, REACHED, NO_VALUE).end(strict=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [LINE, "missed: forgotten = no value, wanted >= 1"]
    bench(tmp_path, REACHED, NO_PLACE).end(strict=False)
    assert capsys.readouterr().out.splitlines()[-1] == "no bar was missed: 1 reached, 1 without a value"


def test_a_bar_whose_part_did_not_run_is_not_missed() -> None:
    assert missed_lines([NO_VALUE]) == []
    assert NO_VALUE.verdict == "not run"


def test_two_bars_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two bars are named 'slow'"):
        by_name([MISSED, MISSED])


@pytest.mark.parametrize(("options", "code"), [(["--strict"], 1), ([], 0)], ids=["strict", "not strict"])
def test_a_simulation_prints_missed_bars_last_and_fails_by_them_where_it_is_strict(
    options: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("steady", who, tokens_per_s=tokens) for who, tokens in (("fleet", 90.0), ("off", 100.0))]

    def run(*_: Any) -> Any:
        return summary_of(rows), rows

    monkeypatch.setattr(Campaign, "run", run)
    done = CliRunner().invoke(app, ["simulate", "--only", "steady", "--runs", str(tmp_path), *options])
    assert done.exit_code == code
    assert done.stdout.splitlines()[-1] == "missed: fleet_over_off_min = 0.9, wanted >= 0.99, at p/steady, fleet over off"


def test_a_look_is_not_judged_unless_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("steady", who, tokens_per_s=tokens) for who, tokens in (("fleet", 90.0), ("off", 100.0))]
    monkeypatch.setattr(Campaign, "run", lambda *_: (summary_of(rows), rows))
    done, strict = (
        CliRunner().invoke(app, ["simulate", "--quick", "--only", "steady", "--runs", str(tmp_path / name), *options])
        for name, options in (("look", []), ("strict", ["--strict"]))
    )
    assert (done.exit_code, strict.exit_code) == (0, 1)
    assert done.stdout.splitlines()[-1] == NOT_JUDGED
    assert not any(word in done.stdout for word in ("fleet_over_off_min", "missed", "reached"))
    assert strict.stdout.splitlines()[-1].startswith("missed: fleet_over_off_min = 0.9")


def test_every_bench_has_a_make_target_that_hands_on_its_arguments() -> None:
    targets = dict(re.findall(r"^bench-([a-z]+):.*\n\t(.*)$", MAKEFILE, re.MULTILINE))
    assert targets.keys() == BENCHES.keys()
    for name, recipe in targets.items():
        assert recipe.endswith(" $(ARGS)"), name
