"""Rows made by hand, so that a bar can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence

from nightjar.loadtests.simulation.evidence.rows import RunRow


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
        mechanics="stock" if as_published else "dormant",
        as_published=as_published,
        variant=variant,
        replicas=replicas,
        seed=seed,
        measures=measures,
        series=series,
        error=error,
    )
