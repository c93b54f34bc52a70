"""Scenarios of groups of their own on the 7B profile: no request at first, then so many users in every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, workload
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.policy.wire.operator import parse_operator_settings

PROFILE: Final = read_profile("qwen-7b-0.5b-rtx4090")
NOMINAL: Final = nominal_of(PROFILE)
ROWS: Final = NOMINAL.crossover_rows // 3
"""Requests in every engine, so that one batch bucket is in use and speculation pays there."""
LONGEST_S: Final = 600.0
"""Virtual seconds that load lasts: longer than any test takes."""


def steady_group(
    tag: str,
    replicas: int,
    settings: Mapping[str, object],
    *,
    idle_s: float,
    rows: int = ROWS,
    seed: int = 0,
    track_regret: bool = False,
) -> Scenario:
    """A group by the name of its engines' version, planned by the fleet planner with these settings."""
    group = PROFILE.group.model_copy(update={"engine_version": f"{PROFILE.group.engine_version} {tag}"})
    regime = Regime((Phase("idle", idle_s, requests_per_s=0.0), Phase("busy", LONGEST_S, users=rows * replicas)))
    return Scenario(
        profile=PROFILE.model_copy(update={"group": group}),
        workload=workload(NOMINAL, regime),
        planner=PlannerChoice("fleet", operator=parse_operator_settings(dict(settings))),
        duration_s=regime.duration_s,
        replicas=replicas,
        seed=seed,
        router="sticky",
        series=True,
        track_regret=track_regret,
    )


def idle(like: Scenario) -> Scenario:
    """One more replica of the same group, without requests until it is given users."""
    regime = Regime((Phase("idle", LONGEST_S, requests_per_s=0.0),))
    return replace(like, workload=workload(NOMINAL, regime), replicas=1, seed=like.seed + 100)
