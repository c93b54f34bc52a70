"""A phase of the proof, its tasks, and what is found.

A task runs in a process of its own and gives plain data; the verdict on a phase is a pure function of what its tasks gave, and of
the correctness phase's plain answers, so a page can be made again from the files of an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec


class Verdict(StrEnum):
    """On a phase.

    PROVED  everything that it looks at holds
    MEASURED  it only measures, and has
    FAILED  something does not hold, or a task did not end
    LEFT_OUT  it does not apply here
    """

    PROVED = "proved"
    MEASURED = "measured"
    FAILED = "failed"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a phase. Without an engine of its own it starts those that it needs itself, or none."""

    phase: str
    name: str
    engine: EngineSpec | None = None
    in_one_process: bool = True
    """Whether scheduler and worker are in the task's process, so that it can step the engine."""

    @property
    def file_name(self) -> str:
        """Of its log and its outcome, without an ending."""
        return f"{self.phase}.{self.name}"


Outcomes = Mapping[str, Mapping[str, Any]]
"""What each task of the kit gave, by `file_name`; a task that failed gave `{"error": ...}`."""


@dataclass(slots=True)
class Table:
    """For the page."""

    headings: Sequence[str]
    rows: list[list[str]]


@dataclass(slots=True)
class Found:
    """A phase's verdict, in words and tables."""

    verdict: Verdict
    sentences: list[str] = field(default_factory=list)
    """What was seen; of a failed phase the first ones say what is wrong."""
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Phase:
    """Of the proof. `perform` runs in a task's process and `judge` where the page is made."""

    name: str
    title: str
    tasks: Callable[[Chosen], Sequence[Task]]
    perform: Callable[[Task, Chosen], dict[str, Any]]
    judge: Callable[[Outcomes, Chosen], Found]
    without_bench: bool = True
    """Whether it runs without --bench as well."""


def errors(phase: str, outcomes: Outcomes) -> list[str]:
    """A sentence for each task of a phase that failed."""
    return [
        f"{name.partition('.')[2]} did not end well: {outcome['error']}"
        for name, outcome in outcomes.items()
        if name.partition(".")[0] == phase and "error" in outcome
    ]


def of_phase(phase: str, outcomes: Outcomes) -> dict[str, Mapping[str, Any]]:
    """What the tasks of a phase gave that did not fail, by the task's name."""
    return {
        name.partition(".")[2]: outcome
        for name, outcome in outcomes.items()
        if name.partition(".")[0] == phase and "error" not in outcome
    }
