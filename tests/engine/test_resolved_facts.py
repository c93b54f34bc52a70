"""What vLLM itself says of drafters and targets, of configurations alone: no model is loaded."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.graph_tiers import maximum_alone
from nightjar.deployments.engine.start.resolved_facts import EngineFacts, resolve_facts

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MIMO = {"architectures": ["MiMoForCausalLM"], "model_type": "qwen2"}
FALCON_H1 = {
    "architectures": ["FalconH1ForCausalLM"],
    "model_type": "falcon_h1",
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
}
QWEN3_NEXT = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "head_dim": 16}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}


def engine_config(folder: Path, target: dict[str, Any], speculative: dict[str, Any]) -> Any:
    """vLLM's own, for a GPU in all but the device."""
    from vllm.engine.arg_utils import EngineArgs

    for name, config in (("target", target), ("draft", LLAMA)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(SIZES | config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EngineArgs(
            model=str(folder / "target"),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=256,
            max_num_seqs=8,
            speculative_config=speculative,
        ).create_engine_config()


def on_a_gpu(config: Any, *, runner_is_v1: bool) -> EngineFacts:
    """The facts that a GPU with graphs would have of it."""
    resolved = SimpleNamespace(**(vars(config) | {"use_v2_model_runner": not runner_is_v1}))
    return replace(resolve_facts(resolved, on_cpu=False), captures_graphs=True, full_graphs=True)


@pytest.mark.parametrize(("modules", "maximum", "several"), [(1, 2, False), (2, 1, False), (2, 2, True)])
def test_a_head_that_drafts_with_several_modules_is_known_from_its_configuration(
    tmp_path: Path, modules: int, maximum: int, several: bool
) -> None:
    speculative = {"method": "mtp", "num_speculative_tokens": maximum}
    config = engine_config(tmp_path, MIMO | {"num_nextn_predict_layers": modules}, speculative)
    facts = on_a_gpu(config, runner_is_v1=False)
    assert facts.several_mtp_modules is several
    assert bool(steered_engine_kwargs({"speculative_config": speculative}, facts).serving_plainly) is several
    assert not on_a_gpu(config, runner_is_v1=True).several_mtp_modules  # V1 runs the first module alone, for any K


@pytest.mark.parametrize("runner_is_v1", [False, True])
def test_a_draft_that_makes_all_its_tokens_in_one_pass_is_served_plainly(tmp_path: Path, runner_is_v1: bool) -> None:
    speculative = {"model": str(tmp_path / "draft"), "num_speculative_tokens": 4, "parallel_drafting": True}
    config = engine_config(tmp_path, LLAMA, speculative)
    arguments = steered_engine_kwargs({"speculative_config": speculative}, on_a_gpu(config, runner_is_v1=runner_is_v1))
    assert arguments.serving_plainly.startswith("parallel_drafting makes all drafts in one pass")
    assert arguments.kwargs == {"speculative_config": speculative}


@pytest.mark.engine  # vLLM imports each model's class in a process of its own: 15 s each, once a machine
@pytest.mark.parametrize(("target", "is_mamba_like"), [(FALCON_H1, True), (QWEN3_NEXT, False)])
def test_a_target_of_mamba_like_layers_is_known_before_it_loads_and_gets_no_tiers(
    tmp_path: Path, target: dict[str, Any], is_mamba_like: bool
) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    facts = on_a_gpu(engine_config(tmp_path, target, speculative), runner_is_v1=False)
    assert facts.is_mamba_like is is_mamba_like
    arguments = steered_engine_kwargs({"speculative_config": speculative}, facts)
    assert arguments.serving_plainly == ""
    assert arguments.graph_tiers == (() if is_mamba_like else (0, 1, 3, 4))
    table = arguments.kwargs["speculative_config"]["num_speculative_tokens_per_batch_size"]
    assert (table == [[1, 8, 4]]) is is_mamba_like
    assert (maximum_alone(4) in arguments.notice) is is_mamba_like
