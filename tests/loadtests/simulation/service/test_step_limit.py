"""An operator's limit of a step on a simulated fleet: the longest K that keeps it is found and run, and off where none does.

Two engines of 16 requests each (7B with a 0.5B draft): a pure decode step takes 24 ms at K = 0, 46 at 2 and 51 at 3, and every
seventh or so carries a prompt and takes longer: one in a hundred 98 ms and more at K = 3. Virtual time, one seed.
"""

from __future__ import annotations

import pytest

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, workload
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.results import RunResult
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.wire.operator import parse_operator_settings


def ran(max_step_ms: float | None) -> RunResult:
    nominal = nominal_of(read_profile("qwen-7b-0.5b-rtx4090"))
    settings = {"mode": "auto", "allowed_num_speculative_tokens": nominal.profile.drafter.arms, "max_step_ms": max_step_ms}
    return simulate(
        Scenario(
            profile=nominal.profile,
            workload=workload(nominal, Regime((Phase("held", 120.0, users=32),))),
            planner=PlannerChoice("fleet", operator=parse_operator_settings(settings)),
            duration_s=120.0,
            warm_up_s=60.0,
            replicas=2,
            seed=1,
            router="sticky",
        )
    )


@pytest.mark.parametrize(("max_step_ms", "least_k", "most_k"), [(None, 2.5, 3.0), (115.0, 1.5, 2.5), (80.0, 0.0, 0.05)])
def test_the_longest_k_that_keeps_the_limit_is_found_and_run(max_step_ms: float | None, least_k: float, most_k: float) -> None:
    result = ran(max_step_ms)
    assert least_k <= result.totals.mean_num_speculative_tokens <= most_k
    assert result.itl_s.p99 <= (max_step_ms or 115.0) / 1e3


def test_the_time_between_outputs_is_a_steps_and_with_drafts_longer_than_a_tokens() -> None:
    result = ran(None)
    assert result.itl_s.p50 == pytest.approx(0.05, rel=0.1)
    assert result.tpot_s.mean < 0.7 * result.itl_s.mean
