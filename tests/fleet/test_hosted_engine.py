"""Hosted engines without Ray: the simulator's replica, on the control channel of a real one."""

from __future__ import annotations

import pytest

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.lengths import SHAREGPT
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import local_settings, simulate
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, IssuedSettings, Local, SettingsVersion
from tests.fleet.courses import between
from tests.fleet.hosted_engine import HostedEngine, Part, ScenarioClock

PROFILE = read_profile("qwen-7b-0.5b-rtx4090")
PLAN = Local(planner="vllm-table", options={"num_speculative_tokens_per_batch_size": "1-8=3,9-256=0"})
REPLICAS = 3
SECONDS = 20


@pytest.fixture
def scenario() -> Scenario:
    """Three replicas whose load rises and falls across the edge of a table that each engine follows by itself."""
    regime = Regime(
        (
            Phase("idle", 2.0, requests_per_s=0.0),
            Phase("low", 6.0, users=4 * REPLICAS),
            Phase("high", 6.0, users=14 * REPLICAS),
            Phase("fallen", 6.0, users=5 * REPLICAS),
        )
    )
    return Scenario(
        profile=PROFILE,
        workload=Workload(regime, SHAREGPT, tuple(kind.share for kind in PROFILE.acceptance_classes)),
        planner=PlannerChoice("table", local=PLAN),
        duration_s=SECONDS,
        replicas=REPLICAS,
        seed=5,
        router="sticky",
        series=True,
        track_regret=True,
    )


def hosted(scenario: Scenario) -> list[HostedEngine]:
    return [HostedEngine(Part(f"replica-{number}", scenario, number), ScenarioClock()) for number in range(scenario.replicas)]


def exchange(engine: HostedEngine, **command: IssuedSettings | SettingsVersion | Mode) -> EngineSnapshot:
    return EngineSnapshot.from_wire(engine.control(EngineCommand(**command).to_wire()))


def test_hosted_engines_do_to_the_token_what_the_simulator_does_with_the_same_scenario(scenario: Scenario) -> None:
    engines = hosted(scenario)
    for engine in engines:
        assert exchange(engine, issued=local_settings(PLAN, PROFILE.drafter.arms)).refused == ""
    for tenths in range(10 * SECONDS + 1):  # asked as often as an agent asks
        for engine in engines:
            engine.run_until(tenths / 10)
    courses = [engine.course() for engine in engines]
    simulated = simulate(scenario)
    assert sum(restarts.totals[-1].restarts for restarts in courses) > 0
    for second in simulated.seconds:
        at_s = round(second.at_s)
        assert between(courses, at_s - 1, at_s).tokens == second.totals.tokens
        assert between(courses, at_s - 1, at_s).regret_tokens == pytest.approx(second.totals.regret_tokens)
    assert [course.totals[-1] for course in courses] == [replica.totals for replica in simulated.replicas]


def test_settings_come_into_force_once_are_confirmed_and_older_ones_are_refused(scenario: Scenario) -> None:
    (engine, *_) = hosted(scenario)
    settings = local_settings(PLAN, PROFILE.drafter.arms)
    newer = settings.model_copy(update={"version": SettingsVersion(incarnation=2, sequence=1)})
    assert exchange(engine, issued=newer).settings_version == newer.version
    assert exchange(engine, confirmed=newer.version).refused == ""
    assert "older" in exchange(engine, issued=settings).refused
    assert exchange(engine).settings_version == newer.version
    assert engine.course().adopted == (newer,)


def test_what_a_simulated_engine_does_not_have_is_refused_and_nothing_of_the_command_applies(scenario: Scenario) -> None:
    (engine, *_) = hosted(scenario)
    answer = exchange(engine, issued=local_settings(PLAN, PROFILE.drafter.arms), local_mode=Mode.parse("off"))
    assert "kill switch" in answer.refused
    assert answer.settings_version is None
    assert EngineSnapshot.from_wire(engine.control(b"nonsense")).refused


def test_scenario_that_has_not_begun_or_has_ended_moves_no_engine(scenario: Scenario) -> None:
    clock = ScenarioClock()
    engine = HostedEngine(Part("replica-0", scenario, 0), clock)
    assert engine.course().totals == ()
    clock.begin(0.0)
    clock.end(5.0)
    assert len(engine.course().totals) == 5
    assert engine.course().totals[-1].tokens > 0
    assert engine.course().state is DrafterState.ACTIVE
