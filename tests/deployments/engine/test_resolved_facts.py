"""What vLLM made of the user's arguments, and exactly the user's where steering cannot work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.dormancy import CUDA_OFFLOAD_VARIABLE, SleepFacts
from nightjar.deployments.engine.start.hooks import MissingHooks
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE, EngineFacts, resolve_facts
from nightjar.policy.wire.report import Layer
from tests.deployments.engine.engine_facts import CPU, EAGLE, GPU, user_kwargs


def model_config(**changes: Any) -> Any:
    config = {
        "enforce_eager": True,
        "enable_sleep_mode": False,
        "enable_cumem_allocator": False,
        "max_model_len": 1024,
        "original_max_model_len": 1024,
    }
    return SimpleNamespace(**(config | changes))


def parallel_config(**changes: int) -> Any:
    sizes = dict.fromkeys(("pipeline", "data", "decode_context", "prefill_context"), 1) | {"tensor": 2}
    return SimpleNamespace(**({f"{name}_parallel_size": size for name, size in sizes.items()} | changes))


def resolved(draft: Path, **changes: Any) -> Any:
    """vLLM's configuration of an engine whose draft could be lent, by shape."""
    config: dict[str, Any] = {
        "scheduler_config": SimpleNamespace(async_scheduling=False, max_num_seqs=8),
        "parallel_config": parallel_config(),
        "kv_transfer_config": None,
        "model_config": model_config(),
        "cache_config": SimpleNamespace(num_gpu_blocks_override=None),
        "speculative_config": SimpleNamespace(
            method="draft_model",
            num_speculative_tokens=4,
            parallel_drafting=False,
            draft_model_config=SimpleNamespace(
                model=str(draft), quantization=None, dtype=SimpleNamespace(itemsize=4), max_model_len=1024
            ),
        ),
    }
    return SimpleNamespace(**(config | changes))


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """A checkpoint of one tensor of ten numbers, of which only the header is ever read."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(40))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("facts", "extra", "reason"),
    [
        (replace(CPU, drafter_kind="none", max_num_speculative_tokens=0), {}, "nothing to steer"),
        (replace(CPU, drafter_kind="medusa"), {}, "'medusa' does not obey"),
        (replace(CPU, drafter_kind="suffix"), {}, "'suffix' does not obey"),
        (replace(CPU, drafter_kind="custom_class"), {}, "'custom_class' does not obey"),
        (
            replace(GPU, drafter_kind="dflash", runner_is_v1=True),
            {},
            "which cuts its drafts to the step's K; this engine has runner V1 of vLLM 0.32",
        ),
        (replace(GPU, drafter_kind="dspark", vllm_version=(0, 31)), {}, "this engine has runner V2 of vLLM 0.31"),
        (replace(GPU, drafter_kind="dflash", vllm_version=(0, 29)), {}, "this engine has runner V2 of vLLM 0.29"),
        (
            replace(GPU, drafter_kind="xpress", vllm_version=(0, 33)),
            {},
            "drafter 'xpress' is dflash with a head of its own, and no run has shown that it obeys K",
        ),
        (replace(CPU, max_num_speculative_tokens=33), {}, "33 is above 32"),
        (replace(CPU, max_num_seqs=5000), {}, "5000 is above 4096"),
        (replace(GPU, pipeline_parallel_size=2), {}, "pipeline_parallel_size 2"),
        (replace(GPU, num_nodes=2), {}, "nnodes 2: other commands start what runs on the other nodes"),
        (replace(GPU, data_parallel_size=2, why_ranks_plain="its ranks step together"), {}, "its ranks step together"),
        (
            replace(EAGLE, adaptive_verification=True, runner_is_v1=True, runner_is_users=True),
            {},
            "enable_adaptive_verification needs model runner V2 on a GPU, and this engine runs on V1",
        ),
        (replace(CPU, drafter_kind="eagle", adaptive_verification=True), {}, "enable_adaptive_verification needs model runner V2"),
        (replace(EAGLE, adaptive_verification=True, full_graphs=False), {}, "enable_adaptive_verification needs full CUDA graphs"),
        (
            replace(EAGLE, adaptive_verification=True, captures_graphs=False),
            {},
            "enable_adaptive_verification needs full CUDA graphs",
        ),
        (
            replace(EAGLE, adaptive_verification=True, vllm_version=(0, 31)),
            {},
            "enable_adaptive_verification has no ceiling in vLLM 0.31: drafts beyond a step's K are cut off from 0.32 on",
        ),
        (
            replace(GPU, adaptive_verification=True),
            {},
            "enable_adaptive_verification and a ceiling cannot be had together with draft_model",
        ),
        (
            replace(GPU, runner_is_users=True, vllm_version=(0, 29)),
            {},
            "asks for runner V2: vLLM 0.29 drafts its maximum for draft_model there, whatever K says",
        ),
        (replace(GPU, drafts_in_parallel=True), {}, "parallel_drafting makes all drafts in one pass"),
        (replace(EAGLE, drafts_in_parallel=True, runner_is_v1=True), {}, "parallel_drafting makes all drafts in one pass"),
        (replace(GPU, drafter_kind="mtp", several_mtp_modules=True), {}, "drafts with several modules in turn"),
        (
            replace(GPU, runner_is_users=True, sleep=SleepFacts(drafter_kind="draft_model", is_multimodal=True)),
            {},
            "asks for runner V2: nothing makes a draft model obey there beside a multimodal target",
        ),
        (
            replace(GPU, runner_is_users=True, drafter_kind="eagle", vllm_version=(0, 29)),
            {},
            "asks for runner V2: vLLM 0.29 drafts its maximum for eagle there",
        ),
        (CPU, {"scheduler_cls": "mine.Scheduler"}, "engine_kwargs set scheduler_cls themselves"),
    ],
)
def test_engine_that_cannot_be_steered_gets_exactly_the_users_arguments(
    facts: EngineFacts, extra: dict[str, Any], reason: str
) -> None:
    given_kwargs = user_kwargs(num_speculative_tokens_per_batch_size=[[1, 2, 4]]) | extra
    arguments = steered_engine_kwargs(given_kwargs, facts)
    assert reason in arguments.serving_plainly
    assert arguments.kwargs == given_kwargs


def test_an_engine_whose_host_is_not_one_to_steer_in_gets_the_users_arguments_and_says_why() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), replace(GPU, why_not_here="accelerator_config.kind 'tpu'"))
    assert arguments.kwargs == user_kwargs()
    assert arguments.serving_plainly == "accelerator_config.kind 'tpu'"


@pytest.mark.parametrize(("device", "is_steered"), [("cpu", True), ("cuda", True), ("xpu", False), ("tpu", False)])
def test_an_engine_on_a_platform_that_no_worker_of_ours_is_made_for_is_served_plainly(
    draft: Path, device: str, is_steered: bool
) -> None:
    config = resolved(draft, device_config=SimpleNamespace(device_type=device))
    arguments = steered_engine_kwargs(user_kwargs(), resolve_facts(config, on_cpu=device == "cpu"))
    assert arguments.serving_plainly == ("" if is_steered else f"device {device!r}: steered are cpu and cuda")


def test_moved_hooks_are_named_and_serve_plainly() -> None:
    arguments = steered_engine_kwargs(user_kwargs(), CPU, missing_hooks=MissingHooks(steering=("Scheduler.schedule",)))
    assert "Scheduler.schedule" in arguments.serving_plainly
    assert arguments.kwargs == user_kwargs()


@pytest.mark.parametrize("shadow", [False, True])
def test_without_steering_an_engine_gets_exactly_the_users_arguments(shadow: bool) -> None:
    arguments = steered_engine_kwargs(user_kwargs(), GPU, shadow=shadow, without=[Layer.STEERING])
    assert (arguments.kwargs, arguments.layers) == (user_kwargs(), ())
    assert arguments.serving_plainly == "the layer steering is switched off (without)"


def test_the_users_choice_of_a_runner_is_seen(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    assert not resolve_facts(resolved(draft), on_cpu=False).runner_is_users
    monkeypatch.setenv(RUNNER_VARIABLE, "1")
    assert resolve_facts(resolved(draft), on_cpu=False).runner_is_users


def test_of_one_method_vllm_tells_drafters_by_their_architecture_and_a_blocks_layers_keep_nothing_that_attention_made(
    draft: Path,
) -> None:
    config = resolved(draft)
    config.speculative_config.method = "dflash"
    config.speculative_config.draft_model_config.hf_config = SimpleNamespace(num_hidden_layers=5)
    found = [resolve_facts(config, on_cpu=False)]
    config.speculative_config.draft_model_config.architectures = ["DFlashQwen3XPressModel"]
    found.append(resolve_facts(config, on_cpu=False))
    assert [facts.drafter_kind for facts in found] == ["dflash", "xpress"]
    assert found[0].sleep.head_layers == 1


def test_a_drafts_memory_is_sized_by_rank_from_its_checkpoint_and_only_where_it_was_asked_for(draft: Path) -> None:
    facts = resolve_facts(resolved(draft), on_cpu=True, draft_offload="under_memory_pressure")
    assert facts.offload == OffloadConfig(draft_weight_bytes=20)
    assert facts.why_no_offload == ""
    assert resolve_facts(resolved(draft), on_cpu=True).offload is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speculative_config": None}, "only a separate draft model"),
        ({"kv_transfer_config": SimpleNamespace()}, "a KV connector is in use"),
        ({"model_config": model_config(enable_sleep_mode=True)}, "sleep mode is on"),
        ({"parallel_config": parallel_config(decode_context_parallel_size=2)}, "context parallelism"),
        ({"model_config": model_config(max_model_len=2048)}, "the draft's max_model_len is below the target's"),
        ({"model_config": model_config(original_max_model_len=-1)}, "max_model_len is left to vLLM"),
        ({"cache_config": SimpleNamespace(num_gpu_blocks_override=500)}, "num_gpu_blocks_override"),
    ],
)
def test_a_draft_stays_where_its_memory_could_be_touched_behind_our_back(draft: Path, changes: dict[str, Any], reason: str) -> None:
    facts = resolve_facts(resolved(draft, **changes), on_cpu=True, draft_offload="under_memory_pressure")
    assert facts.offload is None
    assert reason in facts.why_no_offload


def test_a_draft_stays_where_it_is_quantised_or_is_no_local_folder(draft: Path) -> None:
    reasons = []
    for change in ({"quantization": "fp8"}, {"model": "somebody/draft"}, {"model": str(draft / "nothing")}):
        config = resolved(draft)
        vars(config.speculative_config.draft_model_config).update(change)
        reasons.append(resolve_facts(config, on_cpu=True, draft_offload="under_memory_pressure").why_no_offload)
    assert "quantised (fp8)" in reasons[0]
    assert "'somebody/draft' is no local folder" in reasons[1]
    assert "is no local folder" in reasons[2]


def test_on_a_gpu_a_drafts_memory_is_lent_only_where_the_operator_tries_what_never_ran(
    draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CUDA_OFFLOAD_VARIABLE, raising=False)
    assert "never run" in resolve_facts(resolved(draft), on_cpu=False, draft_offload="under_memory_pressure").why_no_offload
    monkeypatch.setenv(CUDA_OFFLOAD_VARIABLE, "1")
    facts = resolve_facts(resolved(draft), on_cpu=False, draft_offload="under_memory_pressure")
    assert "needs enable_cumem_allocator" in facts.why_no_offload
    config = resolved(draft, model_config=model_config(enable_cumem_allocator=True))
    assert resolve_facts(config, on_cpu=False, draft_offload="under_memory_pressure").offload is not None
