"""docs/results/constants.md: a row for each number of policy/, what it is for, and what a run loses with it halved and doubled.

Names, values and purposes are read from the source, the rest from the rows of a run of `make bench-policy ARGS="--only constants"`,
so that the page is as old as that run: it is written by hand, when the numbers were run, and not by `make docs`. Fails closed: a
run that broke off, and one without such rows, raise KeptError.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nightjar.policy
from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.report.page import markdown_table
from nightjar.loadtests.simulation.evidence.bar_list import ALL_PARTS
from nightjar.loadtests.simulation.evidence.cells import GOODPUT
from nightjar.loadtests.simulation.evidence.grid import DASH, ratio
from nightjar.loadtests.simulation.evidence.rows import RunRow, read_rows
from tests.benchmarks.policy.experiments.constants import CONSTANTS, FACTORS, Number, tuned
from tests.benchmarks.results.kept import KeptError, read_summary
from tests.structure import numeric_constants

LONGEST_VALUE: Final = 24
"""Characters of a value that is shown; of longer ones, the beginning."""
HEAD: Final = """\
# Numbers of the planner

Every numeric constant of `policy/`: what it is for, and what a run loses with it halved and doubled. Printed by
`python -m tests.benchmarks.results constants FOLDER` from the folder of `{command}`,
{began}, commit {commit}.

- Simulated, three replicas from nothing learned, {seeds}; learning is part of each run. Loads: {places}.
- A cell is tokens per busy second over those of the planner as it is, same seed: geometric mean, and the worst load.
- *Same*: of both changes, the runs that stay the same to the last bit, so that the number is not read, or nothing hangs on it.
- Noise: with one seed any change of a decision moves a run, mostly by up to 0.006, up or down.
- None of these runs is without a number. What whole parts are worth: [notebook](../notebook.md).
- Numbers that stand together in the source share its sentence.
"""
LEFT: Final = """\

## Not changed

What is sent and kept, who is believed, the canary and pages: safety, no tuning. Or other numbers are made of it when its module is
imported.
"""


@dataclass(frozen=True, slots=True)
class Stated:
    """A constant as its module states it."""

    number: Number
    value: str
    purpose: str


def page(folder: Path) -> str:
    """The page of the run in this folder. Raises KeptError."""
    run = read_summary(folder / "summary.json").run
    rows = [row for row in read_rows(folder / "rows.jsonl") if row.kind == CONSTANTS]
    if not rows or not run.has_ended or any(row.error for row in rows):
        raise KeptError(f'{folder} holds no whole run of the numbers: run make bench-policy ARGS="--only {CONSTANTS}"')
    changed, everything = frozenset(tuned()), tuple(stated())
    lines = sorted((_changed(one, rows) for one in everything if one.number in changed), key=lambda line: line[0])
    left = [_told(one) for one in everything if one.number not in changed]
    seeds = len({row.seed for row in rows})
    head = HEAD.format(
        command=run.command,
        began=run.began[:10],
        commit=run.commit,
        seeds="one seed" if seeds == 1 else f"{seeds} seeds",
        places=", ".join(dict.fromkeys(row.place for row in rows)),
    )
    heads = ("number", "value", "halved", "worst", "doubled", "worst", "same", "for")
    counts = (
        f"{len(everything)} numbers; {len(lines)} were changed, the one that loses most first, "
        f"{sum(worst > 1.0 for worst, _ in lines)} of them lose nothing anywhere."
    )
    tables = markdown_table(heads, (line for _, line in lines)), markdown_table(("number", "value", "for"), left)
    return "\n".join((head, counts, "", *tables[0], LEFT, *tables[1], ""))


def stated() -> Iterator[Stated]:
    """Every numeric constant below policy/, module by module. Several in a row may share the sentence below the last."""
    folder = Path(nightjar.policy.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        module, names = ".".join(path.relative_to(folder).with_suffix("").parts), numeric_constants(source)
        waiting: list[tuple[str, ast.expr]] = []
        for node in ast.parse(source).body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name in names:
                    waiting.append((name, value))
                case ast.Expr(value=ast.Constant(value=str() as purpose)):
                    yield from (Stated(Number(module, name), ast.unparse(value), purpose) for name, value in waiting)
                    waiting = []
                case _:
                    yield from (Stated(Number(module, name), ast.unparse(value), "") for name, value in waiting)
                    waiting = []


def _changed(one: Stated, rows: Sequence[RunRow]) -> tuple[float, list[str]]:
    """What it loses at worst, to sort by, and its line."""
    as_it_is = {(row.place, row.seed): row.measures for row in rows if row.variant == ALL_PARTS}
    cells, every, same = [], [], []
    for how in FACTORS:
        runs = [(row.measures, as_it_is[row.place, row.seed]) for row in rows if row.variant == f"{one.number} {how}"]
        over = [changed[GOODPUT] / whole[GOODPUT] for changed, whole in runs]
        cells += [ratio(geometric_mean(over)), ratio(min(over))] if over else [DASH, DASH]
        every += over
        same += [changed == whole for changed, whole in runs]
    name, value, purpose = _told(one)
    return (min(every, default=1.0) if not all(same) else 2.0), [name, value, *cells, f"{sum(same)} of {len(same)}", purpose]


def _told(one: Stated) -> tuple[str, str, str]:
    value = one.value if len(one.value) <= LONGEST_VALUE else f"{one.value[:LONGEST_VALUE]}..."
    sentence = re.split(r"(?<=\.) (?=[A-Z])", " ".join(one.purpose.split()), maxsplit=1)[0]
    return f"`{one.number}`", f"`{value}`", sentence.replace("|", "\\|")
