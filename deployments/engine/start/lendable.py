"""Whether a draft's memory can be lent to requests while it sleeps, and its size: decided before the engine starts.

Asked of vLLM's configuration by arguments.py and, without vLLM, by `nightjar check`. Fails open: a draft that cannot leave sleeps
where it is, and the reason is told.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.engine.start.dormancy import SleepFacts, sleep_facts, why_never_asleep

if TYPE_CHECKING:
    from vllm.config import VllmConfig

CUDA_OFFLOAD_VARIABLE: Final = "NIGHTJAR_CUDA_OFFLOAD"
"""Set to 1 to try what has never run on a GPU."""


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
