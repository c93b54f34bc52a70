"""Scenarios from beginning to end, around an engine without chance: order, conservation, sameness, events, measures."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.load.regimes import Regime, parse_regime
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.service.autoscaler import Autoscale
from nightjar.loadtests.simulation.service.control_plane import Network
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.lies import LIES, Lie
from nightjar.loadtests.simulation.service.results import RunResult
from nightjar.loadtests.simulation.service.scenario import (
    AcceptanceScaled,
    PlannerChoice,
    ReplicaJoins,
    ReplicaLeaves,
    ReplicaLies,
    Scenario,
    SpeedChanged,
    UsersChanged,
)
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.wire.operator import parse_operator_settings

from .fake_engine import PROFILE, STEP_S, FakeEngine, build

SHORT = Dataset("short", Lognormal(50, 0.3, 1, 200), Lognormal(40, 0.6, 1, 200))
FIXED_3 = parse_operator_settings({"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3})
FIXED = PlannerChoice("fixed 3", operator=FIXED_3)
OFF = PlannerChoice("off", operator=parse_operator_settings({"mode": "auto", "planner": "off"}))
FLEET = PlannerChoice("fleet", operator=parse_operator_settings({"mode": "auto"}))


def scenario(load: str = "steady:30@4", **changes: Any) -> Scenario:
    made = Scenario(
        profile=PROFILE, workload=Workload(parse_regime(load), dataset=SHORT), planner=FIXED, duration_s=30.0, replicas=2
    )
    return replace(made, **changes)


class Engines:
    """Builds engines and remembers them, and every request that went in."""

    def __init__(self) -> None:
        self.built: list[FakeEngine] = []
        self.asked: dict[int, SimulatedRequest] = {}
        self.order: list[float] = []

    def __call__(self, number: int, speed: float) -> FakeEngine:
        engine = build(number, speed)
        submit, step = engine.submit, engine.step

        def noting_submit(request: SimulatedRequest) -> None:
            assert request.number not in self.asked
            self.asked[request.number] = request
            submit(request)

        def noting_step() -> Sequence[SimulatedRequest]:
            self.order.append(engine.now_s)
            return step()

        engine.submit, engine.step = noting_submit, noting_step  # type: ignore[method-assign]
        self.built.append(engine)
        return engine


def run(made: Scenario) -> tuple[RunResult, Engines]:
    engines = Engines()
    return simulate(made, engines), engines


def shape(requests: dict[int, SimulatedRequest]) -> dict[int, tuple[int, int]]:
    return {number: (request.prompt_tokens, request.output_tokens) for number, request in requests.items()}


@settings(max_examples=15)
@given(
    st.sampled_from(["round_robin", "least_loaded", "two_choices", "sticky"]),
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from(["open:12@6", "closed:12@7u", "both:6@9u,open:6@20"]),
)
def test_every_request_is_answered_once_or_still_there_and_steps_run_in_order_of_time(
    router: str, replicas: int, seed: int, load: str
) -> None:
    """SIM-1, SIM-4."""
    result, engines = run(scenario(load, router=router, replicas=replicas, seed=seed, duration_s=12.0))
    held = sum(len(engine.running) + len(engine.waiting) for engine in engines.built)
    assert result.answered + result.unfinished == len(engines.asked)
    assert result.unfinished == held
    assert result.totals.tokens == sum(engine.totals.tokens for engine in engines.built)
    assert engines.order == sorted(engines.order)


def test_the_same_scenario_gives_the_same_bytes_and_another_seed_others() -> None:
    """SIM-5."""
    made = scenario("mixed:15@5,users:15@9u", planner=FLEET, series=True)
    again = pickle.loads(pickle.dumps(made))
    assert simulate(made, build).to_bytes() == simulate(again, build).to_bytes()
    assert simulate(made, build).to_bytes() != simulate(replace(made, seed=1), build).to_bytes()


def test_what_is_asked_does_not_depend_on_who_decides() -> None:
    """SIM-7."""
    open_loop, users = "open:20@5", "closed:20@6u"
    off, fixed = (run(scenario(open_loop, planner=planner))[1].asked for planner in (OFF, FIXED))
    assert shape(off) == shape(fixed)
    assert [request.arrival_s for request in off.values()] == [request.arrival_s for request in fixed.values()]
    few, many = (shape(run(scenario(users, planner=planner))[1].asked) for planner in (OFF, FIXED))
    assert len(few) < len(many)
    assert all(many[number] == request for number, request in few.items())


def test_settings_reach_the_engines_and_change_what_they_do() -> None:
    result, engines = run(scenario(warm_up_s=5.0))
    assert result.totals.mean_num_speculative_tokens == 3
    assert all(engine.adopted for engine in engines.built)
    assert [replica.plan is not None and set(replica.plan) for replica in result.replicas] == [{3}, {3}]
    assert run(scenario(planner=OFF))[0].totals.off_share == 1.0


def test_latencies_are_those_of_the_requests_and_throughput_that_of_the_tokens() -> None:
    one_token = Dataset("fixed", Lognormal(10, 0), Lognormal(21, 0))
    workload = Workload(parse_regime("even:30@=2"), dataset=one_token)
    result, _ = run(scenario(planner=OFF, workload=workload, replicas=1, warm_up_s=10.0))
    assert result.answered == 40
    assert result.ttft_s.p50 == pytest.approx(STEP_S)
    assert result.tpot_s.mean == pytest.approx(STEP_S)
    assert result.e2e_s.p99 == pytest.approx(21 * STEP_S)
    assert result.tokens_per_s == pytest.approx(2 * 21, rel=0.02)
    assert result.totals.goodput == pytest.approx(1 / STEP_S)


def test_users_hold_the_concurrency_and_change_when_told() -> None:
    result, engines = run(
        scenario("users:30@12u", replicas=3, router="sticky", series=True, events=(UsersChanged(15.0, 3),), planner=OFF)
    )
    rows = {second.at_s: second.decode_rows for second in result.seconds}
    assert rows[10.0] == 12
    assert rows[25.0] == 3
    assert len(engines.built[0].running) == 1


def test_the_series_adds_up_to_the_totals() -> None:
    result, _ = run(scenario(warm_up_s=10.0, series=True))
    assert [second.at_s for second in result.seconds] == [10.0 + second for second in range(1, 20)]
    assert sum(second.totals.tokens for second in result.seconds) <= result.totals.tokens
    assert sum(second.totals.tokens for second in result.seconds) == pytest.approx(result.totals.tokens, rel=0.2)


def test_replicas_join_leave_and_change_speed() -> None:
    events = (ReplicaJoins(5.0, speed=2.0), ReplicaLeaves(10.0, 0), SpeedChanged(20.0, 1, 0.5))
    result, engines = run(scenario("steady:30@8", events=events, series=True))
    first, second, newcomer = engines.built
    assert newcomer.speed == 2.0
    assert second.speed == 0.5
    assert first.now_s < 12.0
    assert not first.has_work
    assert [replica.joined_s for replica in result.replicas] == [0.0, 0.0, 5.0]
    assert {s.at_s: s.serving for s in result.seconds}[29.0] == 2
    assert result.replicas[2].totals.tokens > 0


def test_acceptance_changes_for_all_and_for_those_who_join_later() -> None:
    _, engines = run(scenario(events=(AcceptanceScaled(5.0, 0.5), ReplicaJoins(8.0))))
    assert [engine.acceptance for engine in engines.built] == [0.5, 0.5, 0.5]


def test_the_autoscaler_adds_replicas_under_load_and_takes_them_back() -> None:
    rules = Autoscale(1, 4, 4.0, upscale_delay_s=5, downscale_delay_s=10, start_up_s=5, look_period_s=1)
    made = scenario("high:40@32u,low:60@1u", replicas=1, planner=OFF, autoscale=rules, duration_s=100.0, series=True)
    result, engines = run(made)
    serving = {second.at_s: second.serving for second in result.seconds}
    assert serving[4.0] == 1
    assert serving[30.0] == 4
    assert serving[99.0] == 1
    assert result.answered + result.unfinished == len(engines.asked)


@pytest.mark.heavy
@pytest.mark.parametrize("lie", LIES)
def test_a_liars_reports_neither_stop_the_service_nor_the_policy(lie: Lie) -> None:
    honest, _ = run(scenario("steady:30@8", replicas=4, planner=FLEET))
    result, _ = run(scenario("steady:30@8", replicas=4, planner=FLEET, events=(ReplicaLies(2.0, 0, lie),)))
    assert result.answered + result.unfinished == honest.answered + honest.unfinished
    if lie in {"nan", "negative", "times_ten"}:
        assert result.refused_reports > honest.refused_reports


def test_a_network_that_loses_delays_doubles_and_reorders_still_steers_and_the_fence_holds() -> None:
    """INV-4, INV-5: also when the actor dies twice."""
    network = Network(
        delay_s=0.3, delay_sigma=1.5, loss=0.1, duplication=0.2, exchange_timeout_s=2.0, on_the_wire=True, deaths_s=(10.0, 20.0)
    )
    made = scenario("steady:60@6", planner=FLEET, network=network, duration_s=60.0, replicas=4)
    result, engines = run(made)
    assert result.incarnation == 3
    assert result.unfinished < 12
    for engine in engines.built:
        versions = [(adopted.version.incarnation, adopted.version.sequence) for adopted in engine.adopted]
        assert versions == sorted(versions)
        assert versions[-1][0] == 3
    assert simulate(made, build).to_bytes() == result.to_bytes()


def test_a_perfect_network_and_the_wire_give_the_same_run() -> None:
    """SIM-8."""
    made = scenario(planner=FLEET)
    assert simulate(made, build).to_bytes() == simulate(replace(made, network=Network(on_the_wire=True)), build).to_bytes()


def test_engines_run_on_while_there_is_no_policy() -> None:
    network = Network(deaths_s=(3.0,), down_s=1e6)
    result, engines = run(scenario(network=network, warm_up_s=10.0))
    assert result.totals.mean_num_speculative_tokens == 3
    assert result.learned is None
    assert result.answered > 0
    assert len({id(adopted) for adopted in engines.built[0].adopted}) == 1


def test_settings_in_force_are_confirmed_again_and_again() -> None:
    soon_old = FIXED_3.model_copy(update={"settings_max_age_s": 5.0})
    result, _ = run(scenario(planner=PlannerChoice("fixed", operator=soon_old), warm_up_s=5.0))
    assert result.totals.off_share == 0.0


def test_a_scenario_that_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="warm_up_s 30"):
        scenario(warm_up_s=30.0)
    with pytest.raises(ValueError, match="at least 1 each"):
        scenario(replicas=0)
    with pytest.raises(ValueError, match="operator or local"):
        PlannerChoice("nobody")
    with pytest.raises(ValueError, match="no replica is in service"):
        run(scenario(events=(ReplicaLeaves(1.0, 0), ReplicaLeaves(1.0, 1))))


def test_a_regime_that_ends_early_leaves_the_service_idle() -> None:
    regime: Regime = parse_regime("short:5@4u")
    result, engines = run(scenario(workload=Workload(regime, dataset=SHORT), duration_s=60.0))
    assert result.unfinished == 0
    assert not any(engine.has_work for engine in engines.built)
    assert engines.built[0].adopted
