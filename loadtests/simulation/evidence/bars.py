"""What a bar is, and what every bench keeps of its bars: `summary.json`, and the lines that it prints last.

One shape for the simulator and for the benches on real engines, so that results are compared, kept and published by the same code;
a bench adds fields of its own. A bar is reached where all of its interval keeps the limit, missed where none of it does, and not
shown where the interval holds the limit; a value without an interval is its own. A bar whose runs were not made has no value and
did not pass, nor has one that none of its places is for. A missed bar fails a bench only with `--strict`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Literal

import typer
from pydantic import BeforeValidator, computed_field
from rich.console import Console

from nightjar.loadtests.arms.statistics import Interval
from nightjar.loadtests.report.machine import RunFacts
from nightjar.policy.operator.canary.student import side_of
from nightjar.policy.wire.record import Record

Direction = Literal["at least", "at most", "above", "stated"]
Verdict = Literal["reached", "MISSED", "not shown", "stated", "no place", "no value", "not run"]
Judged = Annotated[Literal["value", "interval"], BeforeValidator(lambda told: "interval" if told == "upper end" else told)]
"""The release before held upper ends of intervals against limits: read as intervals for one release."""

StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit code 1 if a bar is missed. A bar without a value counts as missed if what ran was to give it one; one whose "
        "part did not run ('not run'), or that nothing which ran decides ('no place', with the reason), does not.",
    ),
]


class Bar(Record):
    """One bar's outcome. `at` is the cell that decided it, or, where there is no value, why no place that ran decides it; `cells`
    is how many were looked at, over `seeds` seeds each at least.

    judged     what is held against the limit: the interval, where it is one of 95 %; else the value alone, which is exact, or whose
               interval is of something else
    is_due     whether the run was to give a value
    """

    name: str
    meaning: str
    direction: Direction
    limit: float = 0.0
    value: float | None = None
    interval: Interval | None = None
    judged: Judged = "value"
    at: str = ""
    cells: int = 0
    seeds: int = 0
    is_due: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def want(self) -> str:
        """What is wanted, in a few characters."""
        sign = {"at least": ">=", "at most": "<=", "above": ">"}.get(self.direction)
        return f"{sign} {self.limit:g}" if sign else "stated"

    @property
    def passed(self) -> bool | None:
        """Whether it was reached; None where it was not measured, is only stated, or is not shown."""
        return {"reached": True, "MISSED": False}.get(self.verdict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """The outcome in a word or two. `no value`: it was to be measured and was not, without a reason."""
        if self.value is None:
            return "no place" if self.at else "no value" if self.is_due else "not run"
        if self.direction == "stated":
            return "stated"
        if self.judged == "interval" and self.interval is not None and self.interval.is_shown:
            return _verdict(self.interval.low, self.interval.high, self.direction, self.limit)
        return _verdict(self.value, self.value, self.direction, self.limit)

    @property
    def is_missed(self) -> bool:
        """Whether a strict run fails by it."""
        return self.verdict in {"MISSED", "no value"}


def _verdict(low: float, high: float, direction: Direction, limit: float) -> Verdict:
    """By an interval, or by one value at both its ends: an end at the limit keeps it, but for one that must lie above."""
    if low == high:
        keeps = {"at least": low >= limit, "at most": low <= limit, "above": low > limit}[direction]
        return "reached" if keeps else "MISSED"
    match side_of(low, high, limit):
        case "above":
            return "MISSED" if direction == "at most" else "reached"
        case "below":
            return "reached" if direction == "at most" else "MISSED"
    keeps = low == limit if direction == "at least" else high == limit if direction == "at most" else False
    return "reached" if keeps else "not shown"


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
        unshown = sum(bar.verdict == "not shown" for bar in bars)
        told = f", {unshown} not shown" if unshown else ""
        lines, style = [f"no bar was missed: {reached} reached{told}, {unmeasured} without a value"], "bold"
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
