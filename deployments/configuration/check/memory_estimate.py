"""What an engine will hold in memory, from the model folders that are on this machine.

Weights are counted from safetensors headers, KV from config.json; both need no download and no torch. A model that is only a hub
name has no known size here, and the estimate says so instead of guessing. All bytes are one rank's, and activations,
graphs and fragments are not in them: what is left for KV is an upper bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.configuration.check.engine_facts import drafter_kind, environment_of, is_on_cpu, text_configuration
from nightjar.deployments.configuration.check.engine_schema import EngineKwargs
from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.environment import DEFAULT_CPU_KV_CACHE_GIB
from nightjar.deployments.engine.memory.offload_config import borrowable_blocks
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.llm_config import LLMConfig
from nightjar.deployments.models import ModelError, resolve_model

GIB: Final = 1 << 30
_BYTES_PER_VALUE: Final = {"float32": 4, "float": 4}
_DEFAULT_BYTES_PER_VALUE: Final = 2
_DEFAULT_GPU_MEMORY_UTILIZATION: Final = 0.92
_BLOCK_TOKENS: Final = {"cpu": 128, "gpu": 16}
"""vLLM 0.32's defaults."""
ACCELERATOR_GIB: Final = {
    "T4": 16, "L4": 24, "A10G": 24, "L20": 48, "L40S": 48, "A100-40G": 40, "A100": 40, "A100-80G": 80, "H100": 80,
    "H20": 96, "RTX-PRO-6000": 96, "H200": 141, "B200": 180, "GB200": 186, "B300": 270, "GB300": 270,
}  # fmt: skip
"""Memory by Ray's accelerator type, the smaller where the type says nothing of it."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """One model on one rank."""

    weight_bytes: int
    kv_bytes_per_token: int
    most_tokens: int | None = None
    """Of prompt and answer together, as its config.json says; None where that scales positions, or says nothing."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What is known; `unknown` says of what, and why."""

    target: ModelSize | None
    draft: ModelSize | None
    kv_bytes: int | None  # room for KV of target and draft
    block_tokens: int
    draft_can_leave: bool
    unknown: tuple[str, ...] = ()

    @property
    def base_blocks(self) -> int | None:
        """KV blocks beside the loaded draft."""
        if self.target is None or self.kv_bytes is None:
            return None
        return self.kv_bytes // (self.block_bytes(self.target) + (self.block_bytes(self.draft) if self.draft else 0))

    @property
    def lent_blocks(self) -> int | None:
        """Blocks of the target's KV that fit where the draft's weights and KV were."""
        if self.target is None or self.draft is None or self.base_blocks is None or not self.draft_can_leave:
            return None
        return borrowable_blocks(
            self.base_blocks,
            draft_weight_bytes=self.draft.weight_bytes,
            target_block_bytes=self.block_bytes(self.target),
            draft_block_bytes=self.block_bytes(self.draft),
        )

    def block_bytes(self, size: ModelSize) -> int:
        """Bytes of one of its KV blocks."""
        return size.kv_bytes_per_token * self.block_tokens


def estimate_memory(config: LLMConfig, kwargs: EngineKwargs) -> MemoryEstimate:
    """Sizes of target and drafter, and the KV blocks that they leave room for."""
    target, why_no_target = _size(config.model_source, kwargs)
    draft, why_no_draft = _size(config.draft_source, kwargs) if config.draft_source else (None, "")
    on_cpu = is_on_cpu(config)
    kv_bytes, why_no_room = _room(config, kwargs, (target, draft)) if not why_no_target and not why_no_draft else (None, "")
    return MemoryEstimate(
        target=target,
        draft=draft,
        kv_bytes=kv_bytes,
        draft_can_leave=kind_of(drafter_kind(kwargs.speculative_config)).can_sleep,
        block_tokens=kwargs.block_size or _BLOCK_TOKENS["cpu" if on_cpu else "gpu"],
        unknown=tuple(reason for reason in (why_no_target, why_no_draft, why_no_room) if reason),
    )


def kv_bytes_per_token(config: Mapping[str, Any], *, bytes_per_value: int, tensor_parallel_size: int) -> int:
    """Keys and values of one token over all layers of one rank, every layer taken for full attention.

    Raises ValueError where the attention is of another kind. Ranks split the KV heads, and repeat them when there are fewer.

    >>> kv_bytes_per_token({"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584},
    ...                    bytes_per_value=2, tensor_parallel_size=1)
    57344
    """
    if "kv_lora_rank" in config:
        raise ValueError("its attention is latent (kv_lora_rank), whose KV is not estimated")
    try:
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        layers, kv_heads = int(config["num_hidden_layers"]), int(config.get("num_key_value_heads") or heads)
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json lacks {error}") from error
    return 2 * layers * max(kv_heads // tensor_parallel_size, 1) * head_dim * bytes_per_value


def _size(source: str, kwargs: EngineKwargs) -> tuple[ModelSize | None, str]:
    try:
        folder = Path(resolve_model(source))
        if not (folder / "config.json").is_file():
            return None, f"{source} is no folder here: download it and name the folder to have its size counted"
        config = text_configuration(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        per_value = _BYTES_PER_VALUE.get(kwargs.dtype, _DEFAULT_BYTES_PER_VALUE)
        weights = draft_weight_bytes(folder, bytes_per_value=per_value, tensor_parallel_size=kwargs.tensor_parallel_size)
        kv = kv_bytes_per_token(
            config,
            bytes_per_value=1 if kwargs.kv_cache_dtype.startswith("fp8") else per_value,
            tensor_parallel_size=kwargs.tensor_parallel_size,
        )
    except (ModelError, OSError, ValueError) as error:
        return None, f"{source}: {error}"
    return ModelSize(weights, kv, _most_tokens(config)), ""


def _most_tokens(config: Mapping[str, Any]) -> int | None:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    tokens = config.get("max_position_embeddings")
    is_plain = isinstance(scaling, Mapping) and scaling.get("rope_type", "default") == "default" and "factor" not in scaling
    return tokens if is_plain and isinstance(tokens, int) else None


def _room(config: LLMConfig, kwargs: EngineKwargs, sizes: tuple[ModelSize | None, ...]) -> tuple[int | None, str]:
    if kwargs.kv_cache_memory_bytes is not None:
        return kwargs.kv_cache_memory_bytes, ""
    if is_on_cpu(config):
        gib = environment_of(config).get("VLLM_CPU_KVCACHE_SPACE", str(DEFAULT_CPU_KV_CACHE_GIB))
        return (int(gib) * GIB, "") if gib.isdigit() else (None, f"VLLM_CPU_KVCACHE_SPACE is {gib!r}, no whole number of GiB")
    accelerator = config.accelerator_type or config.actor_options().get("accelerator_type")
    if accelerator not in ACCELERATOR_GIB:
        return None, f"how much memory the accelerator {accelerator or '(none named)'} has is not known here"
    utilization = kwargs.gpu_memory_utilization or _DEFAULT_GPU_MEMORY_UTILIZATION
    left = int(ACCELERATOR_GIB[accelerator] * GIB * utilization) - sum(size.weight_bytes for size in sizes if size)
    return max(left, 0), ""
