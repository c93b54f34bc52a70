"""Start-up self-check: does this vLLM still have every name and parameter that the engine room uses?

vLLM's scheduler, worker and engine core are no stable interface. A name that moved is found here, before an engine starts, by
import and signature alone, and named in one readable line. It costs what needs it and no more (fails open by feature): without a
name that only lending needs, the draft keeps its memory; without one that only sleeping needs, it is kept in sync; without one that
a head needs to write its KV alone, it runs once a step as in vLLM; without one that steering needs, the replica serves plainly. On
CPU every drafter runs on our worker, which needs them all. The names were looked up in the sources of vLLM 0.29.0, 0.32.0 and
0.33.0; those that stand elsewhere in some of them are in moved_names.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final

from nightjar.deployments.engine.environment import is_on_cpu
from nightjar.deployments.engine.start.moved_names import moved


@dataclass(frozen=True, slots=True)
class MissingHooks:
    """One line for each name that this vLLM lacks, by what needs it; all empty where nothing is missing."""

    steering: tuple[str, ...] = ()
    sleeping: tuple[str, ...] = ()
    lending: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    draft_on_v2: tuple[str, ...] = ()


NOTHING_MISSING: Final = MissingHooks()


@dataclass(frozen=True, slots=True)
class Hook:
    """A class, function or method of vLLM and what must be found on it. A name of moved_names.py needs no module."""

    module: str
    name: str
    """Dotted inside the module, for example `Scheduler.schedule`."""
    parameters: tuple[str, ...] = ()
    """Parameters that the callable must take."""
    fields: tuple[str, ...] = ()
    """Fields of the dataclass, or attributes that the class's source sets on itself."""


_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
_ASYNC_SCHEDULER: Final = "vllm.v1.core.sched.async_scheduler"

EVERYWHERE: Final = (
    Hook(
        _SCHEDULER, "Scheduler.__init__", parameters=("vllm_config", "kv_cache_config", "structured_output_manager", "block_size")
    ),
    Hook(
        _SCHEDULER,
        "Scheduler",
        fields=(
            "vllm_config",
            "requests",
            "running",
            "waiting",
            "max_num_scheduled_tokens",
            "num_spec_tokens",
            "dynamic_sd_lookup",
            "num_lookahead_tokens",
            "max_num_running_reqs",
            "max_model_len",
            "kv_cache_config",
            "kv_cache_manager",
        ),
    ),
    Hook(_SCHEDULER, "Scheduler.schedule"),
    Hook(_SCHEDULER, "Scheduler.update_draft_token_ids", parameters=("draft_token_ids",)),
    Hook(_SCHEDULER, "Scheduler._free_request_blocks", parameters=("request",)),
    Hook(_SCHEDULER, "Scheduler._preempt_request", parameters=("request", "timestamp")),
    Hook(_SCHEDULER, "Scheduler.add_request", parameters=("request",)),
    Hook(_SCHEDULER, "Scheduler._update_after_schedule", parameters=("scheduler_output",)),
    Hook(_SCHEDULER, "Scheduler.update_from_output", parameters=("scheduler_output", "model_runner_output")),
    Hook(_SCHEDULER, "Scheduler.has_unfinished_requests"),
    Hook(_SCHEDULER, "Scheduler.get_request_counts"),
    Hook(_SCHEDULER, "Scheduler.set_pause_state", parameters=("pause_state",)),
    Hook(_ASYNC_SCHEDULER, "AsyncScheduler._update_after_schedule", parameters=("scheduler_output",)),
    Hook(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        fields=(
            "num_scheduled_tokens",
            "scheduled_new_reqs",
            "scheduled_cached_reqs",
            "scheduled_spec_decode_tokens",
            "num_spec_tokens_to_schedule",
            "num_invalid_spec_tokens",
            "kv_cache_block_copies",
        ),
    ),
    Hook("vllm.v1.core.sched.output", "NewRequestData", fields=("req_id", "num_computed_tokens")),
    Hook(
        "vllm.v1.core.sched.output",
        "CachedRequestData",
        fields=("req_ids", "resumed_req_ids", "num_computed_tokens", "new_block_ids", "all_token_ids"),
    ),
    Hook("vllm.v1.outputs", "ModelRunnerOutput", fields=("req_id_to_index", "sampled_token_ids")),
    Hook(
        "vllm.v1.request",
        "Request",
        fields=(
            "num_computed_tokens",
            "num_tokens",
            "num_output_tokens",
            "max_tokens",
            "all_token_ids",
            "spec_token_ids",
            "sampling_params",
            "is_prefill_chunk",
            "use_structured_output",
        ),
    ),
    Hook("vllm.v1.core.kv_cache_manager", "KVCacheManager", fields=("usage", "coordinator", "block_pool")),
    Hook(
        "vllm.v1.core.single_type_kv_cache_manager",
        "SingleTypeKVCacheManager",
        fields=("req_to_blocks", "block_size", "allocate_new_blocks", "get_num_blocks_to_allocate"),
    ),
    Hook("vllm.v1.core.single_type_kv_cache_manager", "CrossAttentionManager"),
    Hook("vllm.config", "VllmConfig", fields=("num_lookahead_tokens",)),
    Hook("vllm.config", "SpeculativeConfig", fields=("max_num_new_slots_for_drafting",)),
    Hook("vllm.v1.engine.core", "EngineCore", fields=("scheduler",)),
)
LOAD: Final = (
    Hook(_SCHEDULER, "Scheduler._is_blocked_waiting_status", parameters=("status",)),
    Hook(_SCHEDULER, "Scheduler._enqueue_waiting_request", parameters=("request",)),
    Hook(
        "vllm.v1.metrics.stats",
        "SchedulerStats",
        fields=("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage"),
    ),
)
"""What an engine's load is read from, one that is served plainly included. There is no feature to leave out without them, so the
start-up check does not look: `make contract` does."""
_PROPOSER: Final = "vllm.v1.spec_decode.llm_base_proposer"

DORMANT_DRAFT: Final = (
    Hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer.__init__", parameters=("vllm_config", "device", "runner")),
    Hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer._get_model"),
    Hook("vllm.v1.spec_decode.draft_model", "DraftModelProposer._create_draft_vllm_config"),
    Hook(
        _PROPOSER,
        "SpecDecodeBaseProposer.propose",
        parameters=(
            "num_speculative_tokens",
            "target_token_ids",
            "target_positions",
            "target_hidden_states",
            "next_token_ids",
            "token_indices_to_sample",
            "common_attn_metadata",
        ),
    ),
    Hook(_PROPOSER, "SpecDecodeBaseProposer.build_per_group_and_layer_attn_metadata", parameters=("common_attn_metadata",)),
    Hook(_PROPOSER, "SpecDecodeBaseProposer.build_model_inputs_first_pass", parameters=("num_tokens", "num_input_tokens")),
    Hook(_PROPOSER, "SpecDecodeBaseProposer", fields=("positions", "input_ids")),
    Hook("vllm.v1.worker.gpu_input_batch", "CachedRequestState", fields=("mrope_positions", "mrope_position_delta")),
    Hook(_PROPOSER, "SpecDecodeBaseProposer._get_slot_mapping", parameters=("num_tokens", "slot_mapping")),
    Hook(
        "vllm.v1.attention.backend",
        "CommonAttentionMetadata",
        fields=(
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "block_table_tensor",
            "slot_mapping",
            "_num_computed_tokens_cache",
            "_token_to_req_indices_cache",
        ),
    ),
    Hook("vllm.v1.kv_cache_interface", "KVCacheGroupSpec", fields=("kv_cache_spec",)),
    Hook("vllm.v1.kv_cache_interface", "UniformTypeKVCacheSpecs", fields=("kv_cache_specs",)),
    Hook("vllm.v1.kv_cache_interface", "FullAttentionSpec"),
    Hook("vllm.v1.kv_cache_interface", "MLAAttentionSpec"),
    Hook("vllm.forward_context", "set_forward_context", parameters=("num_tokens", "cudagraph_runtime_mode", "slot_mapping")),
    Hook("vllm.v1.worker.gpu_worker", "Worker.execute_model", parameters=("scheduler_output",)),
    Hook("vllm.v1.worker.gpu_worker", "Worker.init_device"),
    Hook("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output"),
    Hook("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._input_fits_in_drafter", parameters=("common_attn_metadata",)),
)
"""What a sleeping draft model needs besides."""
DRAFT_OFFLOAD: Final = (
    Hook("vllm.v1.core.kv_cache_utils", "KVCacheBlockCopy", fields=("src_block_id", "dst_block_id")),
    Hook("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue.remove"),
    Hook("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue.append_n"),
    Hook("", "get_kv_cache_groups", parameters=("vllm_config", "kv_cache_spec")),
    Hook("vllm.v1.request", "Request", fields=("next_decode_eligible_step", "num_in_flight_tokens")),
    Hook("vllm.v1.core.sched.scheduler", "Scheduler", fields=("current_step", "num_waiting_for_streaming_input", "policy")),
    Hook("vllm.v1.core.sched.request_queue", "SchedulingPolicy.PRIORITY"),
    Hook("vllm.v1.request", "RequestStatus.RUNNING"),
    Hook("vllm.v1.core.block_pool", "BlockPool.get_new_blocks"),
    Hook("vllm.v1.core.block_pool", "BlockPool.move_block_hashes"),
    Hook("vllm.v1.core.block_pool", "BlockPool._maybe_evict_cached_block"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config", parameters=("kv_cache_config",)),
    Hook("vllm.v1.worker.gpu_worker", "Worker.get_kv_cache_spec"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.sample_tokens", parameters=("grammar_output",)),
    Hook("vllm.model_executor.model_loader", "get_model_loader", parameters=("load_config",)),
    Hook(
        "vllm.model_executor.model_loader.base_loader",
        "BaseModelLoader.load_model",
        parameters=("vllm_config", "model_config", "prefix"),
    ),
    Hook("vllm.model_executor.model_loader.base_loader", "BaseModelLoader.load_weights", parameters=("model", "model_config")),
    Hook(
        "vllm.model_executor.model_loader.utils",
        "process_weights_after_loading",
        parameters=("model", "model_config", "target_device"),
    ),
    Hook("vllm.model_executor.layers.linear", "UnquantizedLinearMethod"),
    Hook("vllm.model_executor.layers.vocab_parallel_embedding", "UnquantizedEmbeddingMethod"),
    Hook("vllm.model_executor.layers.quantization.base_config", "QuantizeMethodBase"),
    Hook("vllm.config", "VllmConfig", fields=("additional_config", "load_config", "model_config")),
    Hook("vllm.utils.torch_utils", "set_default_torch_dtype", parameters=("dtype",)),
)
"""What lending its memory needs besides; on CUDA also vLLM's cumem allocator, which memory/cuda.py looks for itself."""
_SPECULATOR: Final = "vllm.v1.worker.gpu.spec_decode"
_HEAD: Final = f"{_SPECULATOR}.target_dependent_ar.speculator"
KV_ONLY_HEAD: Final = (
    Hook(
        _HEAD,
        "TargetDependentARSpeculator.propose",
        parameters=(
            "input_batch",
            "attn_metadata",
            "slot_mappings",
            "last_hidden_states",
            "aux_hidden_states",
            "num_sampled",
            "num_rejected",
            "last_sampled",
            "next_prefill_tokens",
            "dummy_run",
            "is_profile",
            "num_speculative_tokens",
        ),
    ),
    Hook(
        _HEAD,
        "TargetDependentARSpeculator._run_model",
        parameters=("num_tokens", "attn_metadata", "slot_mappings", "num_tokens_across_dp"),
    ),
    Hook(_HEAD, "TargetDependentARSpeculator", fields=("hidden_states", "current_draft_step", "last_token_indices")),
    Hook(
        _HEAD,
        "prepare_prefill_inputs",
        parameters=(
            "last_token_indices",
            "current_draft_step",
            "input_buffers",
            "input_batch",
            "num_sampled",
            "num_rejected",
            "last_sampled",
            "next_prefill_tokens",
            "max_num_reqs",
        ),
    ),
    Hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator",
        fields=("vllm_config", "input_buffers", "draft_tokens", "max_num_reqs", "supports_mm_inputs"),
    ),
    Hook(f"{_SPECULATOR}.speculator", "DraftModelSpeculator.load_model", parameters=("target_model",)),
    Hook("vllm.v1.worker.gpu.input_batch", "InputBatch", fields=("num_reqs", "num_tokens")),
    Hook("vllm.v1.attention.backend", "AttentionBackend", fields=("forward_includes_kv_cache_update",)),
    Hook("vllm.config", "get_layers_from_vllm_config", parameters=("vllm_config", "layer_type")),
    Hook("vllm.model_executor.layers.attention_layer_base", "AttentionLayerBase.get_attn_backend"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.load_model"),
)
"""What a head that writes its KV alone needs besides, on model runner V2."""
_STANDALONE: Final = f"{_SPECULATOR}.standalone_ar.speculator"
DRAFT_ON_V2: Final = (
    Hook(
        _STANDALONE,
        "StandaloneARSpeculator.propose",
        parameters=("input_batch", "dummy_run", "is_profile", "num_speculative_tokens"),
    ),
    Hook(
        _STANDALONE,
        "StandaloneARSpeculator._run_model",
        parameters=("input_ids", "positions", "attn_metadata", "slot_mappings", "num_tokens_across_dp"),
    ),
    Hook(_STANDALONE, "StandaloneARSpeculator", fields=("expanded_input_ids", "expanded_positions")),
    Hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator",
        fields=("device", "method", "max_num_tokens", "num_speculative_steps", "input_buffers", "draft_tokens"),
    ),
    Hook(f"{_SPECULATOR}.speculator", "DraftModelSpeculator.load_model", parameters=("target_model",)),
    Hook(
        f"{_SPECULATOR}.speculator",
        "DraftModelSpeculator._build_attn_metadata",
        parameters=("num_reqs", "batch_desc", "query_start_loc_np", "seq_lens_cpu_upper_bound", "step", "slot_mappings"),
    ),
    Hook("vllm.v1.worker.gpu.block_table", "BlockTables.gather_block_tables", parameters=("idx_mapping", "num_reqs_padded")),
    Hook(
        "vllm.v1.worker.gpu.block_table",
        "BlockTables.compute_slot_mappings",
        parameters=("idx_mapping", "query_start_loc", "positions", "num_tokens_padded", "out"),
    ),
    Hook("vllm.v1.worker.gpu.block_table", "BlockTables.append_block_ids", parameters=("req_index", "new_block_ids", "overwrite")),
    Hook("vllm.v1.worker.gpu.states", "RequestState", fields=("req_id_to_index",)),
    Hook("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", fields=("req_states",)),
    Hook(_STANDALONE, "StandaloneARSpeculator.load_draft_model", parameters=("target_model", "target_attn_layer_names")),
    Hook(_STANDALONE, "get_model", parameters=("vllm_config", "prefix")),
    Hook("vllm.v1.worker.gpu.attn_utils", "build_slot_mappings_by_layer"),
    Hook("vllm.v1.worker.gpu.cudagraph_utils", "BatchExecutionDescriptor", fields=("cg_mode", "num_tokens", "num_reqs")),
    Hook(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        fields=("req_ids", "num_reqs", "num_reqs_after_padding", "idx_mapping", "input_ids", "query_start_loc_np"),
    ),
    Hook("vllm.v1.worker.gpu_worker", "Worker.load_model"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.execute_model", parameters=("scheduler_output",)),
)
"""What a separate draft model on model runner V2 needs besides."""
ON_CPU: Final = (
    Hook("vllm.v1.worker.cpu_worker", "CPUWorker.init_device"),
    Hook(
        "vllm.v1.sample.rejection_sampler",
        "expand_batch_to_tokens",
        parameters=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
)


def missing_hooks() -> MissingHooks:
    """What this environment's vLLM lacks. Starts no engine."""
    try:
        on_cpu = is_on_cpu()
    except (ImportError, AttributeError) as error:
        return MissingHooks(steering=(f"vllm.platforms.current_platform: {error}",))
    if on_cpu:
        return MissingHooks(steering=_missing(EVERYWHERE + DORMANT_DRAFT + DRAFT_OFFLOAD + ON_CPU))
    features = (EVERYWHERE, DORMANT_DRAFT, DRAFT_OFFLOAD, KV_ONLY_HEAD, DRAFT_ON_V2)
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
