"""What vLLM will make of engine arguments, told without vLLM: drafter, scheduler, model runner, graph mode.

At run time engine/start/resolved_facts.py reads the same facts from the configuration that vLLM built; here the rules of vLLM 0.32
are followed by hand, as far as they do not need the model's files. The decisions themselves are the same functions, for the version
of vLLM that is installed where they are asked, or the tested one where none is: what is said of the runner names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.configuration.check.engine_schema import EngineKwargs, SpeculativeKwargs
from nightjar.deployments.configuration.check.findings import ServedOn, Severity
from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, drafter_of, kind_of
from nightjar.deployments.engine.start.arguments import EngineArguments, steered_engine_kwargs
from nightjar.deployments.engine.start.dormancy import CUDA_OFFLOAD_VARIABLE, OffloadFacts, SleepFacts, why_never_asleep
from nightjar.deployments.engine.start.graph_tiers import GATED_DELTA_NET, maximum_alone
from nightjar.deployments.engine.start.ranks import OWN_PROCESSES, why_ranks_plain
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE, EngineFacts
from nightjar.deployments.engine.start.vllm_versions import in_words, installed_vllm, why_unread
from nightjar.deployments.llm_config import ASSUMED_MAX_NUM_SEQS, LLMConfig, has_a_front_end_for_each_rank
from nightjar.deployments.models import ModelError, resolve_model

_RECURRENT_KEYS: Final = ("ssm_state_size", "conv_L_cache", "mamba_d_conv", "mamba_d_state", "mamba_num_heads")
_ATTENTION_FREE: Final = ("mamba", "mamba2", "falcon_mamba")
_EXPERT_KEYS: Final = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
"""Of a mixture of experts (vLLM 0.32, ModelArchConfigConvertor.get_num_experts)."""
_KIND_BY_MODEL_NAME: Final = (("eagle-", "eagle"), ("eagle3", "eagle3"), ("dflash", "dflash"), ("dspark", "dspark"))
"""vLLM tells these by the drafter's name where `method` says nothing or draft_model; the first that fits wins."""
_KIND_BY_ARCHITECTURE: Final = {
    "MuseGlimmerAssistantModel": "dflash",
    "Qwen3DSparkModel": "dspark",
    "Qwen3OmniDSparkModel": "dspark",
    "Gemma4DSparkModel": "dspark",
}
"""And where the name says nothing either, by the draft's architectures (vLLM 0.32, SpeculativeConfig.__post_init__)."""


@dataclass(frozen=True, slots=True)
class EngineOutlook:
    """How an engine will run, each in an operator's words."""

    facts: EngineFacts
    arguments: EngineArguments
    runner: str
    graphs: str


def drafter_kind(speculative: SpeculativeKwargs | None) -> str:
    """vLLM's name for how drafts are made; `none` without speculation.

    >>> drafter_kind(SpeculativeKwargs(model="AngelSlim/Qwen3-8B_eagle3", num_speculative_tokens=3))
    'eagle3'
    """
    if speculative is None:
        return "none"
    model = (speculative.model or "").lower()
    if speculative.method is None and model in {"ngram", "[ngram]"}:
        return "ngram"
    method = speculative.method or SEPARATE_DRAFT_MODEL
    if method.endswith("_mtp"):
        return "mtp"
    if method == SEPARATE_DRAFT_MODEL:
        return next((kind for part, kind in _KIND_BY_MODEL_NAME if part in model), SEPARATE_DRAFT_MODEL)
    return method


def is_on_cpu(config: LLMConfig) -> bool:
    """Whether its replicas ask Ray for no accelerator."""
    return not config.accelerator_type and not config.actor_options().get("num_gpus")


def environment_of(config: LLMConfig) -> dict[str, str]:
    """The variables that the configuration itself sets for a replica."""
    return variables_in(config.actor_options().get("runtime_env"))


def variables_in(runtime_env: object) -> dict[str, str]:
    """Its `env_vars`; none where it has the wrong form, which is Ray's to refuse."""
    variables = runtime_env.get("env_vars") if isinstance(runtime_env, Mapping) else None
    return {str(name): str(value) for name, value in variables.items()} if isinstance(variables, Mapping) else {}


def outlook(config: LLMConfig, kwargs: EngineKwargs, *, shadow: bool) -> EngineOutlook:
    """How the engine of `config` will run; `kwargs` are its engine arguments, checked."""
    facts = engine_facts(config, kwargs)
    arguments = steered_engine_kwargs(
        config.engine_kwargs,
        facts,
        shadow=shadow,
        wanted_tiers=config.graph_tiers,
        without=config.without,
    )
    return EngineOutlook(facts, arguments, _runner(facts, arguments), _graphs(facts, arguments))


def engine_facts(config: LLMConfig, kwargs: EngineKwargs) -> EngineFacts:
    """What `resolve_facts` will find at run time, without the sizes of an offload."""
    speculative = kwargs.speculative_config
    on_cpu, kind = is_on_cpu(config), _variant(config, drafter_kind(speculative))
    version = installed_vllm()
    padded = not (speculative and speculative.disable_padded_drafter_batch)
    asynchronous = not on_cpu and kind_of(kind).runs_asynchronously and padded and kwargs.async_scheduling is not False
    return EngineFacts(
        on_cpu=on_cpu,
        async_scheduling=asynchronous,
        captures_graphs=not on_cpu and not kwargs.enforce_eager,
        full_graphs=_has_full_graphs(config.engine_kwargs.get("compilation_config")),
        max_num_seqs=kwargs.max_num_seqs or ASSUMED_MAX_NUM_SEQS,
        drafter_kind=kind,
        max_num_speculative_tokens=(speculative.num_speculative_tokens or 0) if speculative else 0,
        pipeline_parallel_size=kwargs.pipeline_parallel_size,
        data_parallel_size=kwargs.data_parallel_size,
        num_nodes=kwargs.nnodes,
        why_ranks_plain=why_plain_with(config.engine_kwargs, is_moe=has_experts(model_configuration(config.model_source))),
        runner_is_v1=_runner_is_v1(config, kwargs, on_cpu=on_cpu, kind=kind),
        runner_is_users=bool(environment_of(config).get(RUNNER_VARIABLE)),
        vllm_version=version,
        why_not_here=why_unread(version),
        adaptive_verification=bool(speculative and (speculative.model_extra or {}).get("enable_adaptive_verification")),
        drafts_in_parallel=bool(speculative and speculative.parallel_drafting),
        several_mtp_modules=speculative is not None and kind == "mtp" and num_mtp_modules(config, speculative) > 1,
        is_mamba_like=is_mamba_like(model_configuration(config.model_source)),
        why_never_asleep=why_never_asleep(sleep_facts(kwargs)),
        sleep=sleep_facts(kwargs),
    )


def model_configuration(source: str) -> dict[str, Any]:
    """What the model's `config.json` holds; empty where the model is no folder of this machine, or has none that can be read."""
    try:
        values = json.loads((Path(resolve_model(source)) / "config.json").read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def severity_of_absence(source: str, served_on: ServedOn) -> Severity:
    """Of a model that is no folder here: an error where its engine would look for it on this machine.

    Where that is not known, an absolute path whose parent folder is here is taken for one of this machine, unless the parent is one
    that every machine has, as `/mnt`.
    """
    if served_on != "unknown":
        return "error" if served_on == "this machine" else "warning"
    try:
        parent = Path(source).expanduser().parent
        return "error" if parent.is_absolute() and len(parent.parts) > 2 and parent.is_dir() else "warning"
    except (OSError, RuntimeError):  # what cannot be looked at is not known to be this machine's
        return "warning"


def text_configuration(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text, of a model that sees or hears as well."""
    text = values.get("text_config")
    return text if isinstance(text, Mapping) else values


def num_mtp_modules(config: LLMConfig, speculative: SpeculativeKwargs) -> int:
    """Modules that an MTP head drafts with in turn, as SpeculativeConfig.use_multi_module_mtp counts them; else 1."""
    values = model_configuration(config.draft_source or config.model_source)
    if str(values.get("model_type")).startswith("step3p"):
        values = dict(text_configuration(values))
    modules = values.get("num_nextn_predict_layers")
    return min(modules, speculative.num_speculative_tokens or modules) if isinstance(modules, int) else 1


def is_mamba_like(values: Mapping[str, Any]) -> bool:
    """Whether a target of this `config.json` gets no graph tiers, as far as its fields tell (EngineFacts.is_mamba_like).

    >>> is_mamba_like({"mamba_d_conv": 4}), is_mamba_like({"mamba_d_conv": 4, "layer_types": ["attention"]}), is_mamba_like({})
    (True, False, False)
    """
    text = text_configuration(values)
    layers = text.get("layer_types") or ()
    if text.get(GATED_DELTA_NET) or (layers and set(layers) <= {"attention", "full_attention"}):
        return False
    return text.get("model_type") in _ATTENTION_FREE or any(key in text for key in _RECURRENT_KEYS)


def has_experts(values: Mapping[str, Any]) -> bool:
    """Whether a target of this `config.json` is a mixture of experts, as far as its fields tell.

    >>> has_experts({"num_local_experts": 8}), has_experts({"text_config": {"n_routed_experts": 0}}), has_experts({})
    (True, False, False)
    """
    text = text_configuration(values)
    return any(bool(text.get(key)) for key in _EXPERT_KEYS)


def why_plain_with(engine_kwargs: Mapping[str, Any], *, is_moe: bool) -> str:
    """Why ranks are served plainly (engine/start/ranks.py), of arguments as EngineArgs.create_engine_config (0.32) reads them."""
    size = int(engine_kwargs.get("data_parallel_size") or 1)
    has_balancer = has_a_front_end_for_each_rank(engine_kwargs) or bool(engine_kwargs.get("data_parallel_hybrid_lb"))
    return why_ranks_plain(
        size=size,
        size_local=int(engine_kwargs.get("data_parallel_size_local") or size),
        one_front_end=not has_balancer and engine_kwargs.get("data_parallel_start_rank") is None,
        backend=str(engine_kwargs.get("data_parallel_backend") or OWN_PROCESSES),
        is_moe=is_moe,
    )


def sleep_facts(kwargs: EngineKwargs) -> SleepFacts:
    """What decides whether the drafter can sleep."""
    speculative = kwargs.speculative_config
    target_length, draft_length = kwargs.max_model_len, speculative.max_model_len if speculative else None
    return SleepFacts(
        drafter_kind=drafter_kind(speculative),
        draft_ends_before_target=bool(target_length and draft_length and draft_length < target_length),
        has_kv_connector=kwargs.kv_transfer_config is not None,
        sleep_mode=kwargs.enable_sleep_mode,
        context_parallel=max(kwargs.decode_context_parallel_size, kwargs.prefill_context_parallel_size) > 1,
    )


def offload_facts(config: LLMConfig, kwargs: EngineKwargs) -> OffloadFacts:
    """What decides whether the draft's memory can be lent."""
    speculative = kwargs.speculative_config
    return OffloadFacts(
        on_cpu=is_on_cpu(config),
        max_model_len_is_left_to_vllm=kwargs.max_model_len == -1,
        num_blocks_is_fixed=kwargs.num_gpu_blocks_override is not None,
        cuda_opt_in=environment_of(config).get(CUDA_OFFLOAD_VARIABLE) == "1",
        cumem_allocator=kwargs.enable_cumem_allocator,
        draft_quantization=(speculative.quantization or "") if speculative else "",
        **asdict(sleep_facts(kwargs)),
    )


def _variant(config: LLMConfig, method: str) -> str:
    """The drafter that vLLM makes of this method and the draft's `config.json`, where that can be read."""
    named = model_configuration(config.draft_source).get("architectures") if config.draft_source else None
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if method == SEPARATE_DRAFT_MODEL:
        return next((_KIND_BY_ARCHITECTURE[name] for name in architectures if name in _KIND_BY_ARCHITECTURE), method)
    return drafter_of(method, architectures)


def _runner_is_v1(config: LLMConfig, kwargs: EngineKwargs, *, on_cpu: bool, kind: str) -> bool:
    if on_cpu:
        return True
    chosen = environment_of(config).get(RUNNER_VARIABLE)
    if chosen:
        return chosen == "0"
    speculative = kwargs.speculative_config
    return not kind_of(kind).runs_on_v2 or bool(
        speculative
        and ((speculative.parallel_drafting and not kind_of(kind).drafts_a_block) or speculative.use_heterogeneous_vocab)
    )


def _has_full_graphs(compilation_config: object) -> bool:
    """Whether vLLM captures full graphs: its default is FULL_AND_PIECEWISE."""
    mode = compilation_config.get("cudagraph_mode") if isinstance(compilation_config, Mapping) else None
    return mode is None or "FULL" in str(mode).upper()


def _runner(facts: EngineFacts, arguments: EngineArguments) -> str:
    if facts.on_cpu:
        return "vLLM's model runner V1, the only one on CPU"
    if facts.runner_is_users:
        return f"vLLM's model runner {'V1' if arguments.runner_is_v1 else 'V2'}, as {RUNNER_VARIABLE} says"
    if not arguments.runner_is_v1:
        return f"vLLM's model runner V2, its default in {in_words(facts.vllm_version)}"
    if arguments.environment:
        return "vLLM's model runner V1, chosen by Nightjar: on V2 this drafter would draft its maximum, whatever K says"
    return f"vLLM's model runner V1: V2 does not take {facts.drafter_kind}"


def _graphs(facts: EngineFacts, arguments: EngineArguments) -> str:
    if facts.on_cpu:
        return "none on CPU"
    if not facts.captures_graphs:
        return "none: enforce_eager"
    steered = not arguments.serving_plainly and not arguments.only_observing
    if steered and arguments.runner_is_v1:
        return "piecewise CUDA graphs: V1 captures no full ones where K changes (3 to 14 % slower steps are reported)"
    if steered and facts.adaptive_verification:
        tiers = ", ".join(map(str, arguments.graph_tiers))
        return f"full CUDA graphs for any number of verified drafts, and the drafter's for K of {tiers} (graph_tiers)"
    if steered and arguments.graph_tiers:
        full = f"full and piecewise CUDA graphs for K of {', '.join(map(str, arguments.graph_tiers))} (graph_tiers)"
        return full if arguments.graph_plan is None else f"{full}; {arguments.graph_plan.in_words()}"
    if steered and facts.is_mamba_like and facts.full_graphs:
        return maximum_alone(facts.max_num_speculative_tokens)
    if steered:
        return "piecewise CUDA graphs, as cudagraph_mode says"
    return "vLLM's default, full and piecewise CUDA graphs"
