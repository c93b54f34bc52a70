"""The runner: same rows whatever the number of processes, and failures that name their cell."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Outcome, run_cells, without_repeats
from nightjar.loadtests.simulation.profiles import Mechanics


@dataclass(frozen=True)
class Draw:
    """A job whose outcome depends on nothing but itself."""

    seed: int

    def __call__(self) -> Outcome:
        if self.seed == 13:
            raise ValueError("blocks were lost")
        rng = random.Random(self.seed)
        return Outcome({"tokens_per_s": rng.random()}, {"tokens": (rng.random(), rng.random())}, steps=7)


def cell(seed: int, planner: str = "fleet") -> Cell:
    return Cell("steady", "p/8 users", "p", "8 users", planner, Mechanics.DORMANT, 1, seed, Draw(seed), expected_s=1.0)


def bytes_of(rows: list[RunRow]) -> list[str]:
    return [row.model_dump_json(exclude={"core_s"}) for row in rows]


def test_rows_come_in_the_order_of_the_cells_and_do_not_depend_on_the_number_of_processes() -> None:
    cells = [cell(seed) for seed in (5, 1, 13, 3)]
    assert bytes_of(run_cells(cells, 2)) == bytes_of(run_cells(cells, 1))


def test_a_cell_that_breaks_off_is_reported_with_its_names_and_ends_no_other() -> None:
    broken, whole = run_cells([cell(13), cell(2)], 1)
    assert (broken.place, broken.planner, broken.seed, broken.measures) == ("p/8 users", "fleet", 13, {})
    assert broken.error.startswith("ValueError: blocks were lost (test_runner.py:")
    assert (whole.error, whole.steps) == ("", 7)


def test_a_run_that_two_experiments_ask_for_is_made_once() -> None:
    assert len(without_repeats([cell(1), cell(1), cell(1, "off")])) == 2


def test_every_finished_row_is_told_in_order() -> None:
    heard: list[int] = []
    run_cells([cell(2), cell(1)], 1, lambda _cell, row: heard.append(row.seed))
    assert heard == [2, 1]
