"""Engine arguments: the user's own plus what steering needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.start.arguments import (
    ASYNC_SCHEDULER,
    CPU_WORKER,
    GPU_WORKER,
    SCHEDULER,
    V2_WORKER,
    EngineArguments,
    steered_engine_kwargs,
)
from nightjar.deployments.engine.start.dormancy import HEAD_ON_V1, SleepFacts
from nightjar.deployments.engine.start.graph_tiers import GraphPlan, capture_sizes
from nightjar.deployments.engine.start.hooks import NOTHING_MISSING, MissingHooks
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE, SWITCHED_OFF, EngineFacts
from nightjar.deployments.steering_level import level_at_start
from nightjar.policy.wire.report import Layer
from tests.deployments.engine.engine_facts import CPU, EAGLE, GPU, user_kwargs


def table(kwargs: dict[str, Any]) -> Any:
    return kwargs["speculative_config"]["num_speculative_tokens_per_batch_size"]


def told(arguments: EngineArguments) -> dict[str, Any]:
    """What scheduler and workers are told of the layers, beside the user's own table of lengths."""
    entry = arguments.kwargs.get("additional_config", {}).get("nightjar", {})
    return {name: value for name, value in entry.items() if name != "users_table"}


def test_cpu_engine_gets_scheduler_worker_and_its_own_constant_length() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), CPU)
    assert arguments.serving_plainly == ""
    assert arguments.kwargs["scheduler_cls"] == SCHEDULER
    assert arguments.kwargs["worker_cls"] == CPU_WORKER
    assert table(arguments.kwargs) == [[1, 8, 4]]


def test_on_runner_v1_a_gpu_engine_of_a_draft_model_keeps_its_length_and_says_what_never_ran_there() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, runner_is_users=True, runner_is_v1=True))
    assert arguments.kwargs["scheduler_cls"] == ASYNC_SCHEDULER
    assert arguments.kwargs["worker_cls"] == GPU_WORKER
    assert arguments.notice == "the sleeping drafter has never run on a GPU"
    assert table(arguments.kwargs) == [[1, 8, 4]]
    assert arguments.graph_tiers == ()


@pytest.mark.parametrize(
    ("wanted", "tiers", "rows"),
    [(None, (0, 1, 3, 4), [[1, 5, 4], [6, 6, 3], [7, 7, 1], [8, 8, 0]]), ([2], (0, 2, 4), [[1, 6, 4], [7, 7, 2], [8, 8, 0]])],
)
def test_where_each_k_needs_graphs_of_its_own_a_few_are_captured_at_sizes_that_all_of_them_divide(
    wanted: list[int] | None, tiers: tuple[int, ...], rows: list[list[int]]
) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), EAGLE, wanted_tiers=wanted)
    assert arguments.graph_tiers == tiers
    assert table(arguments.kwargs) == rows
    assert arguments.kwargs["compilation_config"] == {"cudagraph_capture_sizes": capture_sizes(8, tiers)}
    assert arguments.graph_plan == GraphPlan(tuple(capture_sizes(8, tiers)), tiers, 8)


@pytest.mark.parametrize(("max_num_seqs", "tiers"), [(1, (4,)), (2, (0, 4)), (3, (0, 1, 4)), (4, (0, 1, 3, 4))])
def test_an_engine_with_fewer_batch_sizes_than_tiers_claims_only_those_that_its_table_names(
    max_num_seqs: int, tiers: tuple[int, ...]
) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(EAGLE, max_num_seqs=max_num_seqs))
    assert arguments.graph_tiers == tiers == tuple(sorted({length for _, _, length in table(arguments.kwargs)}))


def test_where_vllm_captures_larger_sizes_so_does_the_steered_engine() -> None:
    large = replace(EAGLE, max_num_seqs=256, largest_capture_size=1024)
    sizes = [steered_engine_kwargs(user_kwargs(), facts).kwargs for facts in (large, replace(large, largest_capture_size=512))]
    assert [max(kwargs["compilation_config"]["cudagraph_capture_sizes"]) for kwargs in sizes] == [1024, 512]


def test_the_k_of_the_users_own_table_are_captured_as_well() -> None:
    arguments = steered_engine_kwargs(user_kwargs(num_speculative_tokens_per_batch_size=[[1, 4, 4], [5, 8, 2]]), EAGLE)
    assert arguments.graph_tiers == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    "changes", [{"captures_graphs": False}, {"full_graphs": False}, {"runner_is_v1": True}, {"vllm_version": (0, 29)}]
)
def test_where_one_graph_serves_every_k_all_of_them_stay(changes: dict[str, Any]) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(EAGLE, **changes), wanted_tiers=[2])
    assert arguments.graph_tiers == ()
    assert table(arguments.kwargs) == [[1, 8, 4]]
    assert "compilation_config" not in arguments.kwargs


def test_a_mamba_like_target_gets_no_tiers_where_they_would_be_captured_and_says_what_runs_instead() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(EAGLE, is_mamba_like=True), wanted_tiers=[2])
    assert arguments.serving_plainly == ""
    assert arguments.graph_tiers == ()
    assert table(arguments.kwargs) == [[1, 8, 4]]
    assert "compilation_config" not in arguments.kwargs
    assert "full graphs for K = 4 alone" in arguments.notice
    for none_full in (replace(EAGLE, captures_graphs=False), replace(EAGLE, runner_is_v1=True), replace(EAGLE, full_graphs=False)):
        assert "full graphs" not in steered_engine_kwargs(user_kwargs(), replace(none_full, is_mamba_like=True)).notice


def test_a_draft_model_keeps_vllms_runner_v2_and_its_full_graphs_also_where_its_method_is_left_to_vllm() -> None:
    kwargs = user_kwargs()
    del kwargs["speculative_config"]["method"]
    for given_kwargs in (user_kwargs(), kwargs):
        arguments = steered_engine_kwargs(given_kwargs, GPU)
        assert arguments.environment == {}
        assert not arguments.runner_is_v1
        assert arguments.kwargs["worker_cls"] == V2_WORKER
        assert arguments.graph_tiers == (0, 1, 3, 4)


@pytest.mark.parametrize(
    ("sleep", "missing", "version"),
    [
        ({}, MissingHooks(draft_on_v2=("StandaloneARSpeculator.propose",)), (0, 33)),
        ({"is_multimodal": True}, NOTHING_MISSING, (0, 33)),
        ({}, NOTHING_MISSING, (0, 29)),
    ],
)
def test_a_draft_model_that_nothing_makes_obey_on_runner_v2_gets_v1(
    sleep: dict[str, Any], missing: MissingHooks, version: tuple[int, int]
) -> None:
    facts = replace(GPU, sleep=SleepFacts(drafter_kind="draft_model", **sleep), vllm_version=version)
    arguments = steered_engine_kwargs(user_kwargs(), facts, missing_hooks=missing)
    assert arguments.environment == {RUNNER_VARIABLE: "0"}
    assert arguments.runner_is_v1
    assert arguments.kwargs["worker_cls"] == GPU_WORKER


@pytest.mark.parametrize(
    ("changes", "shadow"),
    [
        pytest.param({"drafter_kind": "eagle"}, False, id="an EAGLE head, whatever its method is called"),
        pytest.param({"drafter_kind": "medusa"}, False, id="served plainly"),
        pytest.param({}, True, id="only observed"),
        pytest.param({"drafter_kind": "eagle", "runner_is_users": True}, False, id="said by the user"),
    ],
)
def test_gpu_engine_keeps_the_users_runner_where_none_is_needed_or_theirs_was_asked_for(
    changes: dict[str, Any], shadow: bool
) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, **changes), shadow=shadow)
    assert arguments.environment == {}
    assert not arguments.runner_is_v1


@pytest.mark.parametrize(("version", "environment"), [((0, 29), {RUNNER_VARIABLE: "0"}), ((0, 33), {})])
def test_a_vllm_whose_runner_v2_ignores_k_runs_every_steered_drafter_on_v1(
    version: tuple[int, int], environment: dict[str, str]
) -> None:
    for kind in ("eagle", "eagle3", "mtp", "ngram"):
        arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, drafter_kind=kind, vllm_version=version))
        assert arguments.serving_plainly == ""
        assert arguments.environment == environment


def test_cpu_engine_is_told_no_runner() -> None:
    assert steered_engine_kwargs(user_kwargs(), CPU).environment == {}


HEAD = SleepFacts(drafter_kind="eagle")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"drafter_kind": "ngram"}, ""),
        ({"drafter_kind": "eagle", "vllm_version": (0, 29)}, HEAD_ON_V1),
        ({"drafter_kind": "eagle", "sleep": replace(HEAD, head_layers=2)}, "the head has 2 attention layers"),
        ({"drafter_kind": "eagle", "sleep": replace(HEAD, has_kv_connector=True)}, "a KV connector is in use"),
        ({"drafter_kind": "mtp", "sleep": replace(HEAD, spreads_experts=True)}, "data parallelism or expert load balancing"),
        ({"drafter_kind": "eagle3", "sleep": replace(HEAD, is_multimodal=True)}, "the target is multimodal"),
        ({"drafter_kind": "eagle", "sleep": replace(HEAD, context_parallel=True)}, "context parallelism"),
    ],
)
def test_gpu_engine_keeps_vllms_worker_where_nothing_sleeps_and_no_head_writes_its_kv_alone(
    changes: dict[str, Any], reason: str
) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, **changes))
    assert "worker_cls" not in arguments.kwargs
    assert arguments.why_never_asleep.startswith(reason)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "mtp", "deepseek_mtp"])
def test_on_runner_v2_a_head_of_one_layer_writes_its_kv_alone_at_k_0(kind: str) -> None:
    facts = replace(GPU, drafter_kind=kind, sleep=SleepFacts(drafter_kind=kind), runner_is_v1=False)
    arguments = steered_engine_kwargs(user_kwargs(), facts)
    assert arguments.kwargs["worker_cls"] == V2_WORKER
    assert arguments.why_never_asleep == ""
    missing = MissingHooks(heads=("TargetDependentARSpeculator.propose",))
    without = steered_engine_kwargs(user_kwargs(), facts, missing_hooks=missing)
    assert "worker_cls" not in without.kwargs
    assert without.why_never_asleep == "this vLLM lacks what a head hooks into: TargetDependentARSpeculator.propose"
    assert without.serving_plainly == ""


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
def test_a_block_of_drafts_is_steered_on_v2_and_our_worker_leaves_its_queries_out_where_vllm_does_not(kind: str) -> None:
    facts = replace(GPU, drafter_kind=kind, drafts_in_parallel=True, sleep=replace(HEAD, drafter_kind=kind))
    ours = steered_engine_kwargs(user_kwargs(), facts)
    vllms = steered_engine_kwargs(user_kwargs(), replace(facts, vllm_version=(0, 33)))
    assert (ours.kwargs["worker_cls"], ours.layers) == (V2_WORKER, (Layer.STEERING, Layer.HEADS))
    assert ("worker_cls" in vllms.kwargs, vllms.layers) == (False, (Layer.STEERING,))
    for arguments in (ours, vllms):
        assert (arguments.serving_plainly, arguments.why_never_asleep, arguments.runner_is_v1) == ("", "", False)
        assert arguments.graph_tiers
    without = steered_engine_kwargs(user_kwargs(), facts, without=[Layer.HEADS])
    assert ("worker_cls" in without.kwargs, without.why_never_asleep) == (False, SWITCHED_OFF.format(Layer.HEADS))


def test_an_engine_that_lends_its_drafts_memory_tells_scheduler_and_workers_its_size_beside_the_users_own() -> None:
    facts = replace(CPU, offload=OffloadConfig(draft_weight_bytes=1000))
    kwargs = steered_engine_kwargs({**user_kwargs(), "additional_config": {"theirs": 1}}, facts).kwargs
    assert kwargs["additional_config"] == {"theirs": 1, "nightjar": {"draft_weight_bytes": 1000}}


def test_why_a_drafts_memory_is_not_lent_reaches_the_operator() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(CPU, why_no_offload="sleep mode is on"))
    assert arguments.notice == "draft_offload is not in use: sleep mode is on"
    assert arguments.serving_plainly == ""


def test_users_own_table_is_the_behaviour_until_settings_arrive() -> None:
    arguments = steered_engine_kwargs(user_kwargs(num_speculative_tokens_per_batch_size=[[1, 2, 4], [5, 6, 1]]), CPU)
    assert table(arguments.kwargs) == [[1, 4, 4], [5, 8, 1]]


def test_shadow_adds_the_observing_scheduler_alone_where_a_table_would_change_the_graphs() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), GPU, shadow=True)
    assert arguments.kwargs == user_kwargs() | {"scheduler_cls": ASYNC_SCHEDULER}
    assert arguments.only_observing


def test_an_engine_without_graphs_can_leave_shadow_at_any_time() -> None:
    assert steered_engine_kwargs(user_kwargs(), CPU, shadow=True) == steered_engine_kwargs(user_kwargs(), CPU)


def test_ranks_of_a_dense_target_are_steered_with_the_table_that_vllm_drops_kept_beside_the_arguments() -> None:
    users = user_kwargs(num_speculative_tokens_per_batch_size=[[1, 2, 1], [3, 8, 0]])
    arguments = steered_engine_kwargs(users, replace(CPU, data_parallel_size=2))
    assert arguments.serving_plainly == ""
    assert arguments.dropped_table == ((1, 8, 4),), "vLLM drops the user's table, too: what they run is the maximum"
    assert steered_engine_kwargs(users, CPU).dropped_table == ()
    tiers = steered_engine_kwargs(user_kwargs(), replace(GPU, data_parallel_size=2))
    assert [list(row) for row in tiers.dropped_table] == table(tiers.kwargs)
    assert len(tiers.graph_tiers) > 1


def test_ranks_that_only_observe_keep_what_vllm_makes_of_the_users_arguments() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, data_parallel_size=2), shadow=True)
    assert arguments.only_observing
    assert arguments.dropped_table == ()


def test_a_moved_name_that_ranks_are_called_by_costs_engines_of_several_alone() -> None:
    missing = MissingHooks(ranks=("AsyncMPClient._call_utility_async",))
    of_several = steered_engine_kwargs(user_kwargs(), replace(CPU, data_parallel_size=2), missing_hooks=missing)
    assert of_several.serving_plainly == "this vLLM lacks what each rank is called by: AsyncMPClient._call_utility_async"
    assert steered_engine_kwargs(user_kwargs(), CPU, missing_hooks=missing).serving_plainly == ""


def test_beside_adaptive_verification_the_ceiling_is_steered_with_the_users_own_graphs() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(EAGLE, adaptive_verification=True))
    assert arguments.serving_plainly == ""
    assert arguments.kwargs["scheduler_cls"] == ASYNC_SCHEDULER
    assert arguments.kwargs["worker_cls"] == V2_WORKER
    assert "compilation_config" not in arguments.kwargs
    assert arguments.graph_plan is None
    assert arguments.graph_tiers == (0, 1, 3, 4)
    assert level_at_start(arguments).in_words() == "fully"
    assert "Nightjar the ceiling and off" in arguments.notice
    assert "until a mode is set by hand (nightjar mode auto --application NAME)" in arguments.notice


def test_an_engine_with_adaptive_verification_may_leave_shadow_without_a_new_start() -> None:
    adaptive = replace(EAGLE, adaptive_verification=True)
    assert steered_engine_kwargs(user_kwargs(), adaptive, shadow=True) == steered_engine_kwargs(user_kwargs(), adaptive)
    assert steered_engine_kwargs(user_kwargs(), EAGLE, shadow=True).only_observing


def test_a_moved_name_that_only_sleeping_on_v1_needs_costs_no_other_drafter_its_steering() -> None:
    missing = MissingHooks(sleeping=("DraftModelProposer._get_model",))
    for on_v2 in (replace(GPU, drafter_kind="eagle"), GPU):
        assert steered_engine_kwargs(user_kwargs(), on_v2, missing_hooks=missing) == steered_engine_kwargs(user_kwargs(), on_v2)
    draft_model = steered_engine_kwargs(user_kwargs(), replace(GPU, runner_is_users=True, runner_is_v1=True), missing_hooks=missing)
    assert draft_model.serving_plainly == ""
    assert "worker_cls" not in draft_model.kwargs
    assert draft_model.notice == ""
    assert draft_model.why_never_asleep == "this vLLM lacks what a sleeping drafter hooks into: DraftModelProposer._get_model"


def test_a_user_who_asks_for_a_runner_gets_it_and_lending_works_on_both() -> None:
    lends = replace(GPU, runner_is_users=True, offload=OffloadConfig(draft_weight_bytes=20))
    for facts, worker in ((lends, V2_WORKER), (replace(lends, runner_is_v1=True), GPU_WORKER)):
        arguments = steered_engine_kwargs(user_kwargs(), facts)
        assert arguments.kwargs["worker_cls"] == worker
        assert (arguments.serving_plainly, arguments.why_never_asleep, arguments.environment) == ("", "", {})
        assert told(arguments) == {"draft_weight_bytes": 20}
    missing = MissingHooks(sleeping=("of runner V1",), draft_on_v2=("StandaloneARSpeculator.propose",))
    lacking = steered_engine_kwargs(user_kwargs(), lends, missing_hooks=missing)
    assert lacking.serving_plainly == (
        "VLLM_USE_V2_MODEL_RUNNER asks for runner V2: this vLLM lacks what makes a draft model obey there: "
        "StandaloneARSpeculator.propose"
    )
    assert lacking.kwargs == user_kwargs()


@pytest.mark.parametrize("runner_is_v1", [False, True])
def test_a_moved_name_that_only_lending_needs_costs_the_lending_alone(runner_is_v1: bool) -> None:
    lends = replace(GPU, offload=OffloadConfig(draft_weight_bytes=20), runner_is_users=True, runner_is_v1=runner_is_v1)
    arguments = steered_engine_kwargs(user_kwargs(), lends, missing_hooks=MissingHooks(lending=("BlockPool.get_new_blocks",)))
    assert arguments.kwargs["worker_cls"] == (GPU_WORKER if runner_is_v1 else V2_WORKER)
    assert told(arguments) == {}
    assert "draft_offload is not in use: this vLLM lacks what lending hooks into: BlockPool.get_new_blocks" in arguments.notice


STEERING, SLEEPING, HEADS, LENDING = Layer
ALL_BUT_STEERING = (SLEEPING, HEADS)
ON_V1 = replace(GPU, runner_is_users=True, runner_is_v1=True)


@pytest.mark.parametrize(
    ("facts", "layers"),
    [
        (CPU, (STEERING, SLEEPING)),
        (replace(CPU, offload=OffloadConfig(20)), (STEERING, SLEEPING, LENDING)),
        (GPU, (STEERING, SLEEPING)),
        (ON_V1, (STEERING, SLEEPING)),
        (EAGLE, (STEERING, HEADS)),
        (replace(EAGLE, runner_is_v1=True), (STEERING,)),
        (replace(CPU, drafter_kind="eagle"), (STEERING,)),
        (replace(GPU, drafter_kind="ngram"), (STEERING,)),
        (replace(GPU, drafter_kind="medusa"), ()),
    ],
)
def test_an_engine_has_the_layers_of_its_drafter_and_each_is_off_where_it_is_switched_off(
    facts: EngineFacts, layers: tuple[Layer, ...]
) -> None:
    facts = replace(facts, sleep=SleepFacts(drafter_kind=facts.drafter_kind))
    assert steered_engine_kwargs(user_kwargs(), facts).layers == layers
    for off in ALL_BUT_STEERING:
        dependent = {off, LENDING} if off is SLEEPING else {off}
        assert steered_engine_kwargs(user_kwargs(), facts, without=[off]).layers == tuple(
            layer for layer in layers if layer not in dependent
        )


@pytest.mark.parametrize("facts", [CPU, GPU, ON_V1, EAGLE, replace(CPU, drafter_kind="eagle"), replace(CPU, drafter_kind="ngram")])
def test_with_every_layer_but_steering_off_the_worker_is_vllms_and_nothing_is_lent(facts: EngineFacts) -> None:
    facts = replace(facts, sleep=SleepFacts(drafter_kind=facts.drafter_kind), offload=OffloadConfig(20))
    arguments = steered_engine_kwargs(user_kwargs(), facts, without=ALL_BUT_STEERING)
    assert arguments.layers == (STEERING,)
    touched = {name for name, value in arguments.kwargs.items() if value != user_kwargs().get(name)}
    assert touched <= {"scheduler_cls", "speculative_config", "compilation_config", "additional_config"}
    assert told(arguments) == {}
    assert table(arguments.kwargs)


def test_without_sleeping_a_draft_model_takes_the_runner_on_which_vllm_makes_it_obey_and_says_so() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), GPU, without=[SLEEPING])
    assert arguments.environment == {RUNNER_VARIABLE: "0"}
    assert arguments.why_never_asleep == "the layer sleeping is switched off (without)"
    reason = "what makes a draft model obey there is part of sleeping, and the layer sleeping is switched off (without)"
    assert f"on model runner V1; of V2: {reason}" in arguments.notice
    asked = steered_engine_kwargs(user_kwargs(), replace(GPU, runner_is_users=True), without=[SLEEPING])
    assert asked.serving_plainly == f"VLLM_USE_V2_MODEL_RUNNER asks for runner V2: {reason}"
    assert steered_engine_kwargs(user_kwargs(), GPU, without=[HEADS]) == steered_engine_kwargs(user_kwargs(), GPU)


def test_lending_goes_with_sleeping_and_says_so() -> None:
    lends = replace(CPU, offload=OffloadConfig(draft_weight_bytes=20))
    arguments = steered_engine_kwargs(user_kwargs(), lends, without=[SLEEPING])
    assert "additional_config" not in arguments.kwargs
    assert "draft_offload is not in use: the layer sleeping is switched off (without)" in arguments.notice


def test_users_arguments_are_not_modified() -> None:
    given_kwargs = user_kwargs()
    steered_engine_kwargs(given_kwargs, CPU)
    assert given_kwargs == user_kwargs()
