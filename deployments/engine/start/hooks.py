"""Start-up self-check: does this vLLM still have every name and parameter that the engine room uses?

vLLM's scheduler, worker and engine core are no stable interface. A name that moved is found here, before an engine starts, by
import and signature alone, and named in one readable line. It costs what needs it and no more (fails open by feature): without a
name that only lending needs, the draft keeps its memory; without one that only sleeping needs, it is kept in sync; without one that
a head needs to write its KV alone, it runs once a step as in vLLM; without one that ranks of data parallelism are called by, they
serve plainly; without one that steering needs, the replica does. On CPU every drafter runs on our worker, which needs them
all. The names were looked up in the sources of vLLM 0.29.0, 0.31.0, 0.32.0 and 0.33.0; HOMES has those that stand elsewhere in some
of them, since vLLM moves functions without leaving the old name behind.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from nightjar.deployments.engine.environment import is_on_cpu

HOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "cli_env_setup": (
        "vllm.entrypoints.common.startup",  # 0.33
        "vllm.entrypoints.serve.utils.api_utils",  # 0.29 to 0.32
    ),
    "FrontendArgs": (
        "vllm.entrypoints.common.cli_args",  # 0.33
        "vllm.entrypoints.launchers.cli_args",  # 0.29 to 0.32
    ),
    "get_kv_cache_groups": (
        "vllm.v1.core.kv_cache_planning",  # 0.33
        "vllm.v1.core.kv_cache_utils",  # 0.29 to 0.32
    ),
}
"""Where to look for a name, the newest home first."""


def moved(name: str) -> Any:
    """The class or function from wherever this vLLM has it. Raises ImportError, which names every place."""
    for module in HOMES[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(HOMES[name])}; this vLLM has moved it elsewhere")


@dataclass(frozen=True, slots=True)
class MissingHooks:
    """One line for each name that this vLLM lacks, by what needs it; all empty where nothing is missing."""

    steering: tuple[str, ...] = ()
    sleeping: tuple[str, ...] = ()
    lending: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    draft_on_v2: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()


NOTHING_MISSING: Final = MissingHooks()


@dataclass(frozen=True, slots=True)
class Hook:
    """A class, function or method of vLLM and what must be found on it. A name of HOMES needs no module."""

    module: str
    name: str
    """Dotted inside the module, for example `Scheduler.schedule`."""
    parameters: tuple[str, ...] = ()
    """Parameters that the callable must take."""
    fields: tuple[str, ...] = ()
    """Fields of the dataclass, or attributes that the class's source sets on itself."""


def _hook(module: str, name: str, parameters: str = "", fields: str = "") -> Hook:
    """With names in one text, as a table's row has room for them."""
    return Hook(module, name, tuple(parameters.split()), tuple(fields.split()))


_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
_ASYNC_SCHEDULER: Final = "vllm.v1.core.sched.async_scheduler"

EVERYWHERE: Final = (
    _hook(_SCHEDULER, "Scheduler.__init__", parameters="vllm_config kv_cache_config structured_output_manager block_size"),
    _hook(
        _SCHEDULER,
        "Scheduler",
        fields="vllm_config requests running waiting max_num_scheduled_tokens num_spec_tokens dynamic_sd_lookup "
        "num_lookahead_tokens max_num_running_reqs max_model_len kv_cache_config kv_cache_manager",
    ),
    _hook(_SCHEDULER, "Scheduler.schedule"),
    _hook(_SCHEDULER, "Scheduler.update_draft_token_ids", parameters="draft_token_ids"),
    _hook(_SCHEDULER, "Scheduler._free_request_blocks", parameters="request"),
    _hook(_SCHEDULER, "Scheduler._preempt_request", parameters="request timestamp"),
    _hook(_SCHEDULER, "Scheduler.add_request", parameters="request"),
    _hook(_SCHEDULER, "Scheduler._update_after_schedule", parameters="scheduler_output"),
    _hook(_SCHEDULER, "Scheduler.update_from_output", parameters="scheduler_output model_runner_output"),
    _hook(_SCHEDULER, "Scheduler.has_unfinished_requests"),
    _hook(_SCHEDULER, "Scheduler.get_request_counts"),
    _hook(_SCHEDULER, "Scheduler.set_pause_state", parameters="pause_state"),
    _hook(_ASYNC_SCHEDULER, "AsyncScheduler._update_after_schedule", parameters="scheduler_output"),
    _hook(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        fields="num_scheduled_tokens scheduled_new_reqs scheduled_cached_reqs scheduled_spec_decode_tokens "
        "num_spec_tokens_to_schedule num_invalid_spec_tokens kv_cache_block_copies",
    ),
    _hook("vllm.v1.core.sched.output", "NewRequestData", fields="req_id num_computed_tokens"),
    _hook(
        "vllm.v1.core.sched.output",
        "CachedRequestData",
        fields="req_ids resumed_req_ids num_computed_tokens new_block_ids all_token_ids",
    ),
    _hook("vllm.v1.outputs", "ModelRunnerOutput", fields="req_id_to_index sampled_token_ids"),
    _hook(
        "vllm.v1.request",
        "Request",
        fields="num_computed_tokens num_tokens num_output_tokens max_tokens all_token_ids spec_token_ids "
        "sampling_params is_prefill_chunk use_structured_output",
    ),
    _hook("vllm.v1.core.kv_cache_manager", "KVCacheManager", fields="usage coordinator block_pool"),
    _hook(
        "vllm.v1.core.single_type_kv_cache_manager",
        "SingleTypeKVCacheManager",
        fields="req_to_blocks block_size allocate_new_blocks get_num_blocks_to_allocate",
    ),
    _hook("vllm.v1.core.single_type_kv_cache_manager", "CrossAttentionManager"),
    _hook("vllm.config", "VllmConfig", fields="num_lookahead_tokens"),
    _hook("vllm.config", "SpeculativeConfig", fields="max_num_new_slots_for_drafting"),
    _hook("vllm.v1.engine.core", "EngineCore", fields="scheduler"),
)
LOAD: Final = (
    _hook(_SCHEDULER, "Scheduler._is_blocked_waiting_status", parameters="status"),
    _hook(_SCHEDULER, "Scheduler._enqueue_waiting_request", parameters="request"),
    _hook(
        "vllm.v1.metrics.stats",
        "SchedulerStats",
        fields="num_running_reqs num_waiting_reqs num_skipped_waiting_reqs kv_cache_usage",
    ),
)
"""What an engine's load is read from, one that is served plainly included. There is no feature to leave out without them, so the
start-up check does not look: `make contract` does."""
_ENTRY: Final = "vllm.entrypoints.launchers.api_server.entry"
_SERVE_COMMAND: Final = "vllm.entrypoints.cli.serve"
PLAIN_SERVER: Final = (
    _hook(_ENTRY, "build_async_engine_client_from_engine_args", parameters="engine_args usage_context client_config"),
    _hook("vllm.entrypoints.launchers.app", "build_app", parameters="args supported_tasks model_config"),
    _hook("", "cli_env_setup"),
    _hook(_SERVE_COMMAND, "ServeSubcommand.subparser_init", parameters="subparsers"),
    _hook(_SERVE_COMMAND, "ServeSubcommand.validate", parameters="args"),
    _hook(_SERVE_COMMAND, "ServeSubcommand.cmd", parameters="args"),
    _hook(
        "vllm.v1.engine.async_llm",
        "AsyncLLM.from_vllm_config",
        parameters="vllm_config usage_context enable_log_requests aggregate_engine_logging disable_log_stats",
    ),
)
"""What `nightjar serve` replaces, extends and calls. Without them it serves plainly, or not at all: `make contract` looks."""
_PROPOSER: Final = "vllm.v1.spec_decode.llm_base_proposer"

DORMANT_DRAFT: Final = (
    _hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer.__init__", parameters="vllm_config device runner"),
    _hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer._get_model"),
    _hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer._create_draft_vllm_config"),
    _hook(
        _PROPOSER,
        "SpecDecodeBaseProposer.propose",
        parameters="num_speculative_tokens target_token_ids target_positions target_hidden_states next_token_ids "
        "token_indices_to_sample common_attn_metadata",
    ),
    _hook(_PROPOSER, "SpecDecodeBaseProposer.build_per_group_and_layer_attn_metadata", parameters="common_attn_metadata"),
    _hook(_PROPOSER, "SpecDecodeBaseProposer.build_model_inputs_first_pass", parameters="num_tokens num_input_tokens"),
    _hook(_PROPOSER, "SpecDecodeBaseProposer", fields="positions input_ids"),
    _hook("vllm.v1.worker.gpu_input_batch", "CachedRequestState", fields="mrope_positions mrope_position_delta"),
    _hook(_PROPOSER, "SpecDecodeBaseProposer._get_slot_mapping", parameters="num_tokens slot_mapping"),
    _hook(
        "vllm.v1.attention.backend",
        "CommonAttentionMetadata",
        fields="query_start_loc_cpu seq_lens seq_lens_cpu_upper_bound block_table_tensor slot_mapping "
        "_num_computed_tokens_cache _token_to_req_indices_cache",
    ),
    _hook("vllm.v1.kv_cache_interface", "KVCacheGroupSpec", fields="kv_cache_spec"),
    _hook("vllm.v1.kv_cache_interface", "UniformTypeKVCacheSpecs", fields="kv_cache_specs"),
    _hook("vllm.v1.kv_cache_interface", "FullAttentionSpec"),
    _hook("vllm.v1.kv_cache_interface", "MLAAttentionSpec"),
    _hook("vllm.forward_context", "set_forward_context", parameters="num_tokens cudagraph_runtime_mode slot_mapping"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.execute_model", parameters="scheduler_output"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.init_device"),
    _hook("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output"),
    _hook("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._input_fits_in_drafter", parameters="common_attn_metadata"),
)
"""What a sleeping draft model needs besides."""
DRAFT_OFFLOAD: Final = (
    _hook("vllm.v1.core.kv_cache_utils", "KVCacheBlockCopy", fields="src_block_id dst_block_id"),
    _hook("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue.remove"),
    _hook("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue.append_n"),
    _hook("", "get_kv_cache_groups", parameters="vllm_config kv_cache_spec"),
    _hook("vllm.v1.request", "Request", fields="next_decode_eligible_step num_in_flight_tokens"),
    _hook("vllm.v1.core.sched.scheduler", "Scheduler", fields="current_step num_waiting_for_streaming_input policy"),
    _hook("vllm.v1.core.sched.request_queue", "SchedulingPolicy.PRIORITY"),
    _hook("vllm.v1.request", "RequestStatus.RUNNING"),
    _hook("vllm.v1.core.block_pool", "BlockPool.get_new_blocks"),
    _hook("vllm.v1.core.block_pool", "BlockPool.move_block_hashes"),
    _hook("vllm.v1.core.block_pool", "BlockPool._maybe_evict_cached_block"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config", parameters="kv_cache_config"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.get_kv_cache_spec"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.sample_tokens", parameters="grammar_output"),
    _hook("vllm.model_executor.model_loader", "get_model_loader", parameters="load_config"),
    _hook(
        "vllm.model_executor.model_loader.base_loader", "BaseModelLoader.load_model", parameters="vllm_config model_config prefix"
    ),
    _hook("vllm.model_executor.model_loader.base_loader", "BaseModelLoader.load_weights", parameters="model model_config"),
    _hook("vllm.model_executor.model_loader.utils", "process_weights_after_loading", parameters="model model_config target_device"),
    _hook("vllm.model_executor.layers.linear", "UnquantizedLinearMethod"),
    _hook("vllm.model_executor.layers.vocab_parallel_embedding", "UnquantizedEmbeddingMethod"),
    _hook("vllm.model_executor.layers.quantization.base_config", "QuantizeMethodBase"),
    _hook("vllm.config", "VllmConfig", fields="additional_config load_config model_config"),
    _hook("vllm.utils.torch_utils", "set_default_torch_dtype", parameters="dtype"),
)
"""What lending its memory needs besides; on CUDA also vLLM's cumem allocator, which memory/cuda.py looks for itself."""
_SPECULATOR: Final = "vllm.v1.worker.gpu.spec_decode"
_HEAD: Final = f"{_SPECULATOR}.target_dependent_ar.speculator"
KV_ONLY_HEAD: Final = (
    _hook(
        _HEAD,
        "TargetDependentARSpeculator.propose",
        parameters="input_batch attn_metadata slot_mappings last_hidden_states aux_hidden_states num_sampled "
        "num_rejected last_sampled next_prefill_tokens dummy_run is_profile num_speculative_tokens",
    ),
    _hook(
        _HEAD, "TargetDependentARSpeculator._run_model", parameters="num_tokens attn_metadata slot_mappings num_tokens_across_dp"
    ),
    _hook(_HEAD, "TargetDependentARSpeculator", fields="hidden_states current_draft_step last_token_indices"),
    _hook(
        _HEAD,
        "prepare_prefill_inputs",
        parameters="last_token_indices current_draft_step input_buffers input_batch num_sampled num_rejected "
        "last_sampled next_prefill_tokens max_num_reqs",
    ),
    _hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator",
        fields="vllm_config input_buffers draft_tokens max_num_reqs supports_mm_inputs",
    ),
    _hook(f"{_SPECULATOR}.speculator", "DraftModelSpeculator.load_model", parameters="target_model"),
    _hook("vllm.v1.worker.gpu.input_batch", "InputBatch", fields="num_reqs num_tokens"),
    _hook("vllm.v1.attention.backend", "AttentionBackend", fields="forward_includes_kv_cache_update"),
    _hook("vllm.config", "get_layers_from_vllm_config", parameters="vllm_config layer_type"),
    _hook("vllm.model_executor.layers.attention_layer_base", "AttentionLayerBase.get_attn_backend"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.load_model"),
)
"""What a head that writes its KV alone needs besides, on model runner V2."""
BLOCK_DRAFT: Final = (
    _hook(
        f"{_SPECULATOR}.dflash.speculator",
        "DFlashSpeculator.propose",
        parameters="input_batch dummy_run is_profile num_speculative_tokens",
    ),
    _hook(f"{_SPECULATOR}.dflash.speculator", "DFlashSpeculator._generate_draft"),
    _hook(f"{_SPECULATOR}.dspark.speculator", "DSparkSpeculator._generate_draft"),
    _hook(_SPECULATOR, "init_speculator", parameters="vllm_config"),
)
"""What leaves a block's queries out at K = 0. Only 0.32 needs it, so `make contract` looks, and the start-up check does not."""
_STANDALONE: Final = f"{_SPECULATOR}.standalone_ar.speculator"
DRAFT_ON_V2: Final = (
    _hook(_STANDALONE, "StandaloneARSpeculator.propose", parameters="input_batch dummy_run is_profile num_speculative_tokens"),
    _hook(
        _STANDALONE,
        "StandaloneARSpeculator._run_model",
        parameters="input_ids positions attn_metadata slot_mappings num_tokens_across_dp",
    ),
    _hook(_STANDALONE, "StandaloneARSpeculator", fields="expanded_input_ids expanded_positions"),
    _hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator",
        fields="device method max_num_tokens num_speculative_steps input_buffers draft_tokens",
    ),
    _hook(f"{_SPECULATOR}.speculator", "DraftModelSpeculator.load_model", parameters="target_model"),
    _hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator._build_attn_metadata",
        parameters="num_reqs batch_desc query_start_loc_np seq_lens_cpu_upper_bound step slot_mappings",
    ),
    _hook("vllm.v1.worker.gpu.block_table", "BlockTables.gather_block_tables", parameters="idx_mapping num_reqs_padded"),
    _hook(
        "vllm.v1.worker.gpu.block_table",
        "BlockTables.compute_slot_mappings",
        parameters="idx_mapping query_start_loc positions num_tokens_padded out",
    ),
    _hook("vllm.v1.worker.gpu.block_table", "BlockTables.append_block_ids", parameters="req_index new_block_ids overwrite"),
    _hook("vllm.v1.worker.gpu.states", "RequestState", fields="req_id_to_index"),
    _hook("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", fields="req_states"),
    _hook(_STANDALONE, "StandaloneARSpeculator.load_draft_model", parameters="target_model target_attn_layer_names"),
    _hook(_STANDALONE, "get_model", parameters="vllm_config prefix"),
    _hook("vllm.v1.worker.gpu.attn_utils", "build_slot_mappings_by_layer"),
    _hook("vllm.v1.worker.gpu.cudagraph_utils", "BatchExecutionDescriptor", fields="cg_mode num_tokens num_reqs"),
    _hook(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        fields="req_ids num_reqs num_reqs_after_padding idx_mapping input_ids query_start_loc_np",
    ),
    _hook("vllm.v1.worker.gpu_worker", "Worker.load_model"),
    _hook("vllm.v1.worker.gpu_worker", "Worker.execute_model", parameters="scheduler_output"),
)
"""What a separate draft model on model runner V2 needs besides."""
RANKS: Final = (
    _hook("vllm.v1.engine.core_client", "AsyncMPClient._call_utility_async", parameters="method engine"),
    _hook("vllm.v1.engine.core_client", "MPClient", fields="core_engines engine_ranks_managed"),
    _hook("vllm.config", "SpeculativeConfig", fields="num_speculative_tokens_per_batch_size"),
)
"""What steering needs besides where one front end has several engine cores."""
ON_CPU: Final = (
    _hook("vllm.v1.worker.cpu_worker", "CPUWorker.init_device"),
    _hook(
        "vllm.v1.sample.rejection_sampler",
        "expand_batch_to_tokens",
        parameters="x cu_num_tokens num_tokens replace_from replace_to",
    ),
)


def missing_hooks() -> MissingHooks:
    """What this environment's vLLM lacks. Starts no engine."""
    try:
        on_cpu = is_on_cpu()
    except (ImportError, AttributeError) as error:
        return MissingHooks(steering=(f"vllm.platforms.current_platform: {error}",))
    if on_cpu:
        return MissingHooks(steering=_missing(EVERYWHERE + DORMANT_DRAFT + DRAFT_OFFLOAD + ON_CPU), ranks=_missing(RANKS))
    features = (EVERYWHERE, DORMANT_DRAFT, DRAFT_OFFLOAD, KV_ONLY_HEAD, DRAFT_ON_V2, RANKS)
    return MissingHooks(*(_missing(hooks) for hooks in features))


def _missing(hooks: tuple[Hook, ...]) -> tuple[str, ...]:
    return tuple(problem for hook in hooks for problem in _problems(hook))


def _problems(hook: Hook) -> list[str]:
    where = f"{hook.module}.{hook.name}" if hook.module else hook.name
    found: object
    try:
        found = importlib.import_module(hook.module) if hook.module else SimpleNamespace(**{hook.name: moved(hook.name)})
    except ImportError as error:
        return [f"{hook.module}: cannot be imported ({error})" if hook.module else str(error)]
    for part in hook.name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return [f"{where}: there is no {part!r}"]
    problems = []
    if hook.parameters:
        taken = inspect.signature(found).parameters if callable(found) else {}
        problems += [f"{where}: takes no parameter {name!r}" for name in hook.parameters if name not in taken]
    if hook.fields:
        held = _fields(found)
        problems += [f"{where}: holds no {name!r}" for name in hook.fields if name not in held]
    return problems


def _fields(found: object) -> set[str]:
    """Names on a class: its attributes, its dataclass fields, and what its and its bases' constructors assign on self."""
    names = set(dir(found))
    if dataclasses.is_dataclass(found):
        names |= {field.name for field in dataclasses.fields(found)}
    for cls in inspect.getmro(found) if inspect.isclass(found) else ():
        constructor = vars(cls).get("__init__")
        if inspect.isfunction(constructor):
            names |= set(constructor.__code__.co_names)
    return names
