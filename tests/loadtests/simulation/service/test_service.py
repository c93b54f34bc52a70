"""The whole simulated service, with real simulated engines: sameness, conservation, a control plane that fails, the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nightjar.loadtests.load.regimes import parse_regime
from nightjar.loadtests.simulation.profiles import Mechanics, read_profile
from nightjar.loadtests.simulation.service.control_plane import Network
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.lies import Lie
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, ReplicaJoins, ReplicaLeaves, ReplicaLies, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.settings import Local

DORMANT = read_profile("qwen-7b-0.5b-rtx4090")
IN_SYNC = read_profile("llama-8b-eagle")
CHAT = Dataset("chat", Lognormal(150, 0.5, 10, 400), Lognormal(120, 0.5, 10, 400))
AUTO = parse_operator_settings({"mode": "auto"})
FLEET = PlannerChoice("fleet", operator=AUTO)
OFF = PlannerChoice("fleet", operator=parse_operator_settings({"mode": "off"}))
FLAKY = Network(delay_s=0.2, delay_sigma=1.0, loss=0.1, duplication=0.1, exchange_timeout_s=3.0, on_the_wire=True)


def scenario(load: str, **changes: Any) -> Scenario:
    made = Scenario(
        profile=IN_SYNC, workload=Workload(parse_regime(load), dataset=CHAT), planner=FLEET, duration_s=20.0, replicas=2
    )
    return replace(made, **changes)


@pytest.mark.parametrize("load", ["open:20@6", "closed:20@12u"])
def test_the_same_scenario_gives_the_same_bytes(load: str) -> None:
    """SIM-5."""
    made = scenario(load, profile=DORMANT, network=FLAKY, series=True, track_regret=True)
    assert simulate(made).to_bytes() == simulate(made).to_bytes()


def test_every_token_of_every_answer_was_generated_and_none_besides() -> None:
    """SIM-1, SIM-2: the regime ends before the run, so every request is answered."""
    made = scenario("open:10@8,rest:20@0", duration_s=30.0)
    result = simulate(made)
    asked = list(made.workload.open_demands(made.seed))
    assert (result.answered, result.unfinished) == (len(asked), 0)
    assert result.totals.tokens == sum(demand.output_tokens for demand in asked)


def test_requests_due_before_they_are_asked_are_nobodys() -> None:
    made = scenario("open:10@8,rest:20@0", duration_s=30.0, warm_up_s=6.0, asked_from_s=5.0)
    asked = [demand for demand in made.workload.open_demands(made.seed) if demand.due_s >= 5.0]
    before = [demand for demand in asked if demand.due_s < 6.0]
    assert before
    assert simulate(replace(made, warm_up_s=5.0)).answered == len(asked)
    assert simulate(replace(made, starts_empty=True)).answered == len(asked) - len(before)
    with pytest.raises(ValueError, match="allowed are 0 to warm_up_s 6"):
        replace(made, asked_from_s=7.0)


def test_planners_that_know_nothing_of_the_fleet_run_in_every_engine() -> None:
    oracle, nightjar = (
        simulate(scenario("closed:20@16u", planner=PlannerChoice(name, local=Local(planner=name)), track_regret=True))
        for name in ("oracle", "nightjar")
    )
    assert oracle.totals.regret_tokens == pytest.approx(0.0, abs=1e-3 * oracle.totals.best_tokens)
    assert nightjar.totals.regret_tokens > 0
    with pytest.raises(ValueError, match="planner nobody"):
        simulate(scenario("closed:20@16u", planner=PlannerChoice("nobody", local=Local(planner="nobody"))))


def test_a_control_plane_that_fails_costs_next_to_nothing() -> None:
    """INV-4."""
    made = scenario("closed:40@24u", duration_s=40.0, warm_up_s=20.0, replicas=3)
    perfect = simulate(made)
    failing = simulate(replace(made, network=replace(FLAKY, deaths_s=(22.0, 30.0))))
    assert failing.incarnation == 3
    assert failing.tokens_per_s > 0.95 * perfect.tokens_per_s


@pytest.mark.parametrize("network", [Network(), replace(FLAKY, deaths_s=(21.0,), down_s=1.0)])
def test_restarts_by_lease_stay_within_the_budget(network: Network) -> None:
    """INV-6: all load falls at once on replicas whose drafters slept."""
    made = scenario(
        "full:20@480u,few:30@24u", profile=DORMANT, replicas=12, router="sticky", duration_s=40.0, network=network, seed=3
    )
    result = simulate(made)
    assert result.budget_violations == 0
    assert result.max_leases_in_flight <= 2


def test_a_newcomer_takes_the_groups_plan_and_a_warm_group_starts_with_what_it_knew() -> None:
    """Three replicas are a quorum before and after: of two, each plans by itself once a third makes them wait for one another."""
    first = simulate(scenario("closed:20@16u", replicas=3))
    assert first.learned is not None
    warm = PlannerChoice("fleet", operator=AUTO, prior=first.learned)
    joined = scenario("closed:20@16u", replicas=3, planner=warm, events=(ReplicaJoins(10.0),), track_regret=True)
    early = simulate(replace(joined, duration_s=12.0))
    assert early.replicas[3].joined_s == 10.0
    assert early.replicas[3].plan is not None
    assert {replica.plan for replica in early.replicas} == {early.replicas[3].plan}
    result = simulate(joined)
    assert result.totals.regret_tokens < 0.05 * result.totals.best_tokens


@pytest.mark.heavy
def test_what_a_liar_says_changes_nothing_where_it_is_refused() -> None:
    """INV-10, on a small fleet; `nightjar simulate` shows what lies do that are not refused, on sixteen replicas."""
    made = scenario("closed:30@64u", replicas=4, duration_s=30.0, router="sticky")
    one, other = (simulate(replace(made, events=(ReplicaLies(5.0, 0, lie),))) for lie in ("nan", "negative"))
    assert one.refused_reports > 0
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("lie", ["nan", "negative", "times_ten", "stale"])
def test_a_policy_with_a_liar_decides_as_one_that_never_heard_it(lie: Lie) -> None:
    """INV-10: in the same run, so that nothing differs but its word."""
    made = scenario("closed:30@64u", replicas=6, duration_s=30.0, router="sticky", events=(ReplicaLies(0.0, 5, lie),))
    for replica in simulate(made).replicas[:5]:
        assert replica.plan is not None
        assert replica.plan == replica.plan_without_liar


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lie", ["nan", "times_ten", "tenth", "stale"])
def test_no_lie_costs_the_honest_ones_more_than_chance_does(lie: Lie, seed: int) -> None:
    """INV-10: of K that are equally good chance decides with a liar as without one, but what the honest ones make stays."""
    made = scenario("closed:30@64u", replicas=4, duration_s=30.0, router="sticky", seed=seed)
    honest, lied = simulate(made), simulate(replace(made, events=(ReplicaLies(5.0, 0, lie),)))
    mine, theirs = (sum(replica.totals.tokens for replica in result.replicas[1:]) for result in (lied, honest))
    assert mine > 0.98 * theirs


def test_stock_mechanics_pay_the_drafters_tax_and_never_restart() -> None:
    off = PlannerChoice("off", operator=parse_operator_settings({"mode": "auto", "planner": "off"}))
    made = scenario("closed:20@16u", profile=DORMANT, planner=off, warm_up_s=5.0)
    dormant, stock = simulate(made), simulate(replace(made, mechanics=Mechanics.STOCK))
    assert stock.tokens_per_s < dormant.tokens_per_s
    assert stock.totals.restarts == 0


def test_a_backlog_from_before_the_measured_time_is_nobodys_credit() -> None:
    """A flood before the measured time, little within it: tokens beyond what was asked for then are not goodput."""
    result = simulate(scenario("flood:10@120,calm:10@1", duration_s=20.0, warm_up_s=10.0, planner=OFF))
    assert result.totals.tokens > 2 * result.asked_tokens
    assert result.goodput == pytest.approx(result.asked_tokens / result.totals.busy_s)


def test_who_starts_empty_takes_no_backlog_into_the_measured_time() -> None:
    made = scenario("flood:10@120,calm:10@1", duration_s=20.0, warm_up_s=10.0, planner=OFF, starts_empty=True, series=True)
    result = simulate(made)
    assert result.totals.tokens <= result.asked_tokens
    assert result.answered + result.unfinished < 30
    assert max(second.waiting for second in result.seconds) == 0


def test_users_whose_requests_were_aborted_ask_anew_at_once() -> None:
    made = scenario("closed:20@16u", planner=OFF, replicas=3, warm_up_s=10.0, starts_empty=True, series=True)
    here = [second.decode_rows + second.waiting for second in simulate(made).seconds]
    assert max(here) == 16
    assert min(here) >= 16 - made.replicas  # an engine may have one in its prefill


def test_a_replica_that_drains_has_left_when_its_last_requests_are_aborted() -> None:
    made = scenario("closed:20@48u", replicas=3, warm_up_s=10.0, starts_empty=True, events=(ReplicaLeaves(9.99, 2),), series=True)
    result = simulate(made)
    assert result.replicas[2].totals.steps == 0
    assert {second.serving for second in result.seconds} == {2}


def test_closed_loop_users_ask_by_what_they_get_and_all_that_they_get_counts() -> None:
    result = simulate(scenario("closed:20@16u", planner=OFF))
    assert result.goodput == pytest.approx(result.totals.tokens / result.totals.busy_s)
