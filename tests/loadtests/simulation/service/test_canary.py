"""Canaries in simulated fleets, as the policy judges them: without a difference none goes back, one that is worse does."""

from __future__ import annotations

import random

import pytest

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, workload
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.control_plane import Network
from nightjar.loadtests.simulation.service.scenario import CanaryBegins, PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.operator.canary.order import CanaryOrder
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings

PROFILE = read_profile("cpu-smollm2")
NOMINAL = nominal_of(PROFILE)
SPEED = 4.0
"""Times the measured CPU's, so that a block holds more steps."""
REPLICAS = 6
BLOCK_S = 5.0
SEEDS = 20
SETTINGS: dict[str, object] = {"allowed_num_speculative_tokens": list(PROFILE.drafter.arms), "max_lease_ttl_s": 5.0}
"""A policy that begins anew grants restarts soon, without which a pinned K does not run."""
MOST_FALSE = 1
"""Of so many seeds without a difference that may be rolled back."""


def canary(
    mode: str,
    tried: str,
    rows: int,
    seed: int = 0,
    *,
    duration_s: float,
    block_s: float = 5.0,
    spread: float = 0.0,
    **others: object,
) -> Trial:
    """What became of a canary on a third of the replicas. Their cards differ by up to `spread`, as a share."""
    rng = random.Random(seed)
    regime = Regime((Phase("busy", duration_s, users=rows * REPLICAS),))
    order = CanaryOrder(mode=Mode.parse(tried), share=0.33, since_s=5.0, over=Mode.parse(mode), block_s=BLOCK_S)
    scenario = Scenario(
        profile=PROFILE,
        workload=workload(NOMINAL, regime),
        planner=PlannerChoice(
            "fleet",
            operator=parse_operator_settings(SETTINGS | {"mode": mode}),
        ),
        duration_s=duration_s,
        replicas=REPLICAS,
        seed=seed,
        speeds=tuple(SPEED * rng.uniform(1.0 - spread, 1.0 + spread) for _ in range(REPLICAS)),
        events=(CanaryBegins(5.0, order),),
        **others,  # type: ignore[arg-type]
    )
    found = simulate(scenario).canary
    assert found is not None
    return found


@pytest.mark.heavy
def test_off_against_off_is_rolled_back_in_at_most_one_of_twenty_seeds_though_cards_differ() -> None:
    """Seen: in none of 20, with cards that differ by 20 % and with cards that are alike. Each is looked at four times."""
    ends = [canary("off", "off", 8, seed, duration_s=147.0, spread=0.2) for seed in range(SEEDS)]
    assert sum(end.phase == "rolled back" for end in ends) <= MOST_FALSE
    assert {end.looks for end in ends if end.phase == "trial"} == {3}


def test_a_k_that_is_far_too_long_under_load_goes_back() -> None:
    end = canary("off", "pin=5", 16, duration_s=132.0)
    assert end.phase == "rolled back"
    assert end.last is not None
    assert end.last.high < 1.0


@pytest.mark.heavy
def test_speculation_at_a_low_load_is_better_and_stays() -> None:
    end = canary("off", "pin=1", 3, duration_s=132.0)
    assert (end.phase, len(end.members)) == ("better", 2)
    assert end.last is not None
    assert end.last.low > 1.0


@pytest.mark.parametrize("tried", ["off", "pin=5"])
def test_a_canary_outlives_the_policy_actor_over_a_network_that_loses_and_delays(tried: str) -> None:
    network = Network(delay_s=0.05, loss=0.05, duplication=0.05, exchange_timeout_s=2.0, deaths_s=(30.0, 60.0))
    end = canary("off", tried, 16, duration_s=162.0, network=network)
    assert end.phase == ("rolled back" if tried == "pin=5" else "trial")
