"""`summary.json` of a simulated run: what was run, every bar, and where we lose."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

import numpy as np
from pydantic import Field

from nightjar.loadtests.simulation.evidence.bar_list import compute_bars, losses
from nightjar.loadtests.simulation.evidence.bars import Bar, Found
from nightjar.loadtests.simulation.evidence.rows import RunRow, failures
from nightjar.policy.records import Record

US: Final = 1e6


class SimulationSummary(Record):
    """Everything that a run claims. `bars` is by name; `core_s` is the processor time of all runs, `took_s` that by the clock."""

    size: str
    experiments: tuple[str, ...]
    profiles: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    bars: Mapping[str, Bar]
    losses: tuple[Found, ...] = ()
    runs: int
    failed: int
    engine_steps: int
    core_s: float
    took_s: float = 0.0
    versions: Mapping[str, str] = Field(default_factory=dict)

    @property
    def missed(self) -> list[Bar]:
        """Bars that were measured and not reached."""
        return [bar for bar in self.bars.values() if bar.passed is False]

    @property
    def headline(self) -> str:
        """One line: how many bars were reached, and which were not."""
        judged = [bar for bar in self.bars.values() if bar.passed is not None]
        missed = ", ".join(f"{bar.name} {bar.value:.4g} (wanted {bar.want})" for bar in self.missed)
        unmeasured = Counter(bar.verdict for bar in self.bars.values() if bar.value is None)
        parts = [f"{len(judged) - len(self.missed)} of {len(judged)} bars reached"]
        if missed:
            parts.append(f"missed: {missed}")
        parts += [f"{count} {verdict}" for verdict, count in unmeasured.items()]
        if self.failed:
            parts.append(f"{self.failed} of {self.runs} runs FAILED")
        return "; ".join(parts) + "."

    @property
    def facts(self) -> str:
        """What was run, in one line."""
        seeds = ", ".join(f"{name} {span_of(values)}" for name, values in self.seeds.items())
        step_us = self.core_s / max(self.engine_steps, 1) * US
        return (
            f"{self.runs} runs ({self.size}), profiles {', '.join(self.profiles)}; seeds: {seeds}; "
            f"{self.engine_steps:,} engine steps in {self.core_s:.0f} core-seconds ({step_us:.0f} microseconds per step); "
            + ", ".join(f"{name} {number}" for name, number in self.versions.items())
        )


def summarise(
    rows: Sequence[RunRow], size: str, experiments: Sequence[str], seeds: Mapping[str, tuple[int, ...]], took_s: float
) -> SimulationSummary:
    """The summary of these rows."""
    return SimulationSummary(
        size=size,
        experiments=tuple(experiments),
        profiles=tuple(dict.fromkeys(row.profile for row in rows)),
        seeds=seeds,
        bars={bar.name: bar for bar in compute_bars(rows)},
        losses=tuple(losses(rows)),
        runs=len(rows),
        failed=len(failures(rows)),
        engine_steps=sum(row.steps for row in rows),
        core_s=round(sum(row.core_s for row in rows), 1),
        took_s=round(took_s, 1),
        versions={"nightjar": version("nightjar-serve"), "Python": platform.python_version(), "numpy": np.__version__},
    )


def span_of(seeds: Sequence[int]) -> str:
    """`0-9`, or the numbers where they are not consecutive.

    >>> span_of((0, 1, 2)), span_of((1000, 7))
    ('0-2', '1000, 7')
    """
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
