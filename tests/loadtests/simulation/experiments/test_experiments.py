"""What the experiments plan: the same requests for all planners of a place, other seeds for picking, every profile and load."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from nightjar.loadtests.load.regimes import Regime, arrival_times
from nightjar.loadtests.simulation.campaign.campaign import Campaign
from nightjar.loadtests.simulation.campaign.contestants import Contestant, choose
from nightjar.loadtests.simulation.campaign.efforts import BENCH, QUICK
from nightjar.loadtests.simulation.campaign.experiment import Choice
from nightjar.loadtests.simulation.campaign.loads import LOADS
from nightjar.loadtests.simulation.campaign.measures import Simulate, settled
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, open_scenes, pattern_s, timing
from nightjar.loadtests.simulation.evidence.bar_list import PICK, compute_bars
from nightjar.loadtests.simulation.evidence.prefill_bars import PREFILL_PICK
from nightjar.loadtests.simulation.evidence.runner import Cell, run_cell
from nightjar.loadtests.simulation.experiments.ablation import PARTS, Part, Without
from nightjar.loadtests.simulation.planner_names import FLEET
from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, read_profile
from nightjar.loadtests.simulation.service.results import Second, Totals
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.loadtests.simulation.step_cost import step_cost
from nightjar.policy.wire.operator import OperatorSettings
from tests.benchmarks.policy.suite import SUITE

EXPERIMENTS = SUITE.experiments
CHOICE = Choice(tuple(map(read_profile, ("qwen-7b-0.5b-rtx4090", "llama-8b-eagle"))), tuple(LOADS), replace(QUICK, bars=range(1)))


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [cell for experiment in EXPERIMENTS.values() for wave in experiment.waves for cell in wave(CHOICE, ())]


def job(cell: Cell) -> Simulate:
    assert isinstance(cell.job, Simulate)
    return cell.job


@pytest.mark.heavy
def test_planners_of_one_place_and_seed_face_the_same_requests_in_what_is_measured(cells: list[Cell]) -> None:
    faced: dict[tuple[str, str, int], object] = {}
    for cell in cells:
        if cell.kind == "open_loop":
            asked = (job(cell).scenario.workload, job(cell).scenario.duration_s, job(cell).scenario.warm_up_s)
            assert faced.setdefault((cell.kind, cell.place, cell.seed), asked) == asked


def test_the_best_static_planner_is_picked_on_seeds_that_no_bar_uses(cells: list[Cell]) -> None:
    picking = {cell.seed for cell in cells if cell.kind in {PICK, PREFILL_PICK}}
    assert picking
    assert not picking & {cell.seed for cell in cells if cell.kind not in {PICK, PREFILL_PICK}}
    assert not set(BENCH.picks) & set(BENCH.bars)


def test_cells_with_the_same_names_are_the_same_run(cells: list[Cell]) -> None:
    known: dict[tuple[str, str, str, int], object] = {}
    for cell in cells:
        if isinstance(cell.job, Simulate):
            assert known.setdefault(cell.key, job(cell).scenario) == job(cell).scenario, cell.key


def test_every_profile_meets_every_load_for_as_long_as_its_run() -> None:
    scenes = open_scenes(replace(CHOICE, profiles=tuple(map(read_profile, PROFILE_NAMES))))
    assert {(scene.nominal.profile.name, scene.load) for scene in scenes} == {
        (name, load) for name in PROFILE_NAMES for load in LOADS
    }
    for scene in scenes:
        assert isinstance(scene.workload.load, Regime)
        assert scene.workload.load.duration_s >= timing(CHOICE.effort, scene, FLEET)["duration_s"] - 1e-6


@pytest.mark.heavy
def test_whole_patterns_are_measured_and_enough_of_them_for_sixty_requests_and_a_thousand_steps() -> None:
    for scene in open_scenes(replace(CHOICE, profiles=tuple(map(read_profile, PROFILE_NAMES)), effort=BENCH)):
        load, one_s = scene.workload.load, pattern_s(BENCH, scene.nominal)
        assert isinstance(load, Regime)
        patterns = scene.measured_s / one_s
        rows = scene.nominal.max_rows // 4
        steps_s = 1000 * scene.nominal.step_seconds(rows, scene.nominal.best_k(rows))
        per_s = fmean(sum(1 for _ in arrival_times(load, seed)) / load.duration_s for seed in range(20))
        assert patterns == round(patterns) >= 1
        assert scene.measured_s >= steps_s
        assert per_s * scene.measured_s > 0.9 * 60, scene.place
        fewer_s = scene.measured_s - one_s
        assert fewer_s < steps_s or per_s * fewer_s < 1.1 * 60, scene.place


def test_who_learns_nothing_meets_the_same_requests_in_what_is_measured_after_a_shorter_warm_up() -> None:
    choice = replace(CHOICE, profiles=(read_profile("cpu-smollm2"),), loads=("surge",), effort=replace(BENCH, bars=range(1)))
    runs = [cell for name in ("open-loop", "rivals") for wave in EXPERIMENTS[name].waves for cell in wave(choice, ())]
    mine = {run.planner: job(run).scenario for run in runs if run.kind == "open_loop"}
    assert {who for who, scenario in mine.items() if scenario.asked_from_s} == {"off", "fixed-3", "tensorrt-llm", "vllm-table"}
    assert {"fleet", "oracle", "nightjar", "turbospec", "banditspec", "sglang"} <= mine.keys()
    short, whole = mine["vllm-table"], replace(mine["vllm-table"], asked_from_s=0.0)
    assert simulate(short).asked_tokens == simulate(whole).asked_tokens
    assert simulate(short).steps_with_warm_up < simulate(whole).steps_with_warm_up


def test_rivals_run_on_all_seeds_of_the_bars_where_a_run_has_few_steps() -> None:
    profiles = tuple(map(read_profile, ("cpu-smollm2", "qwen-32b-0.5b-2xl20")))
    choice = replace(CHOICE, profiles=profiles, loads=("surge",), effort=BENCH)
    runs = [cell for wave in EXPERIMENTS["rivals"].waves for cell in wave(choice, ())]
    seeds = {
        name: {run.seed for run in runs if run.planner == "vllm-table" and run.profile == name and not run.as_published}
        for name in ("cpu-smollm2", "qwen-32b-0.5b-2xl20")
    }
    assert seeds == {"cpu-smollm2": set(BENCH.bars), "qwen-32b-0.5b-2xl20": set(BENCH.rivals)}


def test_other_texts_are_as_hard_for_everybody_and_a_table_that_was_tuned_for_them_may_be_the_best_static() -> None:
    choice = replace(CHOICE, loads=("other-texts", "surge"))
    runs = [cell for name in ("open-loop", "rivals") for wave in EXPERIMENTS[name].waves for cell in wave(choice, ())]
    assert {run.load for run in runs} == {"other-texts", "surge"}
    for run in runs:
        assert job(run).scenario.acceptance == (0.5 if run.load == "other-texts" else 1.0)
    assert {run.load for run in runs if run.planner == "retuned-table"} == {"other-texts"}
    nominal = nominal_of(read_profile("qwen-7b-0.5b-rtx4090"))
    tuned, retuned = (choose(Contestant(name), nominal, 0, {}, 0.5).local for name in ("table", "retuned-table"))
    assert tuned is not None
    assert retuned is not None
    assert tuned != retuned
    assert choose(Contestant("retuned-table"), nominal, 0, {}).local == tuned


def test_texts_change_for_everybody_at_the_same_seconds_and_one_turn_of_either_is_measured() -> None:
    choice = replace(CHOICE, effort=replace(QUICK, bars=range(1), warm_up_s=60.0, turn_s=120.0))
    runs = [cell for wave in EXPERIMENTS["changing-texts"].waves for cell in wave(choice, ())]
    assert {"fleet", "oracle", "nightjar", "turbospec", "vllm-table", "retuned-table", "off", "fixed-3"} <= {
        run.planner for run in runs
    }
    assert {run.load for run in runs} == {"changing-texts"}
    for run in runs:
        scenario = job(run).scenario
        assert (scenario.warm_up_s, scenario.duration_s, scenario.acceptance) == (60.0, 300.0, 1.0)
        assert scenario.events == (AcceptanceScaled(0.0, 0.5), AcceptanceScaled(60.0, 1.0), AcceptanceScaled(180.0, 0.5))


def test_in_the_workload_transition_a_fleet_that_learned_under_the_turns_meets_the_same_ones_in_what_is_measured(
    cells: list[Cell],
) -> None:
    measured: dict[str, list[object]] = {}
    before = set()
    for one in (cell for cell in cells if cell.kind == "transition" and cell.planner == FLEET and cell.seed == 0):
        scenario = job(one).scenario
        changes = [event for event in scenario.events if isinstance(event, AcceptanceScaled)]
        measured.setdefault(one.place, []).append([each for each in changes if each.at_s >= scenario.warm_up_s])
        before.add((one.variant, len({each.factor for each in changes if each.at_s < scenario.warm_up_s})))
    assert measured
    assert all(turns == again for turns, again in measured.values())
    assert before == {("", 1), ("learned under the turns", 2)}


def test_more_requests_decode_at_once_the_more_arrive() -> None:
    nominal = nominal_of(read_profile("qwen-7b-0.5b-rtx4090"))
    rows = [nominal.rows_at(share * nominal.capacity) for share in (0.01, 0.1, 0.5, 0.9, 2.0)]
    assert rows == sorted(rows)
    assert rows[-1] == nominal.max_rows
    assert nominal.best_k(1) > 0
    assert nominal.best_k(nominal.crossover_rows) == 0


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_whoever_restarts_at_will_recomputes_no_more_in_a_step_than_the_operator_allows_the_fleet(name: str) -> None:
    profile = read_profile(name)
    nominal = nominal_of(profile)
    rows, chunk = nominal.crossover_rows, nominal.catch_up_chunk_tokens
    cost = step_cost(profile)
    context_tokens = int(rows * nominal.context_per_row)
    longer_s = cost.seconds(rows, context_tokens, 0, 0, "dormant", chunk + rows) - nominal.step_seconds(rows, 0)
    fixed_s = cost.seconds(rows, context_tokens, 0, 0, "dormant", rows) - nominal.step_seconds(rows, 0)
    assert longer_s <= max(OperatorSettings().catch_up_slowdown * nominal.step_seconds(rows, 0), 2.5 * fixed_s)
    choice = replace(CHOICE, profiles=(profile,), loads=("surge",))
    runs = [cell for wave in EXPERIMENTS["open-loop"].waves for cell in wave(choice, ())]
    at_will = {job(run).scenario.catch_up_chunk_tokens for run in runs if job(run).scenario.planner.local is not None}
    assert at_will == {chunk}


def test_the_plan_names_every_experiment_with_its_runs() -> None:
    plan = Campaign(tuple(EXPERIMENTS.values()), replace(CHOICE, profiles=CHOICE.profiles[:1], loads=("surge",)), 2, SUITE).plan()
    assert [row[0] for row in plan.rows] == [*EXPERIMENTS, "all"]


def test_each_bar_is_due_to_one_experiment_and_a_whole_campaign_owes_all_of_them() -> None:
    named = [bar for experiment in EXPERIMENTS.values() for bar in experiment.bars]
    assert sorted(named) == sorted(bar.name for bar in compute_bars([], SUITE.bars))
    assert Campaign(tuple(EXPERIMENTS.values()), CHOICE, 1, SUITE).due_bars() == set(named)


@pytest.mark.parametrize(
    ("experiments", "changes", "due"),
    [
        (["storm"], {}, {"storm_floor", "storm_total"}),
        (["storm"], {"profiles": (read_profile("llama-8b-eagle"),)}, set()),
        (["storm"], {"planners": frozenset({"fleet"})}, set()),
        (["rivals"], {"loads": ("surge",)}, {"fleet_over_rival_min", "fleet_over_rival_geomean_min"}),
        (["rivals"], {"loads": ("other-texts",)}, {"fleet_over_rival_min", "other_texts_over_rival_geomean_min"}),
    ],
    ids=["all of it", "no drafter can be dormant", "not every planner", "without other texts", "other texts alone"],
)
def test_only_what_a_part_of_the_campaign_can_measure_is_due(
    experiments: list[str], changes: dict[str, Any], due: set[str]
) -> None:
    campaign = Campaign(tuple(EXPERIMENTS[name] for name in experiments), replace(CHOICE, **changes), 1, SUITE)
    assert campaign.due_bars() == due


def test_a_short_real_run_gives_measures_and_the_same_ones_again() -> None:
    choice = replace(
        CHOICE, profiles=(read_profile("cpu-smollm2"),), loads=("surge",), effort=replace(QUICK, learn_s=5.0, steady_s=5.0)
    )
    cell = EXPERIMENTS["regret"].waves[0](choice, ())[0]
    row, again = run_cell(cell), run_cell(cell)
    assert row.error == ""
    assert row.measures["tokens_per_s"] > 0
    assert row.model_copy(update={"core_s": again.core_s}) == again


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_planner_runs_without_each_part_that_the_ablation_switches_off(part: Part, cells: list[Cell]) -> None:
    run = next(cell for cell in cells if cell.kind == "ablation" and cell.variant == part.name)
    whole = run.job if isinstance(run.job, Simulate) else run.job.job if isinstance(run.job, Without) else None
    assert isinstance(whole, Simulate)
    short = Simulate(replace(whole.scenario, duration_s=4.0), whole.measure)
    row = run_cell(replace(run, job=Without(short, part.name) if part.stand_ins else short))
    assert row.error == ""


def seconds(shares: list[float]) -> list[Second]:
    return [
        Second(float(at), Totals(expected_tokens=100.0 * share, best_tokens=100.0), 1, 0, 0, 1) for at, share in enumerate(shares)
    ]


def test_learning_is_done_when_the_next_ten_seconds_and_all_the_rest_are_near_the_oracle() -> None:
    assert settled(seconds([0.5] * 3 + [1.0] * 20), 0.98) == 3
    assert settled(seconds([1.0] * 30), 0.98) == 0
    assert settled(seconds([1.0] * 12 + [0.5] * 20), 0.98) == 32
