"""Rows made by hand, so that a bar can be worked out on paper."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nightjar.loadtests.report.machine import RunFacts
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.summary import SimulationSummary, summarise
from nightjar.loadtests.simulation.profiles import Mechanics
from tests.benchmarks.policy.suite import SUITE

FACTS = RunFacts(
    bench="policy", command="make bench-policy ARGS=--quick", commit="abc", began="2026-01-01T00:00:00+00:00", effort="quick",
    sections=("rivals",), machine={"processor": "some"}, load_at_begin="0 0 0", wall_seconds=1.0, has_ended=True,
)  # fmt: skip


def summary_of(rows: Sequence[RunRow], due: Collection[str] = ()) -> SimulationSummary:
    """As of a quick run that made these rows."""
    return summarise(rows, FACTS, "quick", {"bars": (0, 1)}, due, SUITE.bars)


def row(
    kind: str,
    who: str,
    place: str = "p/steady",
    seed: int = 0,
    *,
    variant: str = "",
    as_published: bool = False,
    replicas: int = 1,
    error: str = "",
    **found: float | tuple[float, ...],
) -> RunRow:
    """What is `found` is a measure, or a series where it is several numbers."""
    return RunRow(
        kind=kind,
        place=place,
        profile=place.split("/")[0],
        load=place.split("/")[1],
        planner=who,
        mechanics=Mechanics.STOCK if as_published else Mechanics.DORMANT,
        as_published=as_published,
        variant=variant,
        replicas=replicas,
        seed=seed,
        measures={name: value for name, value in found.items() if not isinstance(value, tuple)},
        series={name: values for name, values in found.items() if isinstance(values, tuple)},
        error=error,
    )
