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
    plan: Sequence[float] = (),
    tokens: Sequence[float] = (),
    true_tokens_per_s: Sequence[float] = (),
    plan_without_liar: Sequence[float] = (),
    true_tokens_per_s_without_liar: Sequence[float] = (),
    **measures: float,
) -> RunRow:
    every = {
        "plan": plan,
        "tokens": tokens,
        "true_tokens_per_s": true_tokens_per_s,
        "plan_without_liar": plan_without_liar,
        "true_tokens_per_s_without_liar": true_tokens_per_s_without_liar,
    }
    series = {name: tuple(values) for name, values in every.items() if values}
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
        measures=measures,
        series=series,
        error=error,
    )
