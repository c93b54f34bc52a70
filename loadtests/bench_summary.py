"""What every bench writes as `summary.json` and prints last: how, where and when it ran, and every bar with its outcome.

One shape for all of them, so that results are compared, kept and published by the same code; a bench adds fields of its own. A
missed bar fails a bench only with `--strict`. A run that broke off is told from one that ended by `has_ended`.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from nightjar.loadtests.report.machine import commit, load_average, machine
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.policy.wire.record import Record

Effort = Literal["whole", "quick", "partial"]

WRITES_TO: Final = frozenset({"--output", "--runs"})
"""Options that name a folder."""

StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit code 1 if a bar is missed. A bar without a value counts as missed if what ran was to give it one; one whose "
        "part did not run ('not run'), or that nothing which ran decides ('no place', with the reason), does not.",
    ),
]


class RunFacts(Record):
    """How, where and when a bench ran.

    command  what a person types to run it again
    commit   of the checkout; empty where there is none
    subject  what was measured, where the command does not say it: models, number formats
    effort   whole: everything, at the size that counts as evidence; quick: a look; partial: some sections, or fewer repeats
    load_at_begin, load_at_end  the machine's load over one, five and fifteen minutes
    has_ended  whether every part came to its end
    """

    bench: str
    command: str
    commit: str
    began: str
    subject: str = ""
    effort: Effort
    sections: tuple[str, ...]
    machine: Mapping[str, str]
    load_at_begin: str
    load_at_end: str = ""
    wall_seconds: float = 0.0
    has_ended: bool = False

    @classmethod
    def begun(cls, bench: str, command: str, effort: Effort, sections: Sequence[str], subject: str = "", **more: str) -> RunFacts:
        """Of a run that begins now; `more` are facts of the machine that only this bench has."""
        return cls(
            bench=bench,
            command=command,
            commit=commit(),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            subject=subject,
            effort=effort,
            sections=tuple(sections),
            machine=machine() | more,
            load_at_begin=load_average(),
        )

    def after(self, wall_seconds: float, *, has_ended: bool) -> RunFacts:
        """The same after so many seconds."""
        now = {"load_at_end": load_average(), "wall_seconds": round(wall_seconds, 1), "has_ended": has_ended}
        return self.model_copy(update=now)


class BenchSummary(Record):
    """What every bench tells of a run. Bars are by name."""

    run: RunFacts
    seeds: Mapping[str, tuple[int, ...]]
    bars: Mapping[str, Bar]

    @property
    def missed(self) -> list[Bar]:
        """Bars by which a strict run fails."""
        return [bar for bar in self.bars.values() if bar.is_missed]


def by_name(bars: Iterable[Bar]) -> dict[str, Bar]:
    """Bars by name. Raises ValueError for a name that is there twice: one would hide the other."""
    found: dict[str, Bar] = {}
    for bar in bars:
        if bar.name in found:
            raise ValueError(f"two bars are named {bar.name!r}: names of bars must differ within a bench; rename one")
        found[bar.name] = bar
    return found


def make_command(bench: str, arguments: Sequence[str]) -> str:
    """The make target of a bench with these arguments, without where it writes.

    >>> make_command("scale", ["--seed", "1", "--output", "here"]), make_command("step", [])
    ('make bench-scale ARGS="--seed 1"', 'make bench-step')
    """
    kept = without_folders(arguments)
    return f"make bench-{bench}" + (f' ARGS="{shlex.join(kept)}"' if kept else "")


def without_folders(arguments: Sequence[str]) -> list[str]:
    """A command line without the options that name where it writes."""
    return [word for before, word in zip(["", *arguments], arguments, strict=False) if not {before, word} & WRITES_TO]


def missed_lines(bars: Iterable[Bar]) -> list[str]:
    """One line a missed bar: name, value, what is wanted, where."""
    return [
        f"missed: {bar.name} = {'no value' if bar.value is None else f'{bar.value:.4g}'}, wanted {bar.want}"
        + (f", at {bar.at}" if bar.at else "")
        for bar in bars
        if bar.is_missed
    ]


def print_missed(console: Console, bars: Collection[Bar]) -> None:
    """What a bench prints last: the missed bars, or that there is none, and how many that says something of."""
    lines, style = missed_lines(bars), "bold red"
    if not lines:
        reached, unmeasured = sum(bar.passed is True for bar in bars), sum(bar.value is None for bar in bars)
        lines, style = [f"no bar was missed: {reached} reached, {unmeasured} without a value"], "bold"
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
