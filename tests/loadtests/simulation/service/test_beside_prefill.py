"""A simulated engine in nearly all of whose steps prompts are computed: each K is measured there.

Long prompts with answers of some 25 tokens, and always a prompt that waits (7B with a 0.5B draft). The first plan stops drafting,
and hardly a step without prefill comes in which another K could be measured. Virtual time, one seed.
"""

from __future__ import annotations

from typing import Final

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, workload
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.fleet import EngineFactory
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.wire.operator import parse_operator_settings

LENGTHS: Final = (0, 1, 2, 3, 4, 5)


def steps_by_k() -> dict[int, int]:
    """How many steps the engine ran at each K."""
    profile = read_profile("qwen-7b-0.5b-rtx4090")
    usual = min(4000, profile.limits.num_tokens // 8)
    prompt, output = Lognormal(usual, 0.4, usual // 2, 2 * usual), Lognormal(25, 0.5, 10, 75)
    nominal = nominal_of(profile, Dataset("long", prompt, output, 0.0, max_model_len=2 * usual + 75))
    settings = parse_operator_settings({"mode": "auto", "allowed_num_speculative_tokens": LENGTHS})
    scenario = Scenario(
        profile=nominal.profile,
        workload=workload(nominal, Regime((Phase("held", 800.0, users=24),))),
        planner=PlannerChoice("fleet", operator=settings),
        duration_s=800.0,
        warm_up_s=400.0,
        replicas=1,
        seed=1,
    )
    engines: list[SimulatedEngine] = []

    def kept(number: int, speed: float) -> SimulatedEngine:
        engines.append(EngineFactory(scenario).build(number, speed))
        return engines[-1]

    simulate(scenario, kept)
    return {total.num_speculative_tokens: total.steps for total in engines[0].report().snapshot.counters.totals}


def test_each_length_is_measured_where_hardly_a_step_is_without_prefill() -> None:
    steps = steps_by_k()
    assert set(steps) == set(LENGTHS)
    assert min(steps.values()) >= 8
