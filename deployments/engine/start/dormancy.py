"""What an engine's drafter does at K = 0, as far as vLLM's configuration says: sleep, write a head's KV alone, or run as in vLLM;
and whether the memory of one that sleeps can be lent to requests.

Asked before the engine starts (what to tell the operator), by the scheduler (whether to keep a ledger of what the drafter missed)
and, without vLLM, by `nightjar check`. Fails open: what is not known to work is kept in sync, as vLLM does it, at a forward a step,
and a draft that cannot leave sleeps where it is.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes

if TYPE_CHECKING:
    from vllm.config import VllmConfig


NO_SEPARATE_DRAFT: Final = "only a separate draft model can be dormant"
CONTEXT_PARALLEL: Final = "context parallelism spreads a request's KV cache over ranks"
"""A rank knows only its own share of the slots that a catch-up would write."""
HEAD_ON_V1: Final = "on model runner V1 vLLM runs a head once a step at K = 0, to keep it in step"
CUDA_OFFLOAD_VARIABLE: Final = "NIGHTJAR_CUDA_OFFLOAD"
"""Set to 1 to try what has never run on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepFacts:
    """What decides it."""

    drafter_kind: str
    draft_ends_before_target: bool = False  # its max_model_len is smaller
    has_kv_connector: bool = False
    sleep_mode: bool = False
    context_parallel: bool = False
    head_layers: int = 1  # attention layers of an EAGLE or MTP head
    is_multimodal: bool = False
    spreads_experts: bool = False  # over ranks of data parallelism, or they are moved between ranks


NO_DRAFTER: Final = SleepFacts(drafter_kind="none")


def sleep_facts(config: VllmConfig) -> SleepFacts:
    """Of the configuration that vLLM built."""
    speculative = config.speculative_config
    kind = kind_of("none" if speculative is None else speculative.method)
    if speculative is None or not (kind.can_sleep or kind.is_head):
        return SleepFacts(drafter_kind=kind.method)
    return SleepFacts(
        drafter_kind=speculative.method,
        head_layers=_head_layers(speculative),
        is_multimodal=bool(getattr(config.model_config, "is_multimodal_model", False)),
        spreads_experts=_spreads_experts(config),
        draft_ends_before_target=speculative.draft_model_config.max_model_len < config.model_config.max_model_len,
        has_kv_connector=config.kv_transfer_config is not None,
        sleep_mode=bool(config.model_config.enable_sleep_mode),
        context_parallel=is_context_parallel(config.parallel_config),
    )


def why_never_asleep(facts: SleepFacts) -> str:
    """Why the drafter runs in every step, also at K = 0; empty where it can sleep.

    >>> why_never_asleep(SleepFacts(drafter_kind="eagle"))
    'only a separate draft model can be dormant'
    """
    checks = (
        (not kind_of(facts.drafter_kind).can_sleep, NO_SEPARATE_DRAFT),
        (facts.draft_ends_before_target, "the draft's max_model_len is below the target's"),
        (facts.has_kv_connector, "a KV connector is in use"),
        (facts.sleep_mode, "sleep mode is on"),
        (facts.context_parallel, CONTEXT_PARALLEL),
    )
    return next((reason for applies, reason in checks if applies), "")


def why_head_runs(facts: SleepFacts, *, runner_is_v1: bool) -> str:
    """Why an EAGLE or MTP head runs at K = 0 as in vLLM, a forward a step; empty where it only writes its KV (kv_only_head.py).

    >>> why_head_runs(SleepFacts(drafter_kind="eagle", head_layers=2), runner_is_v1=False)
    'the head has 2 attention layers: the KV of all but the first depends on attention'
    """
    checks = (
        (runner_is_v1, HEAD_ON_V1),
        (
            facts.head_layers > 1,
            f"the head has {facts.head_layers} attention layers: the KV of all but the first depends on attention",
        ),
        (facts.has_kv_connector, "a KV connector is in use"),
        (facts.context_parallel, CONTEXT_PARALLEL),
        (facts.is_multimodal, "the target is multimodal"),
        (facts.spreads_experts, "data parallelism or expert load balancing counts the head's forwards"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _spreads_experts(config: Any) -> bool:
    """Ranks of a dense target step apart, and each is alone in its own process (ranks.py)."""
    parallel, has_experts = config.parallel_config, bool(getattr(config.model_config, "is_moe", False))
    of_ranks = has_experts and getattr(parallel, "data_parallel_size", 1) > 1
    return of_ranks or bool(getattr(parallel, "enable_eplb", False))


def _head_layers(speculative: Any) -> int:
    """Of vLLM's SpeculativeConfig (0.32); a head that does not say has one. No layer of a block's keeps what attention made."""
    if kind_of(speculative.method).drafts_a_block:
        return 1
    hf_config = getattr(speculative.draft_model_config, "hf_config", None)
    name = "n_predict" if kind_of(speculative.method).method == "mtp" else "num_hidden_layers"
    return int(getattr(hf_config, name, None) or 1)


def is_context_parallel(parallel: Any) -> bool:
    """Of vLLM's ParallelConfig (0.32)."""
    sizes = (parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    return bool(max(sizes) > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadFacts(SleepFacts):
    """What decides whether a draft's memory can be lent."""

    on_cpu: bool
    max_model_len_is_left_to_vllm: bool = False
    num_blocks_is_fixed: bool = False
    cuda_opt_in: bool = False
    cumem_allocator: bool = False
    draft_quantization: str = ""


def why_not_lendable(facts: OffloadFacts) -> str:
    """Why this engine's draft keeps its memory, whatever its size; empty where it could be lent."""
    checks = (
        (facts.drafter_kind != SEPARATE_DRAFT_MODEL, "only a separate draft model has memory of its own"),
        (facts.max_model_len_is_left_to_vllm, "max_model_len is left to vLLM (-1), which would fit it to lent blocks"),
        (facts.num_blocks_is_fixed, "num_gpu_blocks_override fixes the number of KV blocks"),
        (not facts.on_cpu and not facts.cuda_opt_in, f"on a GPU it has never run; {CUDA_OFFLOAD_VARIABLE}=1 tries it"),
        (not facts.on_cpu and not facts.cumem_allocator, "on a GPU it needs enable_cumem_allocator: true in engine_kwargs"),
        (
            facts.on_cpu and bool(facts.draft_quantization),
            f"the draft is quantised ({facts.draft_quantization}), which packs its weights only once on CPU",
        ),
    )
    first, *others = [reason if applies else "" for applies, reason in checks]
    return next((reason for reason in (first, why_never_asleep(facts), *others) if reason), "")


def offload_of(config: VllmConfig, *, on_cpu: bool) -> tuple[OffloadConfig | None, str]:
    """How the draft's memory can be lent, or why it cannot, of the configuration that vLLM built."""
    speculative = config.speculative_config
    sleep = dataclasses.asdict(sleep_facts(config))
    if speculative is None or speculative.method != SEPARATE_DRAFT_MODEL:
        return None, why_not_lendable(OffloadFacts(on_cpu=on_cpu, **sleep))
    facts = OffloadFacts(
        on_cpu=on_cpu,
        max_model_len_is_left_to_vllm=config.model_config.original_max_model_len == -1,
        num_blocks_is_fixed=config.cache_config.num_gpu_blocks_override is not None,
        cuda_opt_in=os.environ.get(CUDA_OFFLOAD_VARIABLE) == "1",
        cumem_allocator=bool(config.model_config.enable_cumem_allocator),
        draft_quantization=speculative.draft_model_config.quantization or "",
        **sleep,
    )
    draft = Path(speculative.draft_model_config.model)
    reason = why_not_lendable(facts)
    if not reason and not draft.is_dir():
        reason = f"the draft {str(draft)!r} is no local folder, from which its size could be read"
    if reason:
        return None, reason
    try:
        num_bytes = draft_weight_bytes(
            draft,
            bytes_per_value=speculative.draft_model_config.dtype.itemsize,
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        )
    except (OSError, ValueError) as error:
        return None, f"the size of the draft is not known ({error})"
    return OffloadConfig(num_bytes), ""
