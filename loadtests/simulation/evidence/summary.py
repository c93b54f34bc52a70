"""`summary.json` of a simulated run: what was run, every bar, and where we lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.evidence.bar_list import BARS, compute_bars, losses
from nightjar.loadtests.simulation.evidence.bars import BenchSummary, by_name
from nightjar.loadtests.simulation.evidence.cells import BarsOf, Found
from nightjar.loadtests.simulation.evidence.rows import RunRow, failures

US: Final = 1e6
NOT_JUDGED: Final = "A look at few seeds: no evidence, and nothing is judged; make bench-policy does that"


class SimulationSummary(BenchSummary):
    """Everything that a run claims. `size` names its effort; `core_s` is the processor time of all runs."""

    size: str
    profiles: tuple[str, ...]
    losses: tuple[Found, ...] = ()
    runs: int
    failed: int
    engine_steps: int
    core_s: float

    @property
    def headline(self) -> str:
        """One line: how many bars were reached, and which were not."""
        judged = [bar for bar in self.bars.values() if bar.verdict in {"reached", "MISSED", "not shown"}]
        missed = ", ".join(bar.name for bar in judged if bar.passed is False)
        unshown = ", ".join(bar.name for bar in judged if bar.passed is None)
        unmeasured = Counter(bar.verdict for bar in self.bars.values() if bar.value is None)
        parts = [f"{sum(bar.passed is True for bar in judged)} of {len(judged)} bars reached"]
        if missed:
            parts.append(f"missed: {missed}")
        if unshown:
            parts.append(f"not shown: {unshown}")
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
            + ", ".join(f"{name} {told}" for name, told in self.run.machine.items())
        )


def summarise(
    rows: Sequence[RunRow],
    run: RunFacts,
    size: str,
    seeds: Mapping[str, tuple[int, ...]],
    due: Collection[str],
    bars: Sequence[BarsOf] = BARS,
) -> SimulationSummary:
    """The summary of these rows. `due` names the bars that the run was to give a value."""
    return SimulationSummary(
        run=run,
        seeds=seeds,
        bars=by_name(bar.model_copy(update={"is_due": bar.name in due}) for bar in compute_bars(rows, bars)),
        size=size,
        profiles=tuple(dict.fromkeys(row.profile for row in rows)),
        losses=tuple(losses(rows)),
        runs=len(rows),
        failed=len(failures(rows)),
        engine_steps=sum(row.steps for row in rows),
        core_s=round(sum(row.core_s for row in rows), 1),
    )


def span_of(seeds: Sequence[int]) -> str:
    """`0-9`, or the numbers where they are not consecutive.

    >>> span_of((0, 1, 2)), span_of((1000, 7))
    ('0-2', '1000, 7')
    """
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
