"""`make mutants`: mutation testing of what decides, in copies of this tree. Nothing here is changed but runs/mutants/.

Exit code 1 where a module, or all together, have less than 80 % of their mutants killed, where a survivor is not explained in
explained.toml, or where the time ran out first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.mutants.session import FOLDER, ROOT, read_rows, run_all, updated, write_rows, write_summary
from tests.mutants.survivors import FILE, read_explained
from tests.mutants.targets import TARGETS
from tests.mutants.verdict import Tried, Verdict, markdown, plain, verdict_on
from tests.mutants.worker import Change, Specification


def main(
    modules: Annotated[list[str] | None, typer.Argument(help="parts of module paths, such as step/guard; all, if none")] = None,
    share: Annotated[float, typer.Option(help="of each module's mutants, drawn by --seed", min=0.001, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(help="which sample --share draws")] = 1,
    minutes: Annotated[float, typer.Option(help="no mutant is begun after so long")] = 29.0,
    workers: Annotated[int, typer.Option(help="modules at the same time", min=1)] = 2,
    again: Annotated[
        bool, typer.Option("--again", help="of a module that has not changed, only the mutants that survived its last run")
    ] = False,
) -> None:
    """Mutate what decides, and count how many mutants the tests notice."""
    console, began_s = Console(), time.monotonic()
    targets = [one for one in TARGETS if not modules or any(part in one.module for part in modules)]
    if not targets:
        raise typer.BadParameter(f"{modules} is in no module's path; there are: {', '.join(one.module for one in TARGETS)}")
    explained = read_explained(FILE.read_text(encoding="utf-8"))
    console.print(
        f"{len(targets)} modules, {share:.0%} of their mutants, seed {seed}, {workers} at a time, at most {minutes:.0f} minutes"
    )
    before = {one.module: read_rows(one.module) if again else [] for one in targets}
    until_s = began_s + minutes * 60.0
    specifications = [
        Specification(one.module, one.tests, one.only, one.libraries, share, seed, until_s, _survived(before[one.module]))
        for one in targets
    ]
    found: dict[str, list[Tried]] = {}

    def keep(tried: list[Tried]) -> None:
        module = tried[0].module if tried else ""
        if tried:
            found[module] = updated(before[module], tried)
            write_rows(module, found[module])

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("copying the tree", total=0.0)

        def heard(one: Tried | int) -> None:
            if isinstance(one, int):
                progress.update(bar, total=(progress.tasks[0].total or 0.0) + one)
            else:
                progress.update(bar, advance=1, description=f"{one.module}:{one.line}")

        problems = run_all(specifications, workers, heard, keep)
    tried = [row for one in targets for row in found.get(one.module, before[one.module])]
    verdict = verdict_on(tried, explained, is_sample=share < 1.0)
    took_s = time.monotonic() - began_s
    write_summary({"took_s": round(took_s, 1), **plain(verdict)}, markdown(verdict))
    _show(verdict, console)
    for problem in problems:
        console.print(problem, style="red", markup=False)
    console.print(f"{took_s:.0f} s by the clock, {verdict.total.processor_s:.0f} s of processor time in tests")
    console.print(f"{FOLDER.relative_to(ROOT)}/ holds every mutant, table.md and summary.json")
    if verdict.missed or problems:
        raise typer.Exit(1)


def _survived(before: Sequence[Tried]) -> tuple[Change, ...] | None:
    """Which mutants to run again; None for all of them, where there was no earlier run."""
    return tuple((one.line, one.operator, one.before, one.after) for one in before if one.outcome == "survived") if before else None


def _show(verdict: Verdict, console: Console) -> None:
    table = Table(title="Mutants that the tests noticed")
    table.add_column("module", overflow="fold")
    for column in ("mutants", "killed", "hung", "explained", "survived", "share"):
        table.add_column(column, justify="right")
    for count in (*verdict.counts, verdict.total):
        numbers = (count.mutants, count.killed, count.timeouts, count.explained, count.survived)
        table.add_row(count.name, *map(str, numbers), f"{count.share:.0%}", end_section=count is verdict.counts[-1])
    console.print(table)
    for one in verdict.survivors:
        _plainly(console, f"{one.module}:{one.line} {one.operator}\n  - {one.before}\n  + {one.after}")
    for entry in verdict.stale:
        _plainly(console, f"explained, but killed or gone: {entry.module}\n  - {entry.before}\n  + {entry.after}")
    for problem in verdict.missed:
        _plainly(console, problem)


def _plainly(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
