"""The experiment that halves and doubles each tuned number: a number changes wherever it is read, for as long as a run lasts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.evidence.bars import BenchSummary
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Outcome
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.policy.evidence import doubt
from nightjar.policy.planners import calibration, estimates, fleet
from tests.benchmarks.policy.experiments.constants import FACTORS, Changed, Number, runs, scaled, tuned
from tests.benchmarks.policy.tables import constants_grid
from tests.benchmarks.results.constants import page, stated
from tests.benchmarks.results.kept import KeptError

DOUBT = Number("evidence.doubt", "DOUBT_DEVIATIONS")


@dataclass(frozen=True)
class Reads:
    """A run that reads a number through a module that imported it."""

    breaks_off: bool = False

    def __call__(self) -> Outcome:
        if self.breaks_off:
            raise RuntimeError
        return Outcome({"read": vars(fleet)["DOUBT_DEVIATIONS"], "at home": doubt.DOUBT_DEVIATIONS})


def test_whoever_imported_a_number_reads_the_changed_one_while_a_run_lasts_and_the_old_one_after_it() -> None:
    before = doubt.DOUBT_DEVIATIONS
    assert Changed(Reads(), DOUBT, 2.0)().measures == {"read": 2.0 * before, "at home": 2.0 * before}
    with pytest.raises(RuntimeError):
        Changed(Reads(breaks_off=True), DOUBT, 2.0)()
    assert (vars(fleet)["DOUBT_DEVIATIONS"], doubt.DOUBT_DEVIATIONS) == (before, before)


def test_a_number_of_the_same_name_in_another_module_stays() -> None:
    others = estimates.REFRESH_S
    with Number("planners.calibration", "REFRESH_S").times(0.5):
        assert calibration.REFRESH_S == 300.0
        assert others == estimates.REFRESH_S


def test_every_tuned_number_is_there_and_each_change_is_another_number() -> None:
    numbers = tuned()
    assert len(numbers) > 100
    assert DOUBT in numbers
    for number in numbers:
        value = getattr(import_module(f"nightjar.policy.{number.module}"), number.name)
        changed = [np.asarray(scaled(value, factor)) for factor in FACTORS.values()]
        assert all((one != np.asarray(value)).any() for one in changed if not np.array_equal(value, 1)), number


def worse_with(number: Number, how: str) -> list[RunRow]:
    """Rows of one load in which a single change loses a tenth of the tokens."""
    choice = Choice((read_profile("qwen-7b-0.5b-rtx4090"),), (), QUICK)
    cells = [cell for cell in runs(choice, ()) if cell.load == "surge"]
    lost = f"{number} {how}"
    return [cell.row(Outcome({"tokens_per_busy_s": 90.0 if cell.variant == lost else 100.0, "e2e_mean_s": 2.0})) for cell in cells]


def test_a_number_that_changes_nothing_stands_at_the_end_of_the_table() -> None:
    first, *others = constants_grid(worse_with(DOUBT, "halved")).rows
    assert first == (f"{DOUBT} halved", "0.900", "0.900", "qwen-7b-0.5b-rtx4090/surge", "1.000", "0 of 1")
    assert {line[-1] for line in others} == {"1 of 1"}
    assert len(others) == 2 * len(tuned()) - 1


def test_the_page_of_the_numbers_has_a_row_for_each_with_what_it_is_for(tmp_path: Path) -> None:
    facts = RunFacts.begun("policy", "make bench-policy", "partial", ["constants"]).after(12.0, has_ended=True)
    (tmp_path / "summary.json").write_text(BenchSummary(run=facts, seeds={}, bars={}).model_dump_json())
    (tmp_path / "rows.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in worse_with(DOUBT, "halved")))
    lines = [line for line in page(tmp_path).splitlines() if line.startswith("| `")]
    assert len(lines) == len(list(stated()))
    assert all(line.split(" | ")[-1].strip("| ") for line in lines)
    assert lines[0].startswith(f"| `{DOUBT}` | `{doubt.DOUBT_DEVIATIONS}` | 0.900 | 0.900 | 1.000 | 1.000 | 1 of 2 | ")


def test_no_page_of_the_numbers_is_made_from_a_run_without_them(tmp_path: Path) -> None:
    facts = RunFacts.begun("policy", "make bench-policy", "whole", []).after(12.0, has_ended=True)
    (tmp_path / "summary.json").write_text(BenchSummary(run=facts, seeds={}, bars={}).model_dump_json())
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(KeptError, match=r"no whole run of the numbers.*--only constants"):
        page(tmp_path)
