"""`nightjar simulate --resume`: a run that was killed goes on where it stopped, and one that would mix two codes does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.campaign.campaign import ROWS, SUMMARY, Campaign, ResumeError, resumed
from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.evidence.rows import RunRow, read_rows
from nightjar.loadtests.simulation.evidence.runner import Cell, Outcome
from nightjar.loadtests.simulation.evidence.summary import SimulationSummary
from nightjar.loadtests.simulation.profiles import Mechanics, read_profile
from tests.benchmarks.policy.suite import SUITE


@dataclass(frozen=True)
class Counted:
    """A run that takes no time, and gives its seed."""

    seed: int

    def __call__(self) -> Outcome:
        return Outcome({"tokens_per_busy_s": 1.0 + self.seed}, {"mean_k": (0.5, 3.0)}, steps=10 * self.seed)


def counted(seed: int) -> Cell:
    place = {"place": "cpu-smollm2/surge", "profile": "cpu-smollm2", "load": "surge", "mechanics": Mechanics.DORMANT}
    return Cell(kind="steady", planner="fleet", replicas=1, seed=seed, job=Counted(seed), expected_s=1.0, **place)  # type: ignore[arg-type]


SEEDS: Final = Experiment("seeds", "five runs", (lambda _choice, _rows: [counted(seed) for seed in range(5)],))
CAMPAIGN: Final = Campaign((SEEDS,), Choice((read_profile("cpu-smollm2"),), ("surge",), QUICK), 1, SUITE)
QUIET: Final = Console(quiet=True)


def facts(**changes: object) -> RunFacts:
    begun = RunFacts.begun("policy", "make bench-policy", "partial", ["seeds"])
    return begun.model_copy(update={"commit": "c0ffee", **changes})


def without_times(rows: tuple[RunRow, ...]) -> list[RunRow]:
    return [row.model_copy(update={"core_s": 0.0}) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    CAMPAIGN.run(folder, QUIET, facts())
    return folder


@pytest.fixture
def killed(whole: Path, tmp_path: Path) -> Path:
    """What a run leaves that was killed while it wrote its fourth row, whose third broke off."""
    lines = (whole / ROWS).read_text().splitlines(keepends=True)
    broken = RunRow.model_validate_json(lines[2]).model_copy(update={"measures": {}, "steps": 0, "error": "out of memory"})
    cut = lines[3][: len(lines[3]) // 2]
    (tmp_path / ROWS).write_text("".join(lines[:2]) + broken.model_dump_json(exclude_defaults=True) + "\n" + cut)
    begun = SimulationSummary.model_validate_json((whole / SUMMARY).read_text())
    (tmp_path / SUMMARY).write_text(begun.model_copy(update={"run": facts()}).model_dump_json())
    return tmp_path


def test_a_killed_run_that_goes_on_ends_with_the_rows_of_one_that_was_never_stopped(whole: Path, killed: Path) -> None:
    earlier, known = resumed(killed, facts(began="later"))
    assert len(known) == 2
    summary, _ = CAMPAIGN.run(killed, QUIET, earlier, known)
    assert without_times(read_rows(killed / ROWS)) == without_times(read_rows(whole / ROWS))
    assert summary.run.has_ended
    assert summary.run.began == earlier.began != "later"


def test_a_run_says_from_its_start_what_it_is_so_that_it_can_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed_at_once(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Campaign, "_run_wave", killed_at_once)
    monkeypatch.setattr(Campaign, "_write", killed_at_once)
    with pytest.raises(SystemExit):
        CAMPAIGN.run(tmp_path, QUIET, facts())
    earlier, known = resumed(tmp_path, facts())
    assert earlier.command == "make bench-policy"
    assert not earlier.has_ended
    assert known == ()


def other_version(now: RunFacts) -> RunFacts:
    return now.model_copy(update={"machine": {**now.machine, "numpy": "0.1"}})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda now: now.model_copy(update={"command": "make bench-latency"}), "another command"),
        (lambda now: now.model_copy(update={"commit": "decaf"}), "another commit"),
        (other_version, "another version"),
        (lambda now: now.model_copy(update={"commit": "c0ffee with changes"}), "differ from its commit"),
    ],
    ids=["command", "commit", "version", "changes"],
)
def test_rows_of_another_code_or_command_are_refused_and_stay(
    killed: Path, changed: Callable[[RunFacts], RunFacts], told: str
) -> None:
    before = (killed / ROWS).read_text()
    with pytest.raises(ResumeError, match=told):
        resumed(killed, changed(facts()))
    assert (killed / ROWS).read_text() == before


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "--quick", "--resume", str(tmp_path)])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "holds no run" in result.stderr


def test_a_run_that_goes_on_stays_in_its_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "--resume", str(tmp_path), "--runs", str(tmp_path)])
    assert result.exit_code == 2
    assert "stays in its folder" in result.stderr
