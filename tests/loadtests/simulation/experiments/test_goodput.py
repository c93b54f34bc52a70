"""Goodput in virtual time: which simulated requests keep a target, and up to which load enough of them do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nightjar.loadtests.load.goodput import Goodput, GoodputTarget
from nightjar.loadtests.load.regimes import parse_regime
from nightjar.loadtests.simulation.campaign.campaign import Campaign
from nightjar.loadtests.simulation.campaign.efforts import QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.campaign.measures import Simulate, under_target
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.evidence.goodput_table import KIND, goodput_grid, highest_kept, points
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.goodput import COARSE_PERCENT, UNDER_TARGET
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.measures import timed
from nightjar.loadtests.simulation.service.scenario import PlannerChoice, Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.service.workload import Workload
from nightjar.policy.wire.operator import parse_operator_settings
from tests.benchmarks.policy.suite import SUITE
from tests.loadtests.simulation.evidence import run_rows

PROFILE = read_profile("qwen-7b-0.5b-rtx4090")
OFF = PlannerChoice("fleet", operator=parse_operator_settings({"mode": "off"}))
TARGET = GoodputTarget(ttft_ms=500, tpot_ms=50)


def goodput(load: str, target: GoodputTarget, duration_s: float) -> Goodput:
    made = Scenario(profile=PROFILE, workload=Workload(parse_regime(load)), planner=OFF, duration_s=duration_s, goodput=target)
    found = simulate(made).under_target
    assert found is not None
    return found


def test_every_answered_request_keeps_a_target_without_bite_and_none_one_below_a_step() -> None:
    asked = len(list(Workload(parse_regime("open:20@2,rest:60@0")).open_demands(0)))
    loose = goodput("open:20@2,rest:60@0", GoodputTarget(ttft_ms=1e6, tpot_ms=1e6), 80.0)
    assert (loose.requests, loose.kept) == (asked, asked)
    tight = goodput("open:20@2,rest:60@0", GoodputTarget(ttft_ms=0.01), 80.0)
    assert (tight.requests, tight.kept, tight.tokens_per_s) == (asked, 0, 0.0)


def test_an_overloaded_engine_loses_those_that_wait_though_they_are_never_answered() -> None:
    found = goodput("open:30@40", GoodputTarget(ttft_ms=1000), 30.0)
    assert found.requests > 800
    assert found.share is not None
    assert found.share < 0.6


def test_without_a_target_nothing_is_counted_and_the_run_is_the_same() -> None:
    made = Scenario(profile=PROFILE, workload=Workload(parse_regime("open:20@4")), planner=OFF, duration_s=20.0)
    assert simulate(made).under_target is None
    assert replace(simulate(replace(made, goodput=TARGET)), under_target=None).to_bytes() == simulate(made).to_bytes()


@pytest.mark.parametrize(
    ("first_token_s", "end_s", "kept"),
    [(None, 10.4, True), (None, 10.6, False), (10.3, 10.8, True), (10.3, 15.4, False), (10.6, 10.7, False)],
    ids=["may still begin in time", "began too late", "may still be fast", "too slow already", "its first token was late"],
)
def test_a_request_in_flight_at_the_end_counts_once_it_can_no_longer_keep_the_target(
    first_token_s: float | None, end_s: float, kept: bool
) -> None:
    request = SimulatedRequest(0, 10.0, 100, 101, 0, first_token_s=first_token_s)
    assert TARGET.is_kept_by(timed(request, end_s)) is kept


def row(percent: int, share: float, planner: str = "off", seed: int = 0) -> RunRow:
    return run_rows.row(
        KIND, planner, f"{PROFILE.name}/poisson {percent}%", seed, variant=str(TARGET), offered_requests_per_s=percent / 10,
        within_target_share=share, within_target_tokens_per_s=5.0 * percent,
    )  # fmt: skip


def test_the_highest_load_is_the_last_up_to_which_the_mean_of_all_seeds_was_kept() -> None:
    rows = [row(60, 1.0), row(20, 1.0), row(40, 0.97), row(40, 0.93, seed=1), row(80, 0.5), row(100, 0.99), row(20, 0.9, "fleet")]
    best = highest_kept(points(rows, PROFILE.name, "off"))
    assert best is not None
    assert (best.load, best.offered_per_s, best.kept_share) == ("poisson 60%", 6.0, 1.0)
    assert highest_kept(points(rows, PROFILE.name, "fleet")) is None
    table = goodput_grid(rows)
    assert "within ttft:500 tpot:50" in table.title
    assert table.rows == (
        (PROFILE.name, "off", "poisson 60%", "6", "100%", "300", "8", "50%"),
        (PROFILE.name, "fleet", "-", "-", "-", "-", "2", "90%"),
    )


def choice(**changes: object) -> Choice:
    return replace(Choice((PROFILE,), (), replace(QUICK, rivals=range(1)), planners=frozenset({"off"}), goodput=TARGET), **changes)  # type: ignore[arg-type]


def loads(cells: list[Cell]) -> list[str]:
    return [cell.load for cell in cells]


def test_the_second_wave_looks_between_the_last_load_that_was_kept_and_the_first_that_was_not() -> None:
    coarse, fine = UNDER_TARGET.waves
    assert loads(coarse(choice(), ())) == [f"poisson {percent}%" for percent in COARSE_PERCENT]
    between = ["poisson 45%", "poisson 50%", "poisson 55%"]
    assert loads(fine(choice(), [row(20, 1.0), row(40, 0.99), row(60, 0.8)])) == between
    assert loads(fine(choice(), [row(20, 0.5)])) == ["poisson 5%", "poisson 10%", "poisson 15%"]
    assert loads(fine(choice(), [row(percent, 1.0) for percent in COARSE_PERCENT])) == []


def test_a_campaign_with_a_target_counts_it_in_every_run_and_says_what_was_offered() -> None:
    cells = Campaign((UNDER_TARGET,), choice(), 1, SUITE)._cells(UNDER_TARGET, 0, ())
    jobs = [cell.job for cell in cells if isinstance(cell.job, Simulate)]
    assert {job.scenario.goodput for job in jobs} == {TARGET}
    first = jobs[0].scenario
    outcome = under_target(first, simulate(first))
    assert outcome.measures["within_target_share"] > 0.5
    assert outcome.measures["offered_requests_per_s"] > 0
